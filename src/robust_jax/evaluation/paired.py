"""`compare`: whether two methods differ, on the same images and over seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from rich.table import Table
from rich.text import Text

from robust_jax.evaluation import stored, table
from robust_jax.evaluation.statistics import mcnemar
from robust_jax.extensions import choose
from robust_jax.files import folder_name, printable, read_arrays
from robust_jax.options.signatures import checks_arguments

MOST_BYTES = 2**30  # of one evaluation's arrays
Workdirs = str | os.PathLike[str] | Sequence[Any]


@checks_arguments
def compare(
    one: Workdirs,
    other: Workdirs,
    *,
    evaluation: str | None = None,
    worst: Mapping[str, Sequence[str]] = {},
) -> dict[str, dict[str, Any]]:
    """Compares two methods that were evaluated on the same images: on screen, and as numbers.

    A row per attack that all were evaluated with in the same way; *worst case* is the worst of all these, per image.
    For every pair of runs McNemar's exact test (1947) counts the images that only one of them classifies correctly. It
    is of these networks and of images like these; what another seed does, the spread over several says. With many rows
    and pairs some p-values are small by chance: they are not corrected for their number.

    Args:
      one: a workdir, or several of one method that differ in their seeds.
      other: as many of another method; the first is paired with the first, and so on.
      evaluation: the name of the evaluation in all of them, a folder in ``WORKDIR/evaluations``; needed if they have
        several in common.
      worst: further rows, each the worst of several attacks: ``{"worst flow": ("flow_pgd", "flow_apgd")}``.

    Returns:
      Row -> ``one`` and ``other`` (accuracy of each run), ``only_one`` and ``only_other`` (numbers of images that only
      this one classifies correctly, per pair) and ``p`` (per pair).

    Raises:
      ValueError: no evaluation, or several, in common; other numbers of runs; images that are not the same; an attack
        that is not in all.

    Example::

        found = rj.compare([f"runs/fgr_{i}" for i in range(3)], [f"runs/standard_{i}" for i in range(3)])
        print(found["worst case"]["p"])
    """
    sides = [_folders(name, given) for name, given in (("one", one), ("other", other))]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"one has {len(sides[0])} workdirs and other has {len(sides[1])}: give as many, in pairs.")
    folders = [*sides[0], *sides[1]]
    held = {folder: stored.evaluations(folder) for folder in folders}
    name = _common(held, evaluation)
    reports = {str(folder): found[name] for folder, found in held.items()}
    if len(set(map(table.images_of, reports.values()))) > 1:
        raise ValueError(f"the evaluations {name!r} are not of the same images: {', '.join(reports)}.")
    groups = _groups(reports, worst)
    right = [[_right(folder, name, groups) for folder in side] for side in sides]
    rows = {row: _row([run[row] for run in right[0]], [run[row] for run in right[1]]) for row in groups}
    _print(rows, [table.labels_of(map(str, side)) for side in sides], name, len(right[0][0]["clean"]))
    return rows


def _folders(name: str, given: Workdirs) -> list[Path]:
    several = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not several:
        raise ValueError(f"{name} has no workdir: give at least one folder that was evaluated.")
    return [Path(folder_name(name, each)) for each in several]


def _common(held: Mapping[Path, table.Reports], wanted: str | None) -> str:
    """The name of the evaluation that all workdirs have."""
    for folder, names in held.items():
        if not names:
            raise ValueError(f"{folder} holds no evaluation: run robust-jax evaluate on all of them, together.")
        if wanted is not None:
            choose(f"evaluation of {folder}", wanted, names)
    common = sorted(set.intersection(*map(set, held.values())))
    if wanted is None and len(common) != 1:
        there = f"these: {common}, give one of them, evaluation=" if common else "none: evaluate them together"
        raise ValueError(f"the evaluations that all workdirs have in common are {there}.")
    return wanted or common[0]


def _groups(reports: Mapping[str, Mapping[str, Any]], worst: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Row -> the attacks of which it is the worst."""
    first, *others = reports.values()
    shared = [
        name for name, attack in first["attacks"].items()
        if all(name in r["attacks"] and table.alike(r["attacks"][name], attack) for r in others)
    ]  # fmt: skip
    groups: dict[str, tuple[str, ...]] = {"clean": ()} | {name: (name,) for name in shared}
    for row, names in worst.items():
        if row in groups:
            raise ValueError(f"worst has a row {row!r}, which is the name of an attack: give another.")
        for name in names:
            choose(f"worst[{row!r}]: attack", name, shared)
        groups[row] = tuple(names)
    return groups | ({"worst case": tuple(shared)} if len(shared) > 1 else {})


def _right(folder: Path, name: str, groups: Mapping[str, Sequence[str]]) -> dict[str, Bool[np.ndarray, " n"]]:
    """Row -> which images a run classifies correctly under its attacks, in the order of their ids."""
    arrays = read_arrays(stored.folder_of(folder, name) / stored.EXAMPLES, MOST_BYTES)
    order = np.argsort(arrays["id"], kind="stable")
    correct = arrays["clean/prediction"] == arrays["label"]
    return {
        row: reduce(np.logical_and, (~arrays[f"{attack}/broken"] for attack in attacks), correct)[order]
        for row, attacks in groups.items()
    }


def _row(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, Any]:
    only_one, only_other = ([int((a & ~b).sum()) for a, b in zip(*pair, strict=True)]
                            for pair in ((one, other), (other, one)))  # fmt: skip
    return {
        "one": [float(run.mean()) for run in one],
        "other": [float(run.mean()) for run in other],
        "only_one": only_one,
        "only_other": only_other,
        "p": [mcnemar(*counts) for counts in zip(only_one, only_other, strict=True)],
    }


def _print(found: Mapping[str, Mapping[str, Any]], labels: Sequence[Sequence[str]], name: str, n: int) -> None:
    of = "mean ± standard deviation over seeds" if len(labels[0]) > 1 else "accuracy"
    shown = Table(title=printable(f"{name}, n = {n}: {of}; images that only one classifies correctly, p of each pair"))
    shown.add_column("attack", overflow="fold")
    for side in labels:
        shown.add_column(Text(printable("\n".join(side))), justify="right")
    shown.add_column("only one, only other", justify="right")
    for row, entry in found.items():
        counts = zip(entry["only_one"], entry["only_other"], entry["p"], strict=True)
        cells = "\n".join(f"+{plus} −{minus}, {shown_p(p)}" for plus, minus, p in counts)
        shown.add_row(Text(printable(row)), _spread(entry["one"]), _spread(entry["other"]), cells)
    table.console().print(shown)


def _spread(accuracies: Sequence[float]) -> str:
    mean = f"{100 * np.mean(accuracies):.1f}"
    return f"{mean} ± {100 * np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else mean


def shown_p(p: float) -> str:
    """A p-value as tables have it."""
    return "p < 1e-4" if p < 1e-4 else f"p = {p:.2g}"
