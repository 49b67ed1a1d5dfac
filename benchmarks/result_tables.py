"""Tables from the numbers of reproduce.py: `python benchmarks/result_tables.py [docs/results/TABLE_SIZE.json ...]`.

Without files it puts all tables into `PAGES`, each between the comments `<!-- TABLE_SIZE.json -->` and
`<!-- end of TABLE_SIZE.json -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from robust_jax.evaluation.statistics import wilson_interval

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGES = tuple(RESULTS.parent / name for name in ("results.md", "attacks.md"))


def filled(page: str) -> str:
    """The page with the tables of the files that it names."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{rendered(RESULTS / match[2]).rstrip()}\n\n{match[3]}"

    return re.sub(r"(<!-- (\w+\.json) -->\n).*?(<!-- end of \2 -->)", table, page, flags=re.DOTALL)


def rendered(path: Path) -> str:
    """The table of one file as Markdown, and below it what the numbers are and where they come from."""
    measured = json.loads(path.read_text())
    kinds = {
        "rows": _accuracies,
        "radii": _bounds,
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


def _bounds(path: Path, measured: Mapping[str, Any]) -> str:
    """The bounds of landscapes.py: a row per radius and model."""
    shares = ("within the flow bound", "within the image bound")
    medians = ("median change", "median flow bound", "median image bound", "median forward bound")
    rest = ("median of image / flow", "rank correlation of change and flow bound",
            "rank correlation of change and image bound")  # fmt: skip
    heads = ["radius, px", "training", *(f"{name}, %" for name in shares), *medians, *rest]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for radius, models in measured["radii"].items():
        for name, found in models.items():
            cells = [f"{100 * found[key]:.0f}" for key in shares] + [f"{found[key]:.3g}" for key in (*medians, *rest)]
            lines.append(f"| {radius} | {name} | " + " | ".join(cells) + " |")
    note = (
        f"{measured['images']} test images that all models classify correctly; the change is that under "
        f"{measured['attack']}. {_source(measured, path)}"
    )
    return "\n".join([*lines, "", note])


def _evaluations(path: Path, measured: Mapping[str, Any]) -> str:
    """Evaluations as they are: a row per model, a column per attack."""
    reports = measured["evaluations"]
    columns = list(next(iter(reports.values()))["attacks"])
    heads = ["run", "clean", *(f"`{column}`" for column in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, report in reports.items():
        cells = [_cell([one]) for one in (report["clean"], *(report["attacks"][column] for column in columns))]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    report = next(iter(reports.values()))
    attacks = [f"- `{column}`: {_attack(report['attacks'][column])}" for column in columns]
    note = f"Accuracy in per cent on the first {report['clean']['n']} test images. {_source(measured, path)}"
    return "\n".join([*lines, "", note, "", *attacks])


def _parity(path: Path, measured: Mapping[str, Any]) -> str:
    """AutoAttack by parity.py, a line per network and ball: robust accuracies, then seconds, of the authors / ours."""
    rows = measured["parity"]
    names = ("apgd-ce", "apgd-t", "fab-t", "square")
    accuracies = _pairs(rows, (*names, "union"), lambda seeds: _rate([seed["robust accuracy"] for seed in seeds]))
    seconds = _pairs(rows, names, lambda seeds: f"{np.mean([seed['cpu seconds'] for seed in seeds]):.0f}")
    sources = sorted({_source(found, path) for found in rows.values()})
    return "\n".join(["Robust accuracy in per cent:", "", *accuracies, "", "CPU seconds:", "", *seconds, "", *sources])


def _pairs(
    rows: Mapping[str, Any], names: Sequence[str], cell: Callable[[Collection[Mapping[str, float]]], str]
) -> list[str]:
    lines = ["| network, ball | images | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for row, found in rows.items():
        both = [[cell(found[library][name].values()) for library in ("authors", "robust_jax")] for name in names]
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
    commands = "; ".join(f"`{command}`" for command in measured["commands"])
    note = f"Seed {measured['seed']}, {_versions(measured)}; on {measured['hardware']}, "
    note += f"revision {measured['revision']}; {path.name}"
    return "\n".join([*lines, f"{note}, from {commands}."])


def _median(found: Mapping[str, Any] | None) -> str:
    """The median norm, and the percentage of images that are fooled unless it is 100."""
    if found is None:
        return ""
    median = "-" if found["median norm"] is None else f"{found['median norm']:.4g}"
    return median if found["success"] == 100 else f"{median} ({found['success']:.0f}%)"


def _accuracies(path: Path, measured: Mapping[str, Any]) -> str:
    """A table of reproduce.py: accuracies in per cent, a row per way of training."""
    columns, worst = measured["columns"], measured["worst"]
    universal = [f"{name}, {which}" for name in measured["universal"] for which in ("targeted ↓", "untargeted")]
    heads = ["training", "clean", *(f"`{column}`" for column in columns), *worst, *universal, "minutes"]
    lines = [f"**{measured['title']}**", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in measured["rows"].values():
        seeds = list(row["seeds"].values())
        cells = [_cell([seed["evaluation"]["clean"] for seed in seeds])]
        cells += [_cell([seed["evaluation"]["attacks"][column] for seed in seeds]) for column in columns]
        cells += [_cell([_worst(seed, several) for seed in seeds]) for several in worst.values()]
        cells += [
            _rate([seed["universal"][name][which] for seed in seeds])
            for name in measured["universal"]
            for which in ("targeted universal success", "untargeted universal")
        ]
        minutes = np.mean([seed["training"]["seconds"] for seed in seeds]) / 60
        lines.append(f"| {row['label']} | " + " | ".join(cells) + f" | {minutes:.3g} |")
    return "\n".join([*lines, "", *_notes(path, measured)])


def _worst(seed: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The accuracy under all of these attacks, per image the worst."""
    n = seed["evaluation"]["clean"]["n"]
    robust = n - len(set().union(*(seed["broken"][column] for column in columns)))
    return {"accuracy": robust / n, "interval": wilson_interval(robust, n)}


def _rate(rates: list[float]) -> str:
    """A percentage; of several seeds mean and standard deviation."""
    spread = f" ± {100 * np.std(rates, ddof=1):.1f}" if len(rates) > 1 else ""
    return f"{100 * np.mean(rates):.1f}{spread}"


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
    by = each(run["settings"]["select_by"] for run in runs)
    selected = "clean" if by == "clean" else f"attacked (`{by}`)"
    notes = [
        f"Accuracy in per cent on the first {images} test images, seeds {seeds}: with 95% Wilson intervals, or mean ± "
        f"standard deviation over the seeds. The checkpoint is the best on {selected} validation images. *Minutes* are "
        f"of training. "
        f"Measured on {each(run['hardware'] for run in runs)}, "
        f"jax {each(run['evaluation']['versions']['jax'] for run in runs)}, "
        f"revision {each(run['revision'] for run in runs)}. All numbers, with configs and commands: {path.name}.",
        "",
        *(f"- `{column}`: {_attack(report['attacks'][column])}" for column in measured["columns"]),
        *(f"- {name}: per image the worst of {', '.join(f'`{c}`' for c in several)}"
          for name, several in measured["worst"].items()),
        *(f"- {name}: {_universal(ball)}" for name, ball in measured["universal"].items()),
        "",
        *_choices(rows),
    ]  # fmt: skip
    if compared := [line for pair in measured["pairs"] for line in _compared(measured, *pair)]:
        notes += ["Images that only one of two rows classifies correctly, the first (+) or the second (−), with p of "
                  "the exact McNemar test, not corrected for the number of tests:", "", *compared, ""]  # fmt: skip
    warned = {f"- {row['label']}, seed {s}: {w}" for row in rows.values() for s, run in row["seeds"].items()
              for w in run["evaluation"]["warnings"]}  # fmt: skip
    return notes + (["Warnings:", "", *sorted(warned), ""] if warned else [])


def _attack(attack: Mapping[str, Any]) -> str:
    threat, settings = attack["threat"], dict(attack["settings"])
    name = settings.pop("attack")
    options = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items())
    ball = f"{threat['perturbation']}, {threat['norm']}, radius {threat['radius']} {threat.get('unit', '')}".rstrip()
    return f"{name} ({options}); {ball}"


def _universal(ball: Mapping[str, Any]) -> str:
    return (
        f"one δ for all images, {ball['perturbation']} linf {ball['radius']}, made from {ball['examples']} training "
        f"images: the images of other classes that it turns into its target, averaged over all targets, and the "
        f"accuracy under an untargeted one, on at most 1,000 test images"
    )


def _choices(rows: Mapping[str, Any]) -> list[str]:
    """How weights were chosen."""
    lines = []
    for row in rows.values():
        if choice := next(iter(row["seeds"].values())).get("choice"):
            tried = ", ".join(f"{100 * accuracy:.1f} at {value}" for value, accuracy in choice["tried"].items())
            lines.append(f"- {row['label']}: {choice['chosen']:g} ({tried}; needed {100 * choice['least']:.1f})")
    head = "Weights: the largest of those tried whose clean accuracy on validation images is as needed, or the last:"
    return [head, "", *lines, ""] if lines else []


def _compared(measured: Mapping[str, Any], name: str, baseline: str) -> list[str]:
    """A line per seed of two rows, on the images that both were attacked on."""
    rows, lines = measured["rows"], []
    if not {name, baseline} <= rows.keys():
        return []
    row, other = rows[name], rows[baseline]
    single = {column: [column] for column in measured["columns"]}
    for seed in sorted(row["seeds"].keys() & other["seeds"].keys(), key=int):
        cells = [
            _mcnemar(column, *(set().union(*(r["seeds"][seed]["broken"][c] for c in several)) for r in (row, other)))
            for column, several in (single | measured["worst"]).items()
        ]
        lines.append(f"- {row['label']} against {other['label']}, seed {seed}: " + ", ".join(cells))
    return lines


def _mcnemar(column: str, ours: set[int], theirs: set[int]) -> str:
    plus, minus = len(theirs - ours), len(ours - theirs)
    p = binomtest(plus, plus + minus).pvalue if plus + minus else 1.0
    return f"`{column}` +{plus} −{minus} (p {'< 1e-4' if p < 1e-4 else f'= {p:.2g}'})"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(rendered(Path(argument)), end="\n\n")
    for page in () if sys.argv[1:] else PAGES:
        page.write_text(filled(page.read_text()))
