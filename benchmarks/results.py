"""Tables from the numbers of reproduce.py: `python benchmarks/results.py docs/results/TABLE_SIZE.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def rendered(path: Path) -> str:
    """One table as Markdown: accuracies in per cent, with what they are, from which file, by which command."""
    measured = json.loads(path.read_text())
    rows = measured["rows"]
    some = next(iter(next(iter(rows.values()))["seeds"].values()))["evaluation"]
    columns = list(some["attacks"])
    lines = ["| training | clean | " + " | ".join(f"`{c}`" for c in columns) + " | worst case | minutes |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for row, entry in rows.items():
        reports = [seed["evaluation"] for seed in entry["seeds"].values()]
        cells = [_cell([r["clean"] for r in reports])]
        cells += [_cell([r["attacks"][c] for r in reports]) for c in columns]
        cells.append(_cell([r["worst_case"] for r in reports]))
        minutes = np.mean([seed["training"]["seconds"] for seed in entry["seeds"].values()]) / 60
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {minutes:.0f} |")
    return "\n".join([*lines, "", _notes(path, measured, some)])


def _cell(measured: list[Mapping[str, Any]]) -> str:
    """One seed: the accuracy with its interval; several: mean and standard deviation over them."""
    accuracies = [100 * m["accuracy"] for m in measured]
    if len(measured) > 1:
        return f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    low, high = (100 * end for end in measured[0]["interval"])
    return f"{accuracies[0]:.1f} [{low:.1f}, {high:.1f}]"


def _notes(path: Path, measured: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What the numbers are: images, seeds, attacks, paired tests, and where they come from."""
    rows = measured["rows"]
    seeds = sorted({seed for entry in rows.values() for seed in entry["seeds"]}, key=int)
    runs = [run for entry in rows.values() for run in entry["seeds"].values()]
    spread = "mean ± standard deviation over the seeds" if len(seeds) > 1 else "with 95% Wilson intervals"
    machines = ", ".join(sorted({run["hardware"] for run in runs}))
    revisions = ", ".join(sorted({run["revision"] for run in runs}))
    lines = [
        f"Accuracy in per cent, {spread}; the first {report['clean']['n']} test images; seeds {', '.join(seeds)}. "
        f"Minutes are of training, on {machines}, jax {report['versions']['jax']}; revision {revisions}. "
        f"Numbers: [results/{path.name}](results/{path.name}); each row has its command there, "
        f"`{next(iter(rows.values()))['command']}`.",
        "",
        *(f"- `{column}`: {_attack(attack)}" for column, attack in report["attacks"].items()),
    ]
    if compared := _compared(rows, measured["baseline"]):
        lines += [
            "",
            f"Image by image against *{measured['baseline']}*, over all seeds (exact McNemar test): " + compared,
        ]
    return "\n".join(lines)


def _attack(attack: Mapping[str, Any]) -> str:
    threat, settings = attack["threat"], dict(attack["settings"])
    options = ", ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items() if k != "attack"
    )
    ball = f"{threat['perturbation']}, {threat['norm']}, radius {threat['radius']} {threat.get('unit', '')}".rstrip()
    return f"{settings['attack']} ({options}); {ball}"


def _compared(rows: Mapping[str, Any], baseline: str) -> str:
    """For every other row and attack: the images that only one of the two resists, and the test's p."""
    if baseline not in rows:
        return ""
    parts = []
    for row, entry in rows.items():
        if row == baseline:
            continue
        cells = []
        for column in next(iter(entry["seeds"].values()))["broken"]:
            only = np.zeros(2, int)
            for seed, run in entry["seeds"].items():
                ours, theirs = (set(r["broken"][column]) for r in (run, rows[baseline]["seeds"][seed]))
                only += len(theirs - ours), len(ours - theirs)
            p = binomtest(int(only[0]), int(only.sum())).pvalue if only.sum() else 1.0
            cells.append(f"`{column}` +{only[0]} −{only[1]} (p {'< 1e-4' if p < 1e-4 else f'= {p:.2g}'})")
        parts.append(f"*{row}*: " + ", ".join(cells))
    return "; ".join(parts) + "."


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(rendered(Path(argument)), end="\n\n")
