"""Evaluations as tables on screen, and their attacks in words."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robust_jax.attacks import ATTACKS
from robust_jax.files import plain, printable

Reports = Mapping[str, Mapping[str, Any]]
"""Workdir -> the content of the evaluation.json of one of its evaluations."""
Row = tuple[str, str, str]
"""Attack, threat model and effort in words."""
Column = TypeVar("Column")

MOST_OTHERS = 20  # lines about other evaluations


def show(reports: Reports, written: Iterable[Path] = ()) -> None:
    """Prints a table with a row per attack and a column per workdir, and below it what casts doubt on the numbers.

    Workdirs that do not fit beside each other are shared out among several tables.

    Args:
      reports: workdir -> report.
      written: the folders that hold their files, in the same order.
    """
    screen = console()
    for table in _tables(reports, screen):
        screen.print(table)
    held = {label: _held(report) for label, report in zip(labels_of(reports), reports.values(), strict=True)}
    if len(set(held.values())) == 1:
        held = {"all" if len(held) > 1 else label: told for label, told in list(held.items())[:1]}
    for label, told in held.items():
        if told:
            screen.print(f"{label}: {told}", markup=False)
    for label, report in zip(labels_of(reports), reports.values(), strict=True):
        for warning in report["warnings"]:
            screen.print(printable(f"Warning, {label}: {warning}"), style="yellow", markup=False)
    for folder in written:
        screen.print(printable(f"Written to {folder}"), markup=False, soft_wrap=True)


def _held(report: Mapping[str, Any]) -> str:
    """How far the attacks of a report went, "" without attacks."""
    attacks = report["attacks"].values()
    if not attacks:
        return ""
    size, excess = (max(float(attack["largest"][key]) for attack in attacks) for key in ("size", "excess"))
    return f"checked: ‖δ‖ is at most {size:.5g} × the radius, and images differ from T(x, δ) in [0, 1] by {excess:.1g}"


def show_stored(held: Mapping[str, Reports], besides: bool = False) -> None:
    """Prints a line per evaluation of workdirs: name, number of examples, clean accuracy, worst case.

    Args:
      held: workdir -> name of an evaluation -> report.
      besides: whether a table was printed before, of other evaluations.
    """
    screen = console()
    for label, reports in zip(labels_of(held), held.values(), strict=True):
        if not reports and not besides:
            screen.print(f"{label} holds no evaluation.", markup=False)
        if not reports:
            continue
        screen.print(f"{label} also holds:" if besides else f"{label} holds:", markup=False)
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(overflow="fold")
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True)
        shown = list(reports.items())[: MOST_OTHERS if besides else None]
        for name, report in shown:
            clean, worst = (f"{100 * report[k]['accuracy']:.1f}%" for k in ("clean", "worst_case"))
            under = f"worst case {worst}" if report["attacks"] else "no attack"
            row = (name, f"n = {report['clean']['n']}", f"clean {clean}", under)
            table.add_row(*(Text(printable(cell)) for cell in row))
        screen.print(table)
        if left := len(reports) - len(shown):
            screen.print(f"  and {left} more: robust-jax evaluate WORKDIR --list", markup=False)


def console() -> Console:
    """What tables are printed to: as wide as the terminal, or 120 columns."""
    return Console(width=None if sys.stdout.isatty() else 120)


ALIKE = ("threat", "settings", "after", "source_weights")
"""What two attacks have in common that are compared."""


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two attacks of a name are one, in all that `ALIKE` names."""
    return all(one.get(key) == other.get(key) for key in ALIKE)


def images_of(report: Mapping[str, Any]) -> tuple[Any, ...]:
    """What says of which images an evaluation is: their split, number and checksum, as far as it says them."""
    identity = report.get("identity")
    checksum = str((identity if isinstance(identity, Mapping) else report).get("examples", ""))
    return str(report.get("split") or ""), report["clean"]["n"], checksum


