"""What several workdirs share: pictures and ``comparison.json``, in a folder that is of this comparison alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robust_jax.evaluation import curves
from robust_jax.evaluation.drawing import png
from robust_jax.evaluation.identity import digest, shortened
from robust_jax.evaluation.report import counted, draw_curves, drawable, shared_attacks, write_json
from robust_jax.evaluation.stored import COMPARISON, COMPARISONS, Place, forget
from robust_jax.evaluation.table import Reports, labels_of, left_by, rows_of, threat_of
from robust_jax.files import file_name, plain, write_atomically

TRADE_OFF = "trade_off.png"
Sweep = tuple[str, Sequence[Any]]
"""The one key in which the configs of workdirs differ, and its values."""
Entries = Sequence[Mapping[str, Any]]
"""What the reports of the workdirs say of one attack, or of clean images."""


def keep(reports: Reports, sweep: Sweep | None, out: str | None = None) -> Path:
    """Writes what the workdirs share: curves of the attacks that all were measured with, trade-off, JSON.

    Args:
      reports: of two workdirs or more.
      sweep: None unless the configs differ in exactly one key.
      out: the folder; by default one in ``comparisons`` beside the workdirs, named after them.

    Returns:
      The folder.

    Raises:
      ValueError: the folder given holds another comparison.
      OSError: it cannot be written.
    """
    place = place_of(reports, out)

    def write(folder: Path, name: str) -> Path:
        _write(folder, reports, sweep, place.identity)
        return place.root / name

    return place.keep(write)


def place_of(reports: Reports, out: str | None = None) -> Place:
    """Where the comparison of these evaluations goes."""
    root = Path(out).expanduser().absolute().parent if out is not None else _beside(reports)
    names = {os.path.relpath(folder, root): report["name"] for folder, report in reports.items()}
    marks = (digest(report["identity"]) for report in reports.values())
    identity = {"evaluations": [[*pair, mark] for pair, mark in zip(names.items(), marks, strict=True)]}
    if out is not None:
        return Place(root.resolve(), identity, (Path(out).expanduser().absolute().name,), True, COMPARISON)
    evaluations = [report["name"] for report in reports.values()]
    labels = [file_name(label) for label in labels_of(reports)]
    if len(set(evaluations)) == 1:
        words = [*labels, evaluations[0]]
    else:
        words = [f"{label}_{name}" for label, name in zip(labels, evaluations, strict=True)]
    name = shortened("-".join(words).lstrip("."), identity)
    return Place(root, identity, (name, f"{name}-{digest(identity)}"), False, COMPARISON)


def _beside(reports: Reports) -> Path:
    """The folder of the comparisons: in the nearest folder that holds all workdirs, or in that of the first one."""
    parents = [Path(folder).absolute().parent for folder in reports]
    try:
        common = Path(os.path.commonpath(parents))
    except ValueError:  # on different drives
        common = parents[0]
    is_shared = common != Path(common.anchor) and os.access(common, os.W_OK)
    return (common if is_shared else parents[0]) / COMPARISONS


def _write(folder: Path, reports: Reports, sweep: Sweep | None, identity: Mapping[str, Any]) -> None:
    """Writes the files; the JSON comes last."""
    forget(folder, COMPARISON)
    drawn = draw_curves(reports, folder)
    if sweep and (shared := shared_attacks(reports)):
        clean = [report["clean"] for report in reports.values()]
        write_atomically(folder / TRADE_OFF, png(_trade_off(clean, shared, *sweep)))
        drawn.append(TRADE_OFF)
    labels = labels_of(reports)
    content = {
        "workdirs": {
            label: {"workdir": str(workdir), "evaluation": report["name"], "checkpoint_step": report["checkpoint_step"]}
            for label, (workdir, report) in zip(labels, reports.items(), strict=True)
        },
        "table": [
            dict(zip(("attack", "threat", "effort"), words, strict=True))
            | {"accuracies": {k: {n: entry[n] for n in ("accuracy", "interval", "n")} for k, entry in entries.items()}}
            for words, entries in rows_of(reports).items()
        ],
        "sweep": {"key": sweep[0], "values": plain(sweep[1])} if sweep else None,
        "pictures": drawn,
        "identity": identity,
    }  # fmt: skip
    write_json(folder / COMPARISON, content)


def _trade_off(clean: Entries, shared: Mapping[str, Entries], key: str, values: Sequence[Any]) -> Figure:
    """Robust against clean accuracy of workdirs whose configs differ in one key, in the order of its values.

    Runs of equal values differ in their seeds: a point is their mean.
    """
    order = sorted(range(len(values)), key=values.__getitem__) if all(map(_is_number, values)) else range(len(values))
    named = [f"{value:g}" if _is_number(value) else drawable(str(value)[:100]) for value in values]
    of_value: dict[str, list[int]] = {}
    for i in order:
        of_value.setdefault(named[i], []).append(i)

    def means(entries: Entries) -> list[float]:
        return [float(np.mean([entries[i]["accuracy"] for i in runs])) for runs in of_value.values()]

    seeds = ", mean over seeds" if len(of_value) < len(values) else ""
    return curves.trade_off(
        means(clean),
        {drawable(f"{name}: {threat_of(same[0])}{left_by(same[0])}"): means(same) for name, same in shared.items()},
        list(of_value),
        title=drawable(f"{key}, {counted(clean)}{seeds}"),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
