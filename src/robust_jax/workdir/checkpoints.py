"""Checkpoints by orbax: the latest ones to resume from, and the best on validation to evaluate.

States are pytrees of NumPy arrays, the same on every process, so that every process of a multi-host run can save and
restore them. Writing is asynchronous and atomic: a process killed while it writes leaves the previous checkpoint. A
checkpoint is restored only if its bits are those that were saved (`robust_jax.workdir.integrity`); otherwise the one
before it is, with a warning. What is damaged is moved to ``checkpoints/damaged`` when training resumes, and never
deleted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from robust_jax import parallel
from robust_jax.workdir import failures, integrity
from robust_jax.workdir.integrity import DamagedError

KINDS = ("latest", "best")

# How long a step that vanishes while it is read may take to be replaced by a newer one: training goes on meanwhile.
_PATIENCE = 2.0


class CheckpointError(ValueError):
    """A checkpoint that cannot be restored or written; the message says which, why, and the way out."""


class Restored(NamedTuple):
    """A checkpoint: its kind, step and folder, the state, and its notes (None if an earlier version saved it)."""

    kind: str
    step: int
    path: Path
    state: Any
    notes: dict[str, Any] | None


class Checkpoints:
    """The checkpoint folders of a run; made by `opened`."""

    def __init__(self, directory: Path, config: Mapping[str, Any] = {}, keep: int = 2):
        self._directory, self._config = directory.absolute(), config
        self._keep = {"latest": keep, "best": 1}
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def save(self, kind: str, step: int, state: Any, pending: Mapping[str, Any] = {}, validated: bool = True) -> None:
        """Starts writing; a checkpoint of the same step and bits, which a run that was killed later left, is kept.

        Args:
          kind: one of `KINDS`.
          step: the number of steps done.
          state: a pytree of arrays.
          pending: the metrics of the steps since the last log step.
          validated: False if a validation is due after this step, and was not finished.

        Raises:
          CheckpointError: if this one or the one before could not be written.
        """
        state = jax.tree.map(np.asarray, state)
        notes = integrity.notes(step, state, self._config, pending, validated)
        if parallel.has_peers():  # the barriers of two saves at once have the same names
            for other in self._managers:
                self.wait(other)
        with self._explained(kind, step):
            manager = self._manager(kind)
            if step in manager.all_steps():
                manager.wait_until_finished()
                if parallel.agreed(float(self._holds(kind, step, notes))):
                    return
                manager.delete(step)
            metadata = {integrity.KEY: notes}
            manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=metadata, force=True)

    def wait(self, kind: str) -> None:
        """Waits until what was saved is on disk."""
        if kind in self._managers:
            with self._explained(kind, None):
                self._managers[kind].wait_until_finished()

    def steps(self, kind: str) -> list[int]:
        """The steps of all checkpoints of a kind, the newest first, damaged ones as well."""
        folder = self._directory / kind
        for path in (self._directory, folder):
            if path.exists() and not path.is_dir():
                raise CheckpointError(f"{path} is a file, where checkpoints lie in a folder: move it away.")
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)

    def step(self, kind: str) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        return next(iter(self.steps(kind)), None)

    def restore(self, kind: str, template: Any = None) -> Any:
        """The state of the newest intact checkpoint, in the structure of the template; without one, as nested dicts.

        Raises:
          CheckpointError: if there is none.
        """
        return self.newest((kind,), template).state

    def newest(self, kinds: Sequence[str], template: Any = None) -> Restored:
        """The newest intact checkpoint of the first of these kinds that has one; damaged ones are told by a warning.

        Raises:
          CheckpointError: if there is none.
        """
        found, damaged = self._search(kinds, template)
        if found is None:
            if damaged:
                self._none_intact(damaged)
            raise CheckpointError(f"{self._directory} holds no {' or '.join(kinds)} checkpoint.")
        if damaged:
            logging.warning("%s: using %s instead.", _told(damaged), found.path)
        return found

    def resume(self, template: Any) -> Restored | None:
        """The checkpoint to go on from, or None if there is none: the newest intact one of `KINDS`, in this order.

        Damaged ones that are newer, or of another kind, where the next one would replace them, are moved to
        ``checkpoints/damaged``. In a multi-host run process 0 chooses.

        Raises:
          CheckpointError: if there are checkpoints and all of them are damaged.
        """
        found, damaged = self._search(KINDS, template) if parallel.is_main() else (None, {})
        if found and found.kind == KINDS[0]:
            damaged |= self._search(KINDS[1:], template)[1]
        own = (1 + KINDS.index(found.kind), found.step, len(damaged)) if found else (0, 0, len(damaged))
        chosen, step, lost = map(int, parallel.gathered(own)[0])  # process 0's
        if not chosen:
            if lost:
                self._none_intact(damaged)
            return None
        kind = KINDS[chosen - 1]
        if damaged:
            moved = ", ".join(str(self._move_aside(path)) for path in damaged)
            logging.warning("%s: moved to %s, going on from %s.", _told(damaged), moved, self._path(kind, step))
        elif kind != KINDS[0]:
            logging.warning(
                "%s holds no checkpoint: going on from %s.", self._directory / KINDS[0], self._path(kind, step)
            )
        if found is not None:
            return found
        path = self._path(kind, step)
        try:
            return Restored(kind, step, path, *self._read(kind, step, template))
        except integrity.DamagedError as error:
            raise CheckpointError(
                f"{path}, from which process 0 goes on, cannot be read here ({error}): the workdir must lie on storage "
                f"that all hosts share."
            ) from error

    def close(self) -> None:
        """Waits until all writing has ended."""
        for kind, manager in self._managers.items():
            with self._explained(kind, None):
                manager.wait_until_finished()
                manager.close()

    def _search(self, kinds: Sequence[str], template: Any) -> tuple[Restored | None, dict[Path, str]]:
        """The newest intact checkpoint, and why each one that comes before it is damaged."""
        damaged: dict[Path, str] = {}
        for kind in kinds:
            tried: set[int] = set()
            while untried := [step for step in self.steps(kind) if step not in tried]:
                step = untried[0]
                tried.add(step)
                try:
                    return Restored(kind, step, self._path(kind, step), *self._read(kind, step, template)), damaged
                except DamagedError as error:
                    if not self._replaced(kind, step, tried):
                        _check_permissions(self._path(kind, step))
                        damaged[self._path(kind, step)] = str(error)
        return None, damaged

    def _replaced(self, kind: str, step: int, tried: set[int]) -> bool:
        """Whether training has removed a step while it was read; waits a little, since removing takes a moment."""
        end = time.monotonic() + _PATIENCE
        while step in (steps := self.steps(kind)) and {*steps} - tried and steps[0] > step and time.monotonic() < end:
            time.sleep(0.02)
        return step not in self.steps(kind)

    def _read(self, kind: str, step: int, template: Any = None) -> tuple[Any, dict[str, Any] | None]:
        """The state and the notes of one checkpoint.

        Raises:
          DamagedError: if it is not what was saved.
          CheckpointError: if it is intact, but of another structure than the template.
        """
        folder = self._path(kind, step)
        notes = integrity.read(folder)
        if notes is not None and template is not None and (why := integrity.other_structure(notes, template)):
            raise CheckpointError(f"{folder} is the state of another model, optimizer or version: {why}.")
        integrity.check_shapes(_from_orbax(_shapes, folder / "default"), notes)
        template = None if template is None else jax.tree.map(np.asarray, template)
        state = _from_orbax(_state, folder / "default", template)
        if notes is None:
            logging.warning("%s was saved by an earlier version, without checksums: its bits are not checked.", folder)
        else:
            integrity.verify(state, notes, step)
        return state, notes

    def _holds(self, kind: str, step: int, notes: Mapping[str, Any]) -> bool:
        """Whether a step on disk is intact and has these notes."""
        try:
            found = self._read(kind, step)[1]
        except DamagedError:
            self._move_aside(self._path(kind, step))
            self._managers[kind].reload()
            return False
        return found is not None and all(found.get(key) == notes[key] for key in ("leaves", "validated"))

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        """Made at the first save, when whatever is damaged has been moved out of its way."""
        if kind not in self._managers:
            # Created in the background, a folder that cannot be created is waited for during five minutes.
            at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep[kind], create=True, async_options=at_once)
            self._managers[kind] = ocp.CheckpointManager(self._directory / kind, options=options)
        return self._managers[kind]

    def _path(self, kind: str, step: int) -> Path:
        return self._directory / kind / str(step)

    def _move_aside(self, path: Path) -> Path:
        """Moves a damaged checkpoint to a free name in ``checkpoints/damaged``."""
        target = free = self._directory / "damaged" / f"{path.parent.name}_{path.name}"
        if parallel.is_main():
            target.parent.mkdir(parents=True, exist_ok=True)
            count = 1
            while free.exists():
                count += 1
                free = target.with_name(f"{target.name}_{count}")
            shutil.move(path, free)
        return free

    def _none_intact(self, damaged: Mapping[Path, str]) -> None:
        raise CheckpointError(
            f"no checkpoint in {self._directory} is intact: {_told(damaged)}. Nothing was changed. Put back a copy, or "
            f"train in another workdir; to start again from step 0 here, move that folder away."
        )

    @contextmanager
    def _explained(self, kind: str, step: int | None) -> Iterator[None]:
        """Turns whatever is raised while writing into one message."""
        try:
            yield
        except Exception as error:
            failures.settle()
            which = f"the {kind} checkpoint" + ("" if step is None else f" of step {step}")
            intact = [f"{k}/{s}" for k in KINDS for s in self.steps(k)]
            raise CheckpointError(
                f"{which} could not be written to {self._directory}: {failures.summary(error)}. "
                f"What was saved before is intact: {', '.join(intact) or 'nothing yet'}. Free some space or mend the "
                f"folder's permissions, and start again to go on from there."
            ) from error


@contextmanager
def opened(workdir: str | Path, config: Mapping[str, Any] = {}, keep: int = 2) -> Iterator[Checkpoints]:
    """The checkpoints of a workdir, closed at the end, when all writing has finished.

    Args:
      workdir: the folder of a run.
      config: of the run, saved with every checkpoint; see `robust_jax.workdir.saved_config.plain`.
      keep: the number of latest checkpoints that are kept.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", config, keep)
    with failures.quiet():
        try:
            yield checkpoints
        finally:
            checkpoints.close()


def _from_orbax(read: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """What a function reads of a checkpoint; raises DamagedError for whatever it raises."""
    try:
        return read(epath.Path(folder), *arguments)
    except Exception as error:  # of Orbax, TensorStore and the file system: anything, where files are damaged
        why = f"{type(error).__name__}: {failures.summary(error)}"
    failures.settle()
    raise DamagedError(why)


# The handler alone, without a Checkpointer: nothing here waits for other processes, or writes.
def _shapes(folder: epath.Path) -> Any:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), ocp.StandardCheckpointHandler().metadata(folder).tree)


def _state(folder: epath.Path, template: Any) -> Any:
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(template))


def _check_permissions(folder: Path) -> None:
    """Raises CheckpointError if a checkpoint may not be read: then it is not damaged."""
    for path in (folder, *folder.rglob("*")):
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"{path} may not be read: mend its permissions.")


def _told(damaged: Mapping[Path, str]) -> str:
    return "; ".join(f"{path} is damaged ({why})" for path, why in damaged.items())
