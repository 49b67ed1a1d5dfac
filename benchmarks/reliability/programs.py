"""train.py and eval.py in processes that can be killed, forked from this one, so that each starts within a second.

The process that forks has imported everything and never runs anything of JAX itself, which would start threads.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FORK = multiprocessing.get_context("fork")


class Ended(NamedTuple):
    """How a process ended: its exit status, or minus the number of the signal that ended it, and what it printed."""

    status: int
    printed: str


class Program:
    """A process that runs a function; its output goes to a file."""

    def __init__(self, function: Callable[..., None], *arguments: Any):
        self._output = tempfile.NamedTemporaryFile(suffix=".txt")  # noqa: SIM115
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX's, of forks: there are no threads yet
            self._process = _FORK.Process(target=_redirected, args=(self._output.name, function, *arguments))
            self._process.start()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def ended(self, seconds: float = 300) -> Ended:
        """Waits for its end.

        Raises:
          TimeoutError: it hangs, and was killed; with what it printed.
        """
        self._process.join(seconds)
        hung = self._process.is_alive()
        if hung:
            self._process.kill()
            self._process.join()
        printed = Path(self._output.name).read_text(errors="replace")
        if hung:
            raise TimeoutError(f"it did not end within {seconds} s:\n{printed}")
        assert self._process.exitcode is not None
        return Ended(self._process.exitcode, printed)


def _redirected(output: str, function: Callable[..., None], *arguments: Any) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    function(*arguments)


def script(name: str, arguments: Sequence[str], steps: str = "") -> None:
    """What ``python NAME ARGUMENTS`` does, in the process of a `Program`.

    Args:
      name: train.py or eval.py.
      arguments: of the command line.
      steps: a file in which training notes the steps that it has done, as soon as they are, independently of its own
        files: "start N" when it begins after N steps, then the number done each time.
    """
    from robust_jax.training import log

    class Noted(log.TrainingLog):
        """Also notes the steps."""

        def __init__(self, workdir: Path, start: int, *rest: Any):
            super().__init__(workdir, start, *rest)
            self._done = start
            _note(steps, f"start {start}")

        def tick(self, steps_done: int = 1) -> None:
            super().tick(steps_done)
            self._done += steps_done
            _note(steps, str(self._done))

    if steps:
        from robust_jax.training import loop

        loop.TrainingLog = Noted  # type: ignore[misc]
    sys.argv = [name, *arguments]
    runpy.run_path(str(ROOT / name), run_name="__main__")


def _note(file: str, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())  # whole, whatever kills the process next
    os.close(descriptor)


def prepare(folder: Path) -> None:
    """Imports what the programs need; they share what they compile in the folder."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    sys.path.insert(0, str(ROOT / "src"))
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401

    import robust_jax.evaluation.measure
    import robust_jax.evaluation.report
    import robust_jax.training.loop  # noqa: F401


CONFIG = """
from robust_jax.config import base, complete

def get_config():
    c = base("digits", "mlp")
    c.model.options.hidden = (16,)
    c.data.limit, c.batch_size, c.select_limit = 160, 16, 32
    c.epochs, c.eval_every_epochs = {epochs}, {validate}
    c.log_every_steps, c.checkpoint_every_steps = {log}, {save}
    c.optimizer.ema = 0.9
    c.points.warped = dict(kind="random", perturbation="flow", sigma=0.155)
    c.terms.ce = dict(kind="cross_entropy", at="warped")
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", weight=1.0)
    c.evaluation.limit, c.evaluation.batch_size, c.evaluation.pictures = 60, 60, {pictures}
    c.evaluation.checks = {checks}
    for i in range({attacks}):
        c.attacks[f"flow{{i}}"] = dict(kind="pgd", perturbation="flow", radius=0.1 * (i + 1), steps=3)
    return complete(c)
"""


def write_config(path: Path, **values: Any) -> None:
    """Writes a config file of a small MLP on the digits, 9 steps an epoch."""
    defaults = dict(epochs=12.0, validate=4.0, log=4, save=7, pictures=0, checks=0, attacks=2)
    path.write_text(CONFIG.format(**(defaults | values)))