def rows_of(reports: Reports) -> dict[Row, dict[str, Mapping[str, Any]]]:
    """The rows of the table: attack, threat model and effort in words -> label of the workdir -> accuracy."""
    return by_row(dict(zip(labels_of(reports), map(entries_of, reports.values()), strict=True)))


def entries_of(report: Mapping[str, Any]) -> list[tuple[Row, Mapping[str, Any]]]:
    """The rows of one evaluation, each with its accuracy: clean first, the worst case of several attacks last."""
    attacks = report["attacks"]
    found: list[tuple[Row, Mapping[str, Any]]] = [(("clean", "", ""), report["clean"])]
    found += [((name, threat_of(attack), effort_of(attack)), attack) for name, attack in attacks.items()]
    return found + [(("worst case", "any of them", ""), report["worst_case"])] * (len(attacks) > 1)


def by_row(columns: Mapping[Column, list[tuple[Row, Mapping[str, Any]]]]) -> dict[Row, dict[Column, Mapping[str, Any]]]:
    """The entries of several evaluations: row -> column -> accuracy, where the column has the row."""
    rows: dict[Row, dict[Column, Mapping[str, Any]]] = {}
    for column, entries in columns.items():
        for row, entry in entries:
            rows.setdefault(row, {})[column] = entry
    found = rows if len({_attacks(entries) for entries in columns.values()}) < 2 else _by_attacks(rows, columns)
    # Each column may have other attacks: the worst case stays last.
    return {row: found[row] for row in sorted(found, key=lambda row: row[0] == "worst case")}


def _attacks(entries: Iterable[tuple[Row, Any]]) -> tuple[Row, ...]:
    """The attacks that a worst case is of."""
    return tuple(row for row, _ in entries if row[0] not in ("clean", "worst case"))


def _by_attacks(
    rows: Mapping[Row, dict[Column, Mapping[str, Any]]], columns: Mapping[Column, list[tuple[Row, Mapping[str, Any]]]]
) -> dict[Row, dict[Column, Mapping[str, Any]]]:
    """The rows, with one of the worst case for each set of attacks that it is of: these do not compare."""
    found = {row: entries for row, entries in rows.items() if row[0] != "worst case"}
    for row in [row for row in rows if row[0] == "worst case"]:
        for column, entry in rows[row].items():
            names = ", ".join(f"{name} ({threat})" for name, threat, _ in _attacks(columns[column]))
            found.setdefault((row[0], f"any of {names}", ""), {})[column] = entry
    return found


def _tables(reports: Reports, console: Console) -> list[Table]:
    """The fewest tables in which no accuracy is broken, the workdirs shared out among them."""
    most = console.options.update(max_width=10_000)
    rows, title, headers = rows_of(reports), _title(reports), _headers(reports)
    whole = _table(headers, rows, title)
    if whole.__rich_measure__(console, most).maximum <= console.width:
        return [whole]
    found: list[Table] = []
    for count in range(1, len(headers) + 1):
        each = math.ceil(len(headers) / count)
        groups = [dict(list(headers.items())[i : i + each]) for i in range(0, len(headers), each)]
        found = [_table(group, rows, "" if i else title, "\n") for i, group in enumerate(groups)]
        if all(table.__rich_measure__(console, most).minimum <= console.width for table in found):
            break
    return found


def _title(reports: Reports) -> str:
    splits = " and ".join(dict.fromkeys(report["split"] for report in reports.values() if report.get("split")))
    sizes = " and ".join(map(str, sorted({report["clean"]["n"] for report in reports.values()})))
    return f"Accuracy{splits and f' on the {splits} split'}, n = {sizes}, 95% intervals"


def _headers(reports: Reports) -> dict[str, str]:
    """Label of a workdir -> the head of its column, with the images where these are not the same in all."""
    images = [f"{report.get('split', '')} split, n = {report['clean']['n']}" for report in reports.values()]
    labels = labels_of(reports)
    own = [f"\n{printable(of)}" for of in images] if len(set(images)) > 1 else [""] * len(images)
    return {label: label + more for label, more in zip(labels, own, strict=True)}


