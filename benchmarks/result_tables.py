"""Tables from the numbers of reproduce.py: `python benchmarks/result_tables.py docs/results/TABLE_SIZE.json ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from robust_jax.evaluation.statistics import wilson_interval

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def rendered(path: Path) -> str:
    """One table as Markdown: accuracies in per cent, and below it what they are and where they come from."""
    measured = json.loads(path.read_text())
    columns, worst = measured["columns"], measured["worst"]
    heads = ["training", "clean", *(f"`{column}`" for column in columns), "worst flow", "minutes"]
    lines = [f"**{measured['title']}**", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in measured["rows"].values():
        seeds = list(row["seeds"].values())
        cells = [_cell([seed["evaluation"]["clean"] for seed in seeds])]
        cells += [_cell([seed["evaluation"]["attacks"][column] for seed in seeds]) for column in columns]
        cells.append(_cell([_worst(seed, worst) for seed in seeds]))
        minutes = np.mean([seed["training"]["seconds"] for seed in seeds]) / 60
        lines.append(f"| {row['label']} | " + " | ".join(cells) + f" | {minutes:.3g} |")
    return "\n".join([*lines, "", *_notes(path, measured)])


def _worst(seed: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The accuracy under all of these attacks, per image the worst."""
    n = seed["evaluation"]["clean"]["n"]
    robust = n - len(set().union(*(seed["broken"][column] for column in columns)))
    return {"accuracy": robust / n, "interval": wilson_interval(robust, n)}


def _cell(measured: list[Mapping[str, Any]]) -> str:
    """One seed: the accuracy with its interval; several: mean and standard deviation over them."""
    accuracies = [100 * m["accuracy"] for m in measured]
    if len(measured) > 1:
        return f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    low, high = (100 * end for end in measured[0]["interval"])
    return f"{accuracies[0]:.1f} [{low:.1f}, {high:.1f}]"


def _notes(path: Path, measured: Mapping[str, Any]) -> list[str]:
    """What the numbers are: images, seeds, attacks, paired tests, warnings, and where they come from."""
    rows = measured["rows"]
    runs = [run for row in rows.values() for run in row["seeds"].values()]
    report = runs[0]["evaluation"]

    def each(values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    images, seeds = (
        each(run["evaluation"]["clean"]["n"] for run in runs),
        each(s for r in rows.values() for s in r["seeds"]),
    )
    notes = [
        f"Accuracy in per cent on the first {images} test images, seeds {seeds}: with 95% Wilson intervals, or mean ± "
        f"standard deviation over the seeds. The checkpoint is the best on clean validation images. *Worst flow*: per "
        f"image the worst of {', '.join(f'`{column}`' for column in measured['worst'])}. *Minutes* are of training. "
        f"Measured on {each(run['hardware'] for run in runs)}, "
        f"jax {each(run['evaluation']['versions']['jax'] for run in runs)}, "
        f"revision {each(run['revision'] for run in runs)}. All numbers, with configs and commands: {path.name}.",
        "",
        *(f"- `{column}`: {_attack(report['attacks'][column])}" for column in measured["columns"]),
        "",
    ]  # fmt: skip
    if compared := _compared(rows, measured["baseline"], measured["columns"]):
        only = (
            f"Images that only this row (+), or only *{measured['baseline']}* (−), classifies correctly, with p of the "
        )
        notes += [f"{only}exact McNemar test, not corrected for the number of tests:", "", *compared, ""]  # fmt: skip
    warned = {f"- {row['label']}, seed {s}: {w}" for row in rows.values() for s, run in row["seeds"].items()
              for w in run["evaluation"]["warnings"]}  # fmt: skip
    return notes + (["Warnings:", "", *sorted(warned), ""] if warned else [])


def _attack(attack: Mapping[str, Any]) -> str:
    threat, settings = attack["threat"], dict(attack["settings"])
    name = settings.pop("attack")
    options = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items())
    ball = f"{threat['perturbation']}, {threat['norm']}, radius {threat['radius']} {threat.get('unit', '')}".rstrip()
    return f"{name} ({options}); {ball}"


def _compared(rows: Mapping[str, Any], baseline: str, columns: Sequence[str]) -> list[str]:
    """A line per other row and seed, on the images that both runs were attacked on."""
    lines = []
    for name, row in rows.items() if baseline in rows else ():
        for seed in row["seeds"].keys() & rows[baseline]["seeds"].keys() if name != baseline else ():
            cells = []
            for column in columns:
                ours, theirs = (set(r["seeds"][seed]["broken"][column]) for r in (row, rows[baseline]))
                plus, minus = len(theirs - ours), len(ours - theirs)
                p = binomtest(plus, plus + minus).pvalue if plus + minus else 1.0
                cells.append(f"`{column}` +{plus} −{minus} (p {'< 1e-4' if p < 1e-4 else f'= {p:.2g}'})")
            lines.append(f"- {row['label']}, seed {seed}: " + ", ".join(cells))
    return lines


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(rendered(Path(argument)), end="\n\n")
