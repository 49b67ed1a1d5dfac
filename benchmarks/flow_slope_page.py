"""Puts the numbers of docs/results/flow_slope.json into docs/flow_slope.md and draws docs/flow_slope_accuracy.png.

python benchmarks/flow_slope_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robust_jax.evaluation.statistics import wilson_interval

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- {} -->\n", "<!-- end -->\n"
TICKS = (0.1, 0.25, 0.5, 1, 2)
COLORS = {"derivative": "#c44e52", "slope": "#2a6fbb"}
COLUMNS = (
    "ball", "pixels", "left, slope", "left, derivative", "left, Square", "both", "slope alone", "derivative alone",
    "interval",
)  # fmt: skip


def cases(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Run, norm, pixels and counts of every case."""
    for name, case in found["cases"].items():
        run, norm, pixels = name.split("/")
        yield run, norm, pixels, case


def table(found: Mapping[str, Any], run: str) -> str:
    """The cases of one run; accuracies and the interval in per cent, the others are numbers of images."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for name, norm, pixels, case in cases(found):
        if name == run:
            left = (f"{100 * case['left'][way]:.1f}" if way in case["left"] else "" for way in
                    ("slope", "derivative", "square"))  # fmt: skip
            low, high = (f"{100 * end:.1f}" for end in case["derivative_only_interval"])
            counts = (case["both"], case["slope_only"], case["derivative_only"])
            lines.append([norm, pixels, *left, *map(str, counts), f"{low} to {high}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def summary(found: Mapping[str, Any]) -> str:
    """The counts of each norm, over all runs and radii."""
    head = ("ball", "pairs of image and radius", "fall to both", "to the slope alone", "to the derivative alone",
            "to the derivative, but not from other starts", "share that falls to the derivative alone, %")  # fmt: skip
    lines = [list(head), ["---"] * len(head)]
    for norm in dict.fromkeys(norm for _, norm, _, _ in cases(found)):
        of_norm = [case for _, other, _, case in cases(found) if other == norm]
        total = {key: sum(case[key] for case in of_norm)
                 for key in ("images", "both", "slope_only", "derivative_only")}  # fmt: skip
        again = [case["derivative_not_again"] for case in of_norm if "derivative_not_again" in case]
        chance = str(sum(again)) if len(again) == len(of_norm) else ""
        low, high = wilson_interval(total["derivative_only"], total["images"])
        share = total["derivative_only"] / total["images"]
        within = f"{100 * share:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        lines.append([norm, *map(str, total.values()), chance, within])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def filled(page: str) -> str:
    """The page with its tables, each between two comments."""
    found = json.loads((DOCS / "results" / "flow_slope.json").read_text())
    runs = dict.fromkeys(run for run, *_ in cases(found))
    tables = {"summary": summary(found)} | {run: table(found, run) for run in runs}
    for name, text in tables.items():
        before, mark, rest = page.partition(START.format(name))
        if mark:
            _, end, after = rest.partition(END)
            page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy under both attacks against the radius: a row of pictures for each run, a column for each norm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs, norms = (list(dict.fromkeys(case[i] for case in cases(found))) for i in (0, 1))
    size = (2.6 * len(norms), 2.4 * len(runs))
    figure, grid = plt.subplots(len(runs), len(norms), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for run, row in zip(runs, grid, strict=True):
        for norm, axes in zip(norms, row, strict=True):
            here = [(float(p), case["left"]) for r, n, p, case in cases(found) if (r, n) == (run, norm)]
            axes.set_visible(bool(here))
            for way, color in COLORS.items():
                radii, accuracies = [p for p, _ in here], [100 * left[way] for _, left in here]
                axes.plot(radii, accuracies, "o-", color=color, ms=3, label=way)
            axes.set(xscale="log", title=f"{run.replace('_', ', ')}: {norm}", xlabel="pixels", ylim=(-3, 103))
            axes.set_xticks(TICKS, [f"{pixels:g}" for pixels in TICKS])
            axes.minorticks_off()
            axes.title.set_fontsize(9)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("accuracy under PGD, %")
    grid[0, -1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(json.loads((DOCS / "results" / "flow_slope.json").read_text()), DOCS / "flow_slope_accuracy.png")
    PAGE = DOCS / "flow_slope.md"
    PAGE.write_text(filled(PAGE.read_text()))