def _table(
    headers: Mapping[str, str], rows: Mapping[Row, Mapping[str, Any]], title: str, before_interval: str = " "
) -> Table:
    """Accuracies with their intervals: a column per workdir, a row per attack that one of them has."""
    table = Table(title=title)
    for column in ("attack", "threat", "effort"):
        table.add_column(column, overflow="fold")
    for label, header in headers.items():
        cells = [_accuracy(entries[label], before_interval) for entries in rows.values() if label in entries]
        width = max(len(line) for cell in cells for line in cell.splitlines())
        table.add_column(Text(header), justify="right", overflow="fold", min_width=width)
    for row, entries in rows.items():
        if entries.keys() & headers.keys():
            cells = [_accuracy(entries[label], before_interval) if label in entries else "" for label in headers]
            table.add_row(*(Text(printable(cell)) for cell in (*row, *cells)))  # names are no markup
    return table


def _accuracy(entry: Mapping[str, Any], before_interval: str) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f}%{before_interval}[{100 * low:.1f}, {100 * high:.1f}]"


def labels_of(folders: Iterable[str]) -> list[str]:
    """The names of the folders if all differ, else their whole paths."""
    folders = list(folders)
    names = [printable(Path(folder).absolute().name) for folder in folders]
    folders = list(map(printable, folders))
    return names if len(set(names)) == len(names) else folders


def space_of(attack: Mapping[str, Any]) -> str:
    """The perturbation and its norm in words."""
    norm = attack["threat"]["norm"]
    norms = [f"l{p:g}" if isinstance(p, int | float) else p for p in (norm if isinstance(norm, list) else [norm])]
    return f"{attack['threat']['perturbation']} {', '.join(map(str, norms if len(set(norms)) > 1 else norms[:1]))}"


def threat_of(attack: Mapping[str, Any]) -> str:
    """The threat model in words, "flow linf 0.155 px"."""
    radius = attack["threat"]["radius"]
    radii = radius if isinstance(radius, list) and all(isinstance(r, int | float) for r in radius) else [radius]
    text = ", ".join(f"{r:.4g}" if isinstance(r, int | float) else str(r) for r in radii)
    return f"{space_of(attack)} {text} {attack['threat'].get('unit', '')}".rstrip()


def effort_of(attack: Mapping[str, Any]) -> str:
    """The attack's effort, "pgd, 20 steps × 3 restarts, loss=margin", and the model that it was made on if another."""
    settings = attack["settings"]
    steps = "".join(f", {settings[key]} {key}" for key in ("steps", "queries") if settings.get(key) is not None)
    restarts = f" × {settings['restarts']} restarts" if settings.get("restarts", 1) != 1 else ""
    weights = f" ({attack['source_weights']})" if "source_weights" in attack else ""
    source = f", made on {settings['source']}{weights}" if "source" in settings else ""
    return f"{settings['attack']}{steps}{restarts}{_options(settings)}{source}{left_by(attack)}"


def left_by(attack: Mapping[str, Any]) -> str:
    """Which attacks before it left the images that an attack was given; nothing if these were all."""
    return f", on what {', '.join(map(str, attack['after']))} left" if attack.get("after") else ""


def _options(settings: Mapping[str, Any]) -> str:
    """The options that are not by default, besides those that `effort_of` has and one that changes no result."""
    told = {"attack", "source", "steps", "queries", "restarts", "early_stop"}
    other = {k: v for k, v in settings.items() if k not in told}
    if (function := ATTACKS.get(settings["attack"])) is not None:
        other = not_by_default(function, other)
    return "".join(f", {k}={v}" for k, v in other.items() if isinstance(v, str | int | float | list))


def not_by_default(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, as a report has them, that are not the defaults of a function."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: plain(p.default) for p in parameters if p.default is not p.empty}
    return {k: v for k, v in options.items() if k not in defaults or defaults[k] != v}
