r"""Writers: where the numbers of a training run go besides ``metrics.jsonl``, such as TensorBoard or Weights & Biases.

A writer is one function or class in one file, ``writer(workdir, config)``, called when training starts or goes on. It
returns ``write(step, metrics)``, or an object with this method and perhaps ``close()``::

    class Table:
        def __init__(self, workdir, config):
            self._file = (workdir / "table.csv").open("a")

        def write(self, step, metrics):
            self._file.writelines(f"{step},{name},{value}\n" for name, value in metrics.items())

        def close(self):
            self._file.close()

It is named in a config, ``config.writers = ("tensorboard", "my_file:Table")``, or given in Python,
``rj.train(config, workdir, writers=[Table])``. A writer with a parameter ``step`` is given the step after which
training goes on, 0 of a new run: what was written after it is written again.

A writer that fails costs its own numbers, and no training: one warning says so, and it is called again at the next
step. In a multi-host run only the first process writes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import logging

from robust_jax import extensions

Writer = Callable[..., Any]
"""``(workdir, config) -> write(step, metrics)``, or an object with ``write`` and perhaps ``close``."""


@functools.cache
def built_in() -> dict[str, Writer]:
    """The writers of the package by name: in each file the class of its name."""

    def is_writer(value: Any) -> bool:
        return inspect.isclass(value) and value.__module__ == f"{__name__}.{value.__name__}"

    return extensions.collect(__name__, __path__, is_writer)


def find(writers: Iterable[str | Writer]) -> list[Writer]:
    """The writers, those that are named found; before anything of a run is done.

    Args:
      writers: functions or classes, names of built-in ones, or ``"module:name"``.

    Raises:
      ValueError: an unknown name, something that cannot be called, or a package that is not installed.
    """
    if isinstance(writers, str) or not isinstance(writers, Iterable):
        raise ValueError(f"writers={writers!r}: give a tuple, such as ('tensorboard', 'wandb').")
    found = [w if callable(w) else extensions.find("writers", w, built_in()) for w in dict.fromkeys(writers)]
    for writer in found:
        if not callable(writer):
            raise ValueError(f"writers: {writer!r} is no function (workdir, config) -> write(step, metrics).")
        for package in getattr(writer, "packages", ()):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ValueError(
                    f"writers: {package} cannot be imported: {error}. pip install 'robust_jax[{package}]' installs it."
                ) from error
    return found


_FAILED = object()


class Open:
    """Writers that are open: each is told every number, and none can end the run."""

    def __init__(self, writers: Sequence[Writer], workdir: Path, config: Any, step: int):
        self._failed: set[str] = set()
        self._open: list[tuple[str, Any]] = []
        for writer in writers:
            name = getattr(writer, "__name__", type(writer).__name__)
            begun = {"step": step} if "step" in inspect.signature(writer).parameters else {}
            opened = self._guarded(name, step, partial(writer, workdir, config, **begun))
            if opened is _FAILED:
                continue
            if not callable(getattr(opened, "write", opened)):
                raise ValueError(f"the writer {name} returned {opened!r}: return write(step, metrics), or an object.")
            self._open.append((name, opened))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells all of them the numbers of a step."""
        for name, writer in self._open:
            self._guarded(name, step, partial(getattr(writer, "write", writer), step, dict(metrics)))

    def close(self) -> None:
        """Closes those that can be closed."""
        for name, writer in self._open:
            self._guarded(name, None, getattr(writer, "close", lambda: None))

    def _guarded(self, name: str, step: int | None, function: Callable[[], Any]) -> Any:
        """What a function of a writer returns; `_FAILED` if it fails, which is told once."""
        try:
            return function()
        except Exception as error:
            if name not in self._failed:
                when = "when it was closed" if step is None else f"at step {step}"
                logging.warning(
                    "The writer %s failed %s, and may lack numbers: %s: %s. Training goes on; metrics.jsonl has all.",
                    name, when, type(error).__name__, error,
                )  # fmt: skip
            self._failed.add(name)
            return _FAILED
