"""The evaluations of a workdir, side by side: ``WORKDIR/evaluations/NAME/``.

An evaluation appears whole: its files are written to a folder with another name, which is then renamed. The same
evaluation, measured again, replaces its own files; one of other settings never does.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import logging

from robust_jax.extensions import LONGEST_NAME
from robust_jax.files import file_name, read_json, refuse_link, refuse_other

FOLDER = "evaluations"
COMPARISONS = "comparisons"  # of several workdirs, beside them
WAITING = ".wait"  # the suffix of a folder of adversarial images whose evaluation is not finished
REPORT, EXAMPLES, DRAWN = "evaluation.json", "per_example.npz", "examples.npz"
COMPARISON = "comparison.json"
JSON_FILES = (REPORT, COMPARISON)
Result = TypeVar("Result")
# What evaluations and comparisons draw.
_PICTURE = re.compile(r"(adversarial|robustness|loss_surface)_[A-Za-z0-9_.-]*\.png|(trade_off|gradients)\.png")
# Seconds after which a folder in which nothing changes is of a process that was killed: one that is written, and one
# of adversarial images that wait for their evaluation.
_LEFT_BEHIND = {".*.tmp": 3600.0, f".*{WAITING}": 86400.0}


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


def runs_among(folders: Iterable[Path]) -> list[Path]:
    """The folders, each once, without that of the comparisons, which lies beside runs: ``runs/*`` names it too."""
    found = list(dict.fromkeys(folders))
    kept = [folder for folder in found if folder.name != COMPARISONS or (folder / "config.json").exists()]
    return kept or found


class Place(NamedTuple):
    """Where an evaluation goes, or what else has a folder and an identity.

    Attributes:
      root: the folder that holds it beside others.
      identity: what distinguishes it from others, see `robust_jax.evaluation.naming.identity_of`.
      names: of its folder, the best first.
      is_given: whether the name is the user's: then no other one is taken.
      file: the JSON file, written last, that holds the identity.
    """

    root: Path
    identity: Mapping[str, Any]
    names: tuple[str, ...]
    is_given: bool = False
    file: str = REPORT

    def name(self) -> str:
        """The name of the folder that already holds this evaluation, otherwise the first one that is free.

        Raises:
          ValueError: a link or a folder where files have to be; the user's name is that of another evaluation.
        """
        refuse_link(self.root)
        held = {name: self._held(name) for name in self.names}
        same = [name for name, identity in held.items() if identity == self.identity]
        first, step = held[self.names[0]] or {}, self.identity.get("checkpoint_step")
        # A name that tells of another checkpoint is for another one only.
        by_step = f"{self.names[0]}-step_{step}" if first.get("checkpoint_step") == step else ""
        free = [name for name, identity in held.items() if identity is None and name != by_step]
        if same or free:
            chosen = (same or free)[0]
            for file in (self.file, EXAMPLES):
                refuse_other(self.root / chosen / file)
            return chosen
        there = held[self.names[0]] or {}
        differs = sorted(k for k in {*there, *self.identity} if there.get(k) != self.identity.get(k))
        what = self.file.removesuffix(".json")
        why = f"with other {', '.join(differs)}" if there else "that cannot be read"
        way_out = f"take another name than out={self.names[0]!r}" if self.is_given else "give a name, out=NAME"
        raise ValueError(
            f"{self.root / self.names[0]} holds another {what}, {why}, which is kept: {way_out}, or move that folder "
            f"away."
        )

    def _held(self, name: str) -> Mapping[str, Any] | None:
        """What a folder holds: the identity of an evaluation, {} for one that cannot be read, None if it is free."""
        folder = self.root / name
        refuse_link(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is no folder, and one has to be there: move it away.")
        path = folder / self.file
        if not path.exists() or path.is_symlink():
            return None  # a link is replaced, and what it leads to stays
        refuse_other(path)
        try:
            content = read_json(path)
        except ValueError as error:
            logging.warning("%s It is kept.", error)
            return {}
        identity = content.get("identity") if isinstance(content, dict) else None
        return identity if isinstance(identity, dict) else {}

    def keep(self, write: Callable[[Path, str], Result]) -> Result:
        """Writes an evaluation, and returns what ``write`` returns.

        Args:
          write: called as ``write(folder, name)``, writes the files of the evaluation to a folder, the JSON last. Name
            is that of the folder in the end.

        Raises:
          ValueError: as `name`.
          OSError: it cannot be written.
        """
        while True:
            name = self.name()
            folder = self.root / name
            if folder.exists():
                return write(folder, name)
            self.root.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(self.root)
            temporary = folder.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
            temporary.mkdir()
            try:
                result = write(temporary, name)
                temporary.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was quicker
                    raise
            else:
                return result
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_behind(folder: Path) -> None:
    """Removes what processes that were killed while they wrote left."""
    for pattern, seconds in _LEFT_BEHIND.items():
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink() and time.time() - _changed(path) > seconds:
                shutil.rmtree(path, ignore_errors=True)


def _changed(folder: Path) -> float:
    """When anything in a folder was last changed."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)


def remove_pictures(folder: Path) -> None:
    """Removes the pictures of an evaluation that is measured again, and what a process that was killed left."""
    for path in folder.iterdir():
        is_ours = _PICTURE.fullmatch(path.name) or (path.name.startswith(".") and path.suffix == ".tmp")
        if is_ours and (path.is_symlink() or path.is_file()):
            path.unlink()


def refuse_foreign(folder: Path, file: str, way_out: str) -> None:
    """Raises ValueError if results would replace files of a folder that are not of earlier results of their kind.

    Args:
      folder: of the user's.
      file: the JSON file of these results: where it lies, the others are taken for its own.
      way_out: how the message ends.
    """
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    other = [name for name in names if name in JSON_FILES and name != file]
    ours = [name for name in names if name in (EXAMPLES, DRAWN) or _PICTURE.fullmatch(name)]
    if other or ours and file not in names:
        raise ValueError(f"{folder} holds {', '.join((other + ours)[:3])}, which might be replaced: {way_out}.")


def forget(folder: Path, file: str = REPORT) -> None:
    """Removes a JSON file that is to be replaced by another, and the pictures that it lists, in a folder of the user's.

    Other files of the folder stay.
    """
    path = folder / file
    refuse_other(path)
    if not os.path.lexists(path):
        return
    try:
        pictures = {} if path.is_symlink() else read_json(path).get("pictures")
    except (ValueError, AttributeError):
        pictures = None
    for name in pictures if isinstance(pictures, list) else ():
        if isinstance(name, str) and _PICTURE.fullmatch(name) and not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    path.unlink()
