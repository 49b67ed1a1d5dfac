"""Checkpoints by orbax: the latest one to resume from, and the best on validation to evaluate.

States are pytrees of NumPy arrays, the same on every process, so that every process of a multi-host run can save and
restore them. Writing is asynchronous and atomic: a process killed while it writes leaves the previous checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

KINDS = ("latest", "best")


class Checkpoints:
    """The open checkpoint folders of a run; made by `opened`."""

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._managers = {kind: ocp.CheckpointManager((directory / kind).absolute(), options=options) for kind in KINDS}

    def save(self, kind: str, step: int, state: Any) -> None:
        """Starts writing; replaces a checkpoint of the same step, which a run that was killed later may have left."""
        manager = self._managers[kind]
        if step in manager.all_steps():
            manager.wait_until_finished()
            manager.delete(step)
        manager.save(step, args=ocp.args.StandardSave(jax.tree.map(np.asarray, state)), force=True)

    def wait(self, kind: str) -> None:
        """Waits until what was saved is on disk."""
        self._managers[kind].wait_until_finished()

    def step(self, kind: str) -> int | None:
        """The step of the checkpoint, or None if there is none."""
        return self._managers[kind].latest_step()

    def restore(self, kind: str, template: Any = None) -> Any:
        """The checkpoint's state, in the structure of the template; without a template, as nested dicts."""
        manager = self._managers[kind]
        template = None if template is None else jax.tree.map(np.asarray, template)
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(template))

    def close(self) -> None:
        """Waits until all writing has ended."""
        for manager in self._managers.values():
            manager.wait_until_finished()
            manager.close()


@contextmanager
def opened(workdir: str | Path) -> Iterator[Checkpoints]:
    """The checkpoints of a workdir, closed at the end, when all writing has finished."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    try:
        yield checkpoints
    finally:
        checkpoints.close()
