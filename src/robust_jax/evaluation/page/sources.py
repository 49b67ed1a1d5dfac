"""The files of workdirs that a page is made of, read without importing or running anything that they name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from robust_jax.evaluation import drawn, stored
from robust_jax.evaluation.page import words
from robust_jax.files import folder_name, read_arrays, read_json, refuse_link

MOST_BYTES = 2**28
_MOST_METRICS, _MOST_PICTURE = 2**26, 2**22
LANDSCAPES = ("loss_surface*.png", "gradients*.png")
PNG = b"\x89PNG\r\n\x1a\n"

Value = TypeVar("Value")


class Evaluation(NamedTuple):
    """One evaluation of a run.

    Attributes:
      name: among the evaluations of the run.
      folder: its files lie in.
      report: the content of its ``evaluation.json``.
      arrays: that of ``per_example.npz``; {} if there is none.
      examples: that of ``examples.npz``, see `drawn.read`; {} if there is none.
      landscapes: name -> the content of a picture of the loss around images, or of its gradients.
    """

    name: str
    folder: Path
    report: dict[str, Any]
    arrays: dict[str, np.ndarray]
    examples: dict[str, Any]
    landscapes: dict[str, bytes]


class Run(NamedTuple):
    """One workdir.

    Attributes:
      label: the folder's name if all names differ, else its whole path.
      folder: the workdir.
      config: the content of ``config.json``; {} if there is none.
      metrics: the lines of ``metrics.jsonl``.
      memory: what points of the training objective keep from step to step: universal perturbations.
      evaluations: of the workdir.
    """

    label: str
    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    memory: dict[str, Any]
    evaluations: list[Evaluation]


def read(workdirs: Sequence[Any]) -> tuple[list[Run], list[str]]:
    """The runs, and in a sentence each what is missing or cannot be read.

    Raises:
      ValueError: no workdir, or a folder that is none.
    """
    folders = stored.runs_among(Path(folder_name("workdir", workdir)) for workdir in workdirs)
    if not folders:
        raise ValueError("report got no workdir: give at least one folder that train wrote.")
    notes: list[str] = []
    names = [folder.absolute().name for folder in folders]
    labels = names if len(set(names)) == len(names) else list(map(str, folders))
    return [_run(label, folder, notes) for label, folder in zip(labels, folders, strict=True)], notes


def _run(label: str, folder: Path, notes: list[str]) -> Run:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give a workdir that train wrote, or a folder that rj.show wrote.")
    evaluations = _evaluations(label, folder, notes)
    if not evaluations and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no workdir: it has neither a config.json nor an evaluation.")
    if not evaluations:
        notes.append(f"{label} has no evaluation yet: robust-jax evaluate {folder}")
    config: dict[str, Any] = tried(f"{label}: its config", lambda: _config(folder), {}, notes)
    return Run(
        label,
        folder,
        config,
        tried(f"{label}: its training curves", lambda: _metrics(label, folder, notes), [], notes),
        tried(f"{label}: its universal perturbations", lambda: _memory(folder, config), {}, notes),
        evaluations,
    )


def tried(what: str, read: Callable[[], Value], otherwise: Value, notes: list[str]) -> Value:
    """The result of a reader; if the files are not what they should be a note says so."""
    try:
        return read()
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as error:
        notes.append(f"{what} cannot be shown: {error}")
        return otherwise


def _evaluations(label: str, folder: Path, notes: list[str]) -> list[Evaluation]:
    paths = sorted(folder.glob(f"{stored.FOLDER}/[!.]*/{stored.REPORT}"))
    found = []
    # Beside them: what versions before wrote, and what `robust_jax.show` writes.
    for path in [*paths, *([own] if (own := folder / stored.REPORT).exists() else [])]:
        name = "" if path.parent == folder else path.parent.name
        where = f"{label}: the evaluation {name}".rstrip()
        report: dict[str, Any] = tried(where, partial(_report, path, folder), {}, notes)
        if report:
            found.append(_evaluation(where, name, path.parent, report, notes))
    return found


def _report(path: Path, folder: Path) -> dict[str, Any]:
    if path.parent != folder:  # the folder itself is the user's word
        refuse_link(path.parent)
    report = stored.read(path)
    for entry in report["attacks"].values():
        words.threat(entry), words.effort(entry)  # raise for values of other types
    return report


def _evaluation(where: str, name: str, folder: Path, report: dict[str, Any], notes: list[str]) -> Evaluation:
    path = folder / stored.EXAMPLES
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        arrays = tried(f"{where}: its examples", lambda: read_arrays(path, MOST_BYTES), {}, notes)
    else:
        notes.append(f"{where}: without {stored.EXAMPLES} there is no confusion matrix.")
    examples: dict[str, Any] = tried(f"{where}: its pictures", lambda: drawn.read(folder), {}, notes)
    paths = [path for pattern in LANDSCAPES for path in sorted(folder.glob(pattern))]
    landscapes = {path.stem: content for path in paths if (content := png(path))}
    return Evaluation(name, folder, report, arrays, examples, landscapes)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        return {}
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} holds a {type(config).__name__}, not an object.")
    return config


def _metrics(label: str, folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that can be read."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        if (folder / "config.json").exists():
            notes.append(f"{label} has no metrics.jsonl, so no training curves.")
        return []
    if path.stat().st_size > _MOST_METRICS:
        raise ValueError(f"{path} has more than {_MOST_METRICS:,} bytes.")
    lines = [_line(line) for line in path.read_text(errors="replace").splitlines()]
    if bad := lines.count(None):
        notes.append(f"{label}: {bad} of {len(lines)} lines of metrics.jsonl cannot be read.")
    return [line for line in lines if line]


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and math.isfinite(v)}
        return numbers if {"step", "epoch"} <= numbers.keys() else None
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None


def _memory(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the points of the built-in kinds that remember have kept, by the names of the points."""
    points = config.get("points") or {}
    if not any(isinstance(spec, Mapping) and "universal" in str(spec.get("kind")) for spec in points.values()):
        return {}  # Orbax takes seconds to load
    from robust_jax.workdir import checkpoints

    with checkpoints.opened(folder) as saved:
        memory = saved.newest(checkpoints.KINDS).state.get("memory") or {}
    return {name: memory[name] for name in points if name in memory}


def png(path: Path) -> bytes | None:
    """The content of a PNG file of reasonable size; None of anything else."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_PICTURE:
        return None
    content = path.read_bytes()
    return content if content.startswith(PNG) else None
