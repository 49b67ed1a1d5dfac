"""The output of an evaluation: JSON, arrays, pictures, and a table on screen."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robust_jax.evaluation import curves, landscape_files, pictures
from robust_jax.evaluation import drawn as drawn_examples
from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.stored import EXAMPLES, REPORT, folder_of
from robust_jax.files import file_name, printable, write_atomically

Reports = Mapping[str, Mapping[str, Any]]
"""Workdir -> the content of its evaluation.json."""


def write(
    folder: Path, report: Mapping[str, Any], measured: PerExample, drawn: int, label: str, surfaces: int = 0
) -> None:
    """Writes the files of one evaluation; the JSON comes last, so that if it exists all others do.

    Pictures that an earlier evaluation left there are removed if this one does not draw them.

    Args:
      folder: of the evaluation.
      report: the content of evaluation.json.
      measured: the results per example.
      drawn: the number of examples drawn per attack; 0: none.
      label: of the model, in its curves.
      surfaces: the number of examples per attack around which the loss is drawn; 0: none.
    """
    table = io.BytesIO()
    np.savez_compressed(table, **measured.arrays())  # type: ignore[arg-type]
    write_atomically(folder / EXAMPLES, table.getvalue())
    drawn_now = draw_curves({label: report}, folder)
    drawn_examples.write(folder, measured, drawn)
    for name, outcome in measured.attacks.items():
        if drawn and outcome.sample and outcome.sample["clean"].shape[-1] in (1, 3):
            examples = jax.tree.map(lambda leaf: leaf[:drawn], outcome.sample)
            picture = io.BytesIO()
            title = f"{name}: {_threat(report['attacks'][name])}, {_effort(report['attacks'][name])}"
            names = [_drawn(name) for name in report.get("class_names") or ()]
            pictures.adversarial_grid(**examples, path=picture, title=_drawn(title), class_names=names)
            drawn_now.append(_file("adversarial", name))
            write_atomically(folder / drawn_now[-1], picture.getvalue())
    for kind, name, png in landscape_files.drawn(measured, surfaces, jax.random.key(report.get("seed", 0))):
        drawn_now.append(_file(kind, name) if name else f"{kind}.png")
        write_atomically(folder / drawn_now[-1], png)
    remove_others(folder, drawn_now)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / REPORT, text.encode())


def remove_others(folder: Path, kept: Collection[str]) -> None:
    """Removes pictures, and temporary files of a process that was killed, that evaluations write, except those kept."""
    for pattern in ("adversarial_*.png", "robustness_*.png", "loss_surface_*.png", "gradients.png", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in kept and (path.is_symlink() or path.is_file()):
                path.unlink()


def compare(reports: Reports, sweep: tuple[str, Sequence[Any]] | None) -> None:
    """Compares workdirs: curves and trade-off as pictures in the first one, and one table on screen.

    Args:
      reports: of at least one workdir.
      sweep: the one key in which the workdirs' configs differ, and its values; None unless there is exactly one.
    """
    if len(reports) > 1:
        draw_curves(reports, Path(next(iter(reports))))
    if sweep:
        draw_trade_off(reports, *sweep)
    show(reports)


def draw_curves(reports: Reports, folder: Path) -> list[str]:
    """Draws one chart per attack that has a curve and that all workdirs were evaluated with in the same way.

    Returns:
      The names of the files.
    """
    drawn = []
    for name, same in _shared(reports).items():
        attack = same[0]
        if not all("curve" in a for a in same):
            continue
        radius = attack["threat"]["radius"]
        by_radius = isinstance(radius, (int, float))
        unit = attack["threat"].get("unit", "")
        picture = io.BytesIO()
        curves.accuracy_curves(
            {
                _drawn(label): a["curve"] if by_radius else a["curve"] | {"radius": a["curve"]["multiple"]}
                for label, a in zip(_labels(reports), same, strict=True)
            },
            picture,
            title=_drawn(f"{name}: {_space(attack)}, {_effort(attack)}, n = {attack['n']}"),
            xlabel=f"radius{f' ({unit})' if unit else ''}" if by_radius else f"radius / {radius}",
            highlight=radius if by_radius else 1.0,
        )
        drawn.append(_file("robustness", name))
        write_atomically(folder / drawn[-1], picture.getvalue())
    return drawn


def draw_trade_off(reports: Reports, key: str, values: Sequence[Any]) -> None:
    """Draws robust against clean accuracy of workdirs whose configs differ in one key, in the order of its values."""
    shared = _shared(reports)
    order = sorted(range(len(values)), key=values.__getitem__) if all(map(_is_number, values)) else range(len(values))
    runs = [list(reports.values())[i] for i in order]
    picture = io.BytesIO()
    curves.trade_off(
        [run["clean"]["accuracy"] for run in runs],
        {_drawn(f"{name}: {_threat(same[0])}"): [same[i]["accuracy"] for i in order] for name, same in shared.items()},
        [f"{values[i]:g}" if _is_number(values[i]) else _drawn(str(values[i])[:100]) for i in order],
        picture,
        title=_drawn(f"{key}, n = {runs[0]['clean']['n']}"),
    )
    write_atomically(Path(next(iter(reports))) / "trade_off.png", picture.getvalue())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shared(reports: Reports) -> dict[str, list[Mapping[str, Any]]]:
    """The attacks that all workdirs were evaluated with in the same way: name -> one entry per workdir."""
    first, *others = [r["attacks"] for r in reports.values()]
    return {
        name: [attack, *(other[name] for other in others)]
        for name, attack in first.items()
        if all(name in other and _alike(other[name], attack) for other in others)
    }


def show(reports: Reports, written: bool = True) -> None:
    """Prints a table with a row per attack and a column per workdir, and below it what casts doubt on the numbers."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_table(reports))
    for label, (folder, report) in zip(_labels(reports), reports.items(), strict=True):
        if attacks := report["attacks"].values():
            size, excess = (max(float(a["largest"][k]) for a in attacks) for k in ("size", "excess"))
            held = f"‖δ‖ <= {size:.5g} x the radius; images within {excess:.1g} of T(x, δ) in [0, 1]"
            console.print(f"{label}: {held}", markup=False)
        for warning in report["warnings"]:
            console.print(printable(f"Warning, {label}: {warning}"), style="yellow", markup=False)
        if written:
            place = folder_of(folder, report["name"]) if "name" in report else folder
            console.print(printable(f"Written to {place}"), markup=False, soft_wrap=True)


