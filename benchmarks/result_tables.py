"""Tables from the numbers of docs/results: `python benchmarks/result_tables.py [docs/results/NAME.json ...]`.

Without files it puts all tables into `PAGES`, each between the comments `<!-- NAME.json -->` and
`<!-- end of NAME.json -->`; `<!-- NAME.json rows=ROW,ROW -->` takes some rows of a table of reproduce.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import accuracy_tables
from measurements import markdown

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGES = tuple(RESULTS.parent / name for name in ("results.md", "methods.md", "attacks.md", "speed.md", "papers/fgr.md"))


def filled(page: str) -> str:
    """The page with the tables of the files that it names."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{rendered(RESULTS / match[2], match[3]).rstrip()}\n\n{match[4]}"

    return re.sub(r"(<!-- (\w+\.json)(?: rows=(\S+))? -->\n).*?(<!-- end of \2 -->)", table, page, flags=re.DOTALL)


def rendered(path: Path, rows: str | None = None) -> str:
    """The table of one file as Markdown, and below it what the numbers are and where they come from."""
    measured = json.loads(path.read_text())
    if rows:
        return accuracy_tables.excerpt(path, measured, rows.split(","))
    kinds = {
        "rows": accuracy_tables.whole,
        "tables": _measurements,
        "evaluations": _evaluations,
        "parity": _parity,
        "peers": _peers,
        "smallest": _smallest,
    }
    return next(render(path, measured) for key, render in kinds.items() if key in measured)


def _source(measured: Mapping[str, Any], path: Path) -> str:
    return f"On {measured['hardware']}, revision {measured['revision']}; {path.name}, from `{measured['command']}`."


def _versions(measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured["versions"].items())


def _measurements(path: Path, measured: Mapping[str, Any]) -> str:
    """The tables of one program that times or counts."""
    lines = [line for rows in measured["tables"].values() for line in (*markdown(rows), "")]
    return "\n".join([*lines, f"{_versions(measured)}. {_source(measured, path)}"])


def _evaluations(path: Path, measured: Mapping[str, Any]) -> str:
    """Evaluations as they are: a row per model, a column per attack."""
    reports = measured["evaluations"]
    columns = list(next(iter(reports.values()))["attacks"])
    heads = ["run", "clean", *(f"`{column}`" for column in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, report in reports.items():
        cells = [
            accuracy_tables.cell([one]) for one in (report["clean"], *(report["attacks"][column] for column in columns))
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    report = next(iter(reports.values()))
    attacks = [f"- `{column}`: {accuracy_tables.attack(report['attacks'][column])}" for column in columns]
    note = f"Accuracy in per cent on the first {report['clean']['n']} test images. {_source(measured, path)}"
    return "\n".join([*lines, "", note, "", *attacks])


def _parity(path: Path, measured: Mapping[str, Any]) -> str:
    """AutoAttack by parity.py, a line per network and ball: robust accuracies, then seconds, of the authors / ours."""
    rows = measured["parity"]
    names = ("apgd-ce", "apgd-t", "fab-t", "square")
    accuracies = _pairs(
        rows, (*names, "union"), lambda seeds: accuracy_tables.rate([seed["robust accuracy"] for seed in seeds])
    )
    seconds = _pairs(rows, names, lambda seeds: f"{np.mean([seed['cpu seconds'] for seed in seeds]):.0f}")
    sources = sorted({_source(found, path) for found in rows.values()})
    return "\n".join(["Robust accuracy in per cent:", "", *accuracies, "", "CPU seconds:", "", *seconds, "", *sources])


def _pairs(
    rows: Mapping[str, Any], names: Sequence[str], shown: Callable[[Collection[Mapping[str, float]]], str]
) -> list[str]:
    lines = ["| network, ball | images | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for row, found in rows.items():
        both = [[shown(found[library][name].values()) for library in ("authors", "robust_jax")] for name in names]
        lines.append(f"| {row} | {found['images']} | " + " | ".join(" / ".join(pair) for pair in both) + " |")
    return lines


def _peers(path: Path, measured: Mapping[str, Any]) -> str:
    """Attacks by peers.py, a table per network: an attack per line, a library per column, with the seconds."""
    lines = []
    for network, found in measured["peers"].items():
        libraries = list(dict.fromkeys(library for cells in found["attacks"].values() for library in cells))
        heads = [f"{network}; {found['images']} images", *libraries, "fastest peer / robust_jax"]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for attack, cells in found["attacks"].items():
            seconds = [cell["seconds"] for library, cell in cells.items() if library != "robust_jax"]
            ratio = f"{min(seconds) / cells['robust_jax']['seconds']:.1f}" if seconds else ""
            values = [_with_seconds(cells.get(library)) for library in libraries]
            lines.append(f"| {attack} | " + " | ".join(values) + f" | {ratio} |")
        lines += ["", f"{_versions(found)}. {_source(found, path)}", ""]
    return "\n".join(lines)


def _with_seconds(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    value = f"{found['robust accuracy']:.1f}" if "robust accuracy" in found else _median(found)
    return f"{value} ({found['seconds']:.1f} s)"


def _smallest(path: Path, measured: Mapping[str, Any]) -> str:
    """Median norms by minimal_norm.py, a table per norm: an attack per line, a network and a budget per column."""
    tables, lines = measured["smallest"], []
    for norm in dict.fromkeys(name.split()[-1] for name in tables):
        networks = {name.rpartition(" ")[0]: found for name, found in tables.items() if name.split()[-1] == norm}
        columns = list(dict.fromkeys(
            (network, budget) for network, found in networks.items() for at in found.values() for budget in at
        ))  # fmt: skip
        attacks = dict.fromkeys(attack for found in networks.values() for attack in found)
        heads = [norm, *(f"{network}, {int(budget):,}" for network, budget in columns)]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for attack in attacks:
            cells = [_median(networks[network].get(attack, {}).get(budget)) for network, budget in columns]
            name = f"`{attack}`" if not attack.startswith("peer ") else f"adversarial-library, `{attack[5:]}`"
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, f"Seed {measured['seed']}, {_versions(measured)}. {_source(measured, path)}"])


def _median(found: Mapping[str, Any] | None) -> str:
    """The median norm, and the percentage of images that are fooled unless it is 100."""
    if found is None:
        return ""
    median = "-" if found["median norm"] is None else f"{found['median norm']:.4g}"
    return median if found["success"] == 100 else f"{median} ({found['success']:.0f}%)"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(rendered(Path(argument)), end="\n\n")
    for page in () if sys.argv[1:] else PAGES:
        page.write_text(filled(page.read_text()))
