"""A run's folder before its first step: a name that checkpoints can have, a lock, and room to write."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import numpy as np
from absl import logging

from robust_jax import files, parallel

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
    lock = filelock.FileLock(workdir / LOCK, fallback_to_soft=False)  # one that is left behind locks nothing
    why = _obstacle(workdir, lock, needed) if parallel.is_main() else ""
    if parallel.agreed(float(bool(why))):
        lock.release()
        raise WorkdirError(why or f"process 0 cannot use {workdir}; it says why.")
    if parallel.has_peers() and (strangers := _strangers(workdir)):
        lock.release()
        raise WorkdirError(
            f"{workdir} of process 0 is not the folder that processes {strangers} have under this name: the workdir of "
            f"a multi-host run must lie on storage that all hosts share."
        )
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


def _strangers(workdir: Path) -> list[int]:
    """The processes that do not see what process 0 writes into the folder."""
    note, token = workdir / ".shared", str(parallel.agreed(float(os.getpid())))
    if parallel.is_main():
        files.write_atomically(note, token.encode())
    parallel.gathered([0])  # it is written
    seen = parallel.is_main() or _is_seen(note, token)
    strangers = np.flatnonzero(parallel.gathered([int(seen)])[:, 0] == 0).tolist()
    if parallel.is_main():
        note.unlink(missing_ok=True)
    return strangers


def _is_seen(note: Path, token: str, seconds: float = 30.0) -> bool:
    """Whether a file has this text now or soon: network file systems show a new one late."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if note.read_text() == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _take(lock: filelock.BaseFileLock, workdir: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
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


# File systems without locks.
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

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