def _table(reports: Reports) -> Table:
    """Accuracies with their intervals: a row per attack, a column per workdir."""
    sizes = sorted({report["clean"]["n"] for report in reports.values()})
    split = next(iter(reports.values())).get("split")
    where = f" on the {split} split" if split else ""
    table = Table(title=f"Accuracy{where}, n = {' and '.join(map(str, sizes))}, 95% intervals")
    for column in ("attack", "threat", "effort"):
        table.add_column(column)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for label, report in zip(_labels(reports), reports.values(), strict=True):
        table.add_column(Text(label), justify="right")
        entries: list[tuple[tuple[str, ...], Any]] = [(("clean", "", ""), report["clean"])]
        entries += [((n, _threat(a), _effort(a)), a) for n, a in report["attacks"].items()]
        if len(report["attacks"]) > 1:
            entries += [(("worst case", "any of them", ""), report["worst_case"])]
        for row, entry in entries:
            low, high = entry["interval"]
            rows.setdefault(row, {})[label] = f"{100 * entry['accuracy']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    # Each workdir may have other attacks: the worst case stays last.
    for row in sorted(rows, key=lambda row: row[0] == "worst case"):
        cells = (*row, *(rows[row].get(label, "") for label in _labels(reports)))
        table.add_row(*(Text(printable(cell)) for cell in cells))  # names are no markup
    return table


def _drawn(text: str) -> str:
    """Text for a picture, in which matplotlib finds no formula."""
    return printable(text).replace("$", r"\$")


def _file(kind: str, name: str) -> str:
    return f"{kind}_{file_name(name)}.png"


def _labels(folders: Iterable[str]) -> list[str]:
    """The names of the folders if all differ, else their whole paths."""
    folders = list(folders)
    names = [printable(Path(folder).name) for folder in folders]
    folders = list(map(printable, folders))
    return names if len(set(names)) == len(names) else folders


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("threat", "settings"))


def _space(attack: Mapping[str, Any]) -> str:
    threat = attack["threat"]
    norm = threat["norm"]
    return f"{threat['perturbation']} {norm if isinstance(norm, (str, float)) else tuple(norm)}"


def _threat(attack: Mapping[str, Any]) -> str:
    """The threat model in words, "flow linf 0.155 px"."""
    radius = attack["threat"]["radius"]
    text = f"{radius:.4g}" if isinstance(radius, (int, float)) else str(radius)
    return f"{_space(attack)} {text} {attack['threat'].get('unit', '')}".rstrip()


def _effort(attack: Mapping[str, Any]) -> str:
    """The attack's effort, "pgd, 20 steps × 3 restarts", and the model that it was made on if that is another."""
    settings = attack["settings"]
    steps = f", {settings['steps']} steps" if "steps" in settings else ""
    restarts = f" × {settings['restarts']} restarts" if settings.get("restarts", 1) != 1 else ""
    source = f", made on {settings['source']}" if "source" in settings else ""
    left = ", on what was left" if attack.get("after") else ""
    return f"{settings['attack']}{steps}{restarts}{source}{left}"
