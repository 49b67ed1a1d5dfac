"""A run's folder before its first step: a name that checkpoints can have, a lock, and room to write."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from absl import logging

from robust_jax import parallel

LOCK = ".lock"


class WorkdirError(ValueError):
    """A folder that cannot be used or written; the message says why, and the way out."""


def named(workdir: str | os.PathLike[str]) -> Path:
    """The folder of this name, with ``~`` expanded.

    Raises:
      WorkdirError: it is a file, or its path cannot be the path of a checkpoint: Orbax looks for the parts of one
        by a glob pattern, and TensorStore takes a backslash for a slash and a colon before a slash for a protocol.
    """
    text = os.path.expanduser(os.fspath(workdir))
    if not text or Path(text).is_file():
        raise WorkdirError(f"workdir={os.fspath(workdir)!r} must be a folder, or the name of one to make.")
    path = Path(text)
    if found := re.search(r"[\[\]\\\x00]|:(?=/|$)", str(path.absolute())):
        why = "a colon at the end of a folder's name" if found[0] == ":" else repr(found[0])
        raise WorkdirError(
            f"workdir={os.fspath(workdir)!r}: {str(path.absolute())!r} contains {why}, and checkpoints in such a "
            f"folder could not be restored. Take another name."
        )
    return path


@contextmanager
def claimed(workdir: Path, needed: int) -> Iterator[None]:
    """Makes the folder and holds its lock, which the operating system releases however the process ends.

    Args:
      workdir: the folder.
      needed: the number of bytes of a checkpoint.

    Raises:
      WorkdirError: another process trains in it, it cannot be written, or there is no room for a checkpoint. In a
        multi-host run process 0 alone asks, and all raise.
    """
    lock = filelock.FileLock(workdir / LOCK)
    why = _obstacle(workdir, lock, needed) if parallel.is_main() else ""
    if parallel.agreed(float(bool(why))):
        lock.release()
        raise WorkdirError(why or f"process 0 cannot use {workdir}; it says why.")
    try:
        yield
    finally:
        lock.release()


def _obstacle(workdir: Path, lock: filelock.BaseFileLock, needed: int) -> str:
    """Takes the lock and tries to write; what is in the way, or nothing."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _take(lock, workdir)
        _remove_leftovers(workdir)
        _try_to_write(workdir)
    except filelock.Timeout:
        return (
            f"{workdir} is in use: another process trains in it. Wait until that one ends, stop it, or take another "
            f"workdir."
        )
    except OSError as error:
        return (
            f"{error.filename or workdir} cannot be written: {error.strerror or error}. Mend its permissions, free "
            f"some space, or take another workdir."
        )
    free = shutil.disk_usage(workdir).free
    if free < needed:
        return (
            f"{workdir} has {free / 2**20:.0f} MiB free, and one checkpoint takes {needed / 2**20:.0f} MiB: free some "
            f"space or take another workdir."
        )
    return ""


def _take(lock: filelock.BaseFileLock, workdir: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except NotImplementedError:
        logging.warning("%s is on a file system without locks: see to it that one process at a time trains.", workdir)


def _remove_leftovers(workdir: Path) -> None:
    """Removes what a process that was killed while it wrote left: see `robust_jax.files.write_atomically`."""
    for name in ("config.json", "metrics.jsonl"):
        for path in workdir.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _try_to_write(workdir: Path) -> None:
    """Raises OSError unless a file can be made, written to the disk and removed, there and among the checkpoints."""
    for folder in (workdir, *(workdir / "checkpoints" / name for name in ("", "latest", "best"))):
        if folder.exists():
            try_to_write(folder)


def try_to_write(folder: Path, name: str = ".probe") -> None:
    """Raises OSError unless a file of that name can be made in a folder, written to the disk, and removed."""
    probe = folder / name
    probe.unlink(missing_ok=True)  # of a process that was killed just here
    try:
        with probe.open("xb") as file:  # x: never through a link
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


# Failures of the disk, not of the program.
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
}


@contextmanager
def explained(workdir: Path, kept: str = "The checkpoints are intact") -> Iterator[None]:
    """Turns the errors of a full or failing disk into a WorkdirError, which says what is ``kept``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise WorkdirError(
            f"writing to {error.filename or workdir} failed: {error.strerror}. {kept}: free some space or mend "
            f"{workdir}, and start again to go on from there."
        ) from error
