"""What a training run reports: metrics.jsonl, what writers do with it, and a progress bar or one line per epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from robust_jax import data, files, parallel
from robust_jax.progress import Bar
from robust_jax.training.step import TrainState
from robust_jax.training.writers import Open, Writer
from robust_jax.training.writers.tensorboard import tensorboard


class TrainingLog:
    """Writes while the run goes on; only process 0 of a multi-host run writes anything."""

    def __init__(
        self,
        workdir: Path,
        start: int,
        total_steps: int,
        steps_per_epoch: float,
        validated: bool = True,
        writers: Sequence[Writer] = (tensorboard,),
        config: Any = None,
    ):
        self.workdir = workdir
        self._path, self._start, self._total = workdir / "metrics.jsonl", start, total_steps
        self._steps_per_epoch = steps_per_epoch
        self._writers, self._config = writers, config
        self._active = parallel.is_main()
        self._latest: dict[str, float] = {}
        self._began = self._since = time.perf_counter()
        self._ticks = 0
        if self._active:
            _drop_lines_after(self._path, start, validated, (config or {}).get("log_every_steps", 1))

    def __enter__(self) -> TrainingLog:
        if self._active:
            self._file = files.open_to_append(self._path)
            self._open = Open(self._writers, self.workdir, self._config, self._start)
            # A bar on a terminal or in a notebook; elsewhere `write` prints a line per epoch.
            self._bar = Bar(self._total, self._start, unit="step")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._active:
            self._bar.close()
            self._open.close()
            self._file.close()

    def tick(self, steps: int = 1) -> None:
        """Records ``steps`` dispatched steps."""
        self._ticks += steps
        if self._active:
            self._bar.advance(steps)

    @property
    def rate(self) -> float:
        """Steps per second between the last two log steps, 0 before the first."""
        return self._latest.get("steps_per_second", 0.0)

    def write(self, step: int, values: Mapping[str, float], epoch: float | None = None) -> None:
        """Writes the numbers of a log step, or with an epoch those of a validation, after which it prints a line."""
        now = time.perf_counter()
        rate = {} if epoch is not None else {"steps_per_second": self._ticks / max(now - self._since, 1e-9)}
        self._since, self._ticks = now, 0
        values = {**values, **rate}
        self._latest |= values
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values}) + "\n")
        self._file.flush()
        self._open.write(step, values)
        shown = {_short(k): f"{v:.4g}" for k, v in self._latest.items() if k not in _NOT_SHOWN}
        validation = {_short(k): f"{v:.4g}" for k, v in self._latest.items() if k.startswith("validation/")}
        self._bar.show(validation | shown)  # what matters most first: the rest may not fit
        if epoch is None:
            return
        where = f"epoch {epoch:.4g}  step {step}/{self._total}"
        if self._bar.is_shown:
            self._bar.line(where, validation | shown)
            return
        left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
        numbers = "  ".join(f"{k} {v}" for k, v in shown.items())
        print(f"{where}  {numbers}  {self.rate:.3g} steps/s  {left:.0f} s left", flush=True)


_NOT_SHOWN = ("steps_per_second", "learning_rate")


def _short(name: str) -> str:
    return name.removeprefix("terms/").replace("validation/", "val ")


def _drop_lines_after(path: Path, step: int, validated: bool, every: int) -> None:
    """Removes what a killed run logged after its last checkpoint: those steps, or the validation, run again.

    Args:
      path: the log.
      step: of the checkpoint.
      validated: whether the validation at that step is done.
      every: the number of steps from one line to the next.

    A file that is damaged in other ways is kept beside as ``metrics.jsonl.damaged``; the lines that can be read stay.

    Raises:
      ValueError: if it is a folder.
    """
    files.refuse_other(path)
    if not path.exists():
        if step:
            logging.warning("%s is missing: what was logged up to step %d is lost, training goes on.", path, step)
        return
    content = path.read_bytes()
    lines = content.decode(errors="replace").splitlines()
    steps = [_step_of(line) for line in lines]
    _tell_what_is_lost(path, content, steps, step, every)
    dated = zip(lines, steps, strict=True)
    keep = [line for line, s in dated if s is not None and _stays(line, s, step, validated)]
    files.write_atomically(path, "".join(line + "\n" for line in keep).encode())


def _stays(line: str, its_step: float, step: int, validated: bool) -> bool:
    """Whether a line tells what a run that goes on from that step has done."""
    return its_step < step or its_step == step and (validated or "validation/clean" not in line)


def _tell_what_is_lost(path: Path, content: bytes, steps: Sequence[float | None], step: int, every: int) -> None:
    """Warns of lines that cannot be read, which are kept beside, and of steps that checkpoints or lines lack."""
    if None in steps[:-1]:  # the last line may be cut: the run was killed while it wrote
        kept = path.with_name(f"{path.name}.damaged")
        files.write_atomically(kept, content)
        count = steps.count(None)
        logging.warning("%s: %d of %d lines cannot be read; they are kept in %s.", path, count, len(steps), kept)
    known = [s for s in steps if s is not None]
    if step == 0 and known:
        logging.warning("%s reaches step %d, but there is no checkpoint: starting at step 0.", path, max(known))
    elif step >= every and not known:
        logging.warning("%s holds no line: what was logged up to step %d is lost, training goes on.", path, step)


def _step_of(line: str) -> float | None:
    """The step of a line; None of one that is no line of metrics."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int | float) else None


def announce(config: ConfigDict, dataset: data.Dataset, state: TrainState, total_steps: int, workdir: Path) -> None:
    """Prints in a few lines what is trained, for how long, and where it goes."""
    if not parallel.is_main():
        return
    splits = ", ".join(f"{len(getattr(dataset, name)):,} {name}" for name in ("train", "validation", "test"))
    shape, step = "x".join(map(str, dataset.image_shape)), int(state.step)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = f"{parallel.device_count()} x {parallel.device_kind()}"
    batch = f"{config.batch_size} images" + (f" in {config.accumulate} parts" if config.accumulate > 1 else "")
    print(f"{config.data.name}: {splits} images, {shape}, {dataset.num_classes} classes")
    print(f"{config.model.name}: {weights:,} parameters; terms {', '.join(sorted(config.terms))}")
    print(f"{config.optimizer.name}: {total_steps:,} steps of {batch}, {config.epochs:g} epochs, on {devices}")
    print(f"{workdir}: {f'goes on after step {step:,}' if step else 'starts'}", flush=True)
