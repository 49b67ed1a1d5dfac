"""The evaluations of a workdir, side by side: ``WORKDIR/evaluations/NAME/``.

An evaluation appears whole: its files are written to a folder with another name, which is then renamed. The same
evaluation, measured again, replaces its own files; one of other settings never does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from robust_jax.extensions import LONGEST_NAME
from robust_jax.files import file_name, read_json, refuse_link, refuse_other

FOLDER = "evaluations"
REPORT, EXAMPLES = "evaluation.json", "per_example.npz"
_LEFT_BEHIND = 3600.0  # seconds after which a folder that was never renamed is of a process that was killed


def folder_of(workdir: str | os.PathLike[str], name: str) -> Path:
    """The folder of an evaluation."""
    return Path(workdir) / FOLDER / name


def evaluations(workdir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The evaluations that a workdir holds.

    Of one that cannot be read a warning names the file; it is left out.

    Args:
      workdir: a folder that was evaluated.

    Returns:
      NAME -> the content of its ``evaluation.json``, sorted by name; empty if there is none.

    Example::

        for name, report in evaluations("runs/digits_fgr").items():
            print(name, report["worst_case"]["accuracy"])
    """
    found = {}
    for path in sorted(Path(workdir).expanduser().glob(f"{FOLDER}/[!.]*/{REPORT}")):
        try:
            for link in (path, path.parent):
                refuse_link(link)
            found[path.parent.name] = read(path)
        except (OSError, ValueError) as error:
            logging.warning("%s It is left out.", error)
    return found


def read(path: Path) -> dict[str, Any]:
    """The content of an ``evaluation.json``.

    Raises:
      ValueError: it is damaged, or not what an evaluation writes; begins with the path.
    """
    report = read_json(path)
    if problem := _problem(report):
        raise ValueError(f"{path} is no evaluation: {problem}.")
    return dict(report)


def _problem(report: Any) -> str:
    """What a report lacks to be shown in a table; nothing if it is whole."""
    if not isinstance(report, dict):
        return f"it holds a {type(report).__name__}"
    if not isinstance(report.get("attacks"), dict) or not _is_list_of_text(report.get("warnings")):
        return "it lacks attacks or warnings"
    for name, entry in {"clean": report.get("clean"), "worst_case": report.get("worst_case")}.items():
        if not _is_counted(entry):
            return f"{name} is no accuracy with its interval"
    for name, entry in report["attacks"].items():
        parts = {"threat": ("perturbation", "norm", "radius"), "settings": ("attack",), "largest": ("size", "excess")}
        lacks = [part for part, keys in parts.items() if not _has(entry, part, keys)]
        if not _is_counted(entry) or lacks:
            return f"attacks.{name[:100]} lacks {lacks or 'its accuracy'}"
    return ""


def _is_counted(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("interval"), list):
        return False
    numbers = [entry.get("accuracy"), *entry["interval"], entry.get("n")]
    return len(numbers) == 4 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)


def _has(entry: Any, part: str, keys: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(part), dict) and all(key in entry[part] for key in keys)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def check_name(name: str) -> None:
    """Raises ValueError for a name of the user's that cannot be that of a folder in ``evaluations``."""
    if not 0 < len(name) <= LONGEST_NAME or file_name(name) != name or name.startswith("."):
        raise ValueError(
            f"out={name[:LONGEST_NAME]!r} cannot be the name of an evaluation: give 1 to {LONGEST_NAME} letters, "
            f"digits, -, _ or ., the first one no dot. It becomes a folder in WORKDIR/{FOLDER}."
        )


class Place(NamedTuple):
    """Where an evaluation goes.

    Attributes:
      workdir: that is evaluated.
      identity: what distinguishes it from others, see `robust_jax.evaluation.identity.identity_of`.
      names: of its folder, the best first.
      is_given: whether the name is the user's: then no other one is taken.
    """

    workdir: Path
    identity: Mapping[str, Any]
    names: tuple[str, ...]
    is_given: bool = False

    def name(self) -> str:
        """The name of the folder that already holds this evaluation, otherwise the first one that is free.

        Raises:
          ValueError: a link or a folder where files have to be; the user's name is that of another evaluation.
        """
        refuse_link(self.workdir / FOLDER)
        held = {name: self._held(name) for name in self.names}
        same = [name for name, identity in held.items() if identity == self.identity]
        free = [name for name, identity in held.items() if identity is None]
        if same or free:
            chosen = (same or free)[0]
            for file in (REPORT, EXAMPLES):
                refuse_other(folder_of(self.workdir, chosen) / file)
            return chosen
        there = held[self.names[0]] or {}
        differs = sorted(k for k in {*there, *self.identity} if there.get(k) != self.identity.get(k))
        why = f"with other {', '.join(differs)}" if there else "that cannot be read"
        way_out = f"take another name than out={self.names[0]!r}" if self.is_given else "give a name, out=NAME"
        raise ValueError(
            f"{folder_of(self.workdir, self.names[0])} holds an evaluation {why}, which is kept: {way_out}, or move "
            f"that folder away."
        )

    def _held(self, name: str) -> Mapping[str, Any] | None:
        """What a folder holds: the identity of an evaluation, {} for one that cannot be read, None if it is free."""
        folder = folder_of(self.workdir, name)
        refuse_link(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is no folder, and an evaluation has to be there: move it away.")
        if not (folder / REPORT).exists() or (folder / REPORT).is_symlink():
            return None  # a link is replaced, and what it leads to stays
        refuse_other(folder / REPORT)
        try:
            identity = read(folder / REPORT).get("identity")
        except ValueError as error:
            logging.warning("%s It is kept.", error)
            return {}
        return identity if isinstance(identity, dict) else {}

    def keep(self, write: Callable[[Path, str], None]) -> str:
        """Writes an evaluation, and returns its name.

        Args:
          write: called as ``write(folder, name)``, writes the files of the evaluation to a folder, the JSON last.

        Raises:
          ValueError: as `name`.
          OSError: it cannot be written.
        """
        while True:
            name = self.name()
            folder = folder_of(self.workdir, name)
            if folder.exists():
                write(folder, name)
                return name
            folder.parent.mkdir(exist_ok=True)
            _remove_left_behind(folder.parent)
            temporary = folder.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
            temporary.mkdir()
            try:
                write(temporary, name)
                temporary.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was quicker
                    raise
            else:
                return name
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_behind(folder: Path) -> None:
    """Removes what processes that were killed while they wrote left."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > _LEFT_BEHIND:
            shutil.rmtree(path, ignore_errors=True)
