"""The tables of reproduce.py as Markdown: accuracies in per cent, a row per way of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from origin import unpacked
from robust_jax.evaluation.paired import shown_p
from robust_jax.evaluation.statistics import mcnemar, wilson_interval
from table_files import compared

UNCHECKED = "Further signs of masked gradients{}, which take more attacks, were not looked for."


def whole(path: Path, measured: Mapping[str, Any]) -> str:
    """All rows, what the numbers are, paired tests, and where they come from."""
    measured = dict(measured) | {"rows": {name: _with_columns(row, measured) for name, row in measured["rows"].items()}}
    worst, universal = measured["worst"], measured["universal"]
    heads = [f"{name}, {which}" for name in universal for which in ("targeted ↓", "untargeted")]
    lines = [f"**{measured['title']}**", "", *_head([*_named(_shown(measured)), *worst, *heads, "minutes"])]
    for row in measured["rows"].values():
        seeds = list(row["seeds"].values())
        if not seeds:
            lines.append(f"| {_label(row)}" + " |" * lines[2].count("|"))
            continue
        cells = _cells(seeds, measured) + [
            rate([seed["universal"][name][which] for seed in seeds])
            for name in universal
            for which in ("targeted universal success", "untargeted universal")
        ]
        minutes = np.mean([seed["training"]["seconds"] for seed in seeds]) / 60
        lines.append(f"| {_label(row)} | " + " | ".join(cells) + f" | {minutes:.3g} |")
    return "\n".join([*lines, "", *_notes(path, measured)])


def excerpt(path: Path, measured: Mapping[str, Any], rows: Sequence[str]) -> str:
    """Some rows, their accuracies alone."""
    heads = [*_named(_shown(measured)), *measured["worst"]]
    lines = _lines(heads, [measured["rows"][name] for name in rows], lambda seeds: _cells(seeds, measured))
    return "\n".join([*lines, "", f"Accuracy in per cent; rows of {path.name}."])


def _cells(seeds: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[str]:
    """The accuracies of a row: clean, under the attacks that have a column, and under the worst of several."""
    worst = [cell([_worst(seed, several) for seed in seeds]) for several in measured["worst"].values()]
    return _attacked(seeds, _shown(measured)) + worst


def _each(rows: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """A table of rows under each of these attacks."""
    return _lines(
        _named(columns), [row for row in rows.values() if row["seeds"]], lambda seeds: _attacked(seeds, columns)
    )


def _lines(heads: Sequence[str], rows: Sequence[Any], cells: Callable[[list[Any]], list[str]]) -> list[str]:
    """A table with a line per row: its label, and the cells of its seeds."""
    found = [[_label(row), *cells(list(row["seeds"].values()))] for row in rows]
    return [*_head(heads), *("| " + " | ".join(line) + " |" for line in found)]


def _shown(measured: Mapping[str, Any]) -> list[str]:
    """The attacks that have a column: not those of which the worst is shown."""
    hidden = {column for several in measured["worst"].values() for column in several}
    return [column for column in measured["columns"] if column not in hidden]


def _with_columns(row: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The row with those of its runs that have all columns, of today's attacks: the others are older than one."""
    universal, today = set(measured["universal"]), measured.get("attacks", {})

    def is_complete(run: Mapping[str, Any]) -> bool:
        attacks = run["evaluation"]["attacks"]
        return (
            set(measured["columns"]) <= set(run["broken"])
            and universal <= set(run["universal"])
            and all(_is_of(attacks[name], attack) for name, attack in today.items())
        )

    return dict(row) | {"seeds": {seed: run for seed, run in row["seeds"].items() if is_complete(run)}}


def _is_of(measured: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    """Whether a measured attack is that of the table, as far as it says."""
    old, new = compared(measured), compared(today)
    return all(new.get(key) == value for key, value in old.items())


def _label(row: Mapping[str, Any]) -> str:
    """What is printed of a row, with the number of seeds that diverged: the others are better than all."""
    lost = len(row.get("diverged", {}))
    return row["label"] + (f" ({lost} of {lost + len(row['seeds'])} seeds diverged)" if lost else "")


def _head(heads: Sequence[str]) -> list[str]:
    return ["| training | clean | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]


def _named(columns: Sequence[str]) -> list[str]:
    return [f"`{column}`" for column in columns]


def _attacked(seeds: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    reports = [seed["evaluation"] for seed in seeds]
    return [cell([r["clean"] for r in reports]), *(cell([r["attacks"][column] for r in reports]) for column in columns)]


def _broken(seed: Mapping[str, Any], columns: Sequence[str]) -> np.ndarray:
    """Which images one of the attacks breaks."""
    return np.any([unpacked(seed["broken"][column], seed["evaluation"]["clean"]["n"]) for column in columns], 0)


def _worst(seed: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The accuracy under all of these attacks, per image the worst."""
    broken = _broken(seed, columns)
    robust = int((~broken).sum())
    return {"accuracy": robust / len(broken), "interval": wilson_interval(robust, len(broken))}


def rate(rates: Sequence[float]) -> str:
    """A percentage; of several seeds mean and standard deviation."""
    spread = f" ± {100 * np.std(rates, ddof=1):.1f}" if len(rates) > 1 else ""
    return f"{100 * np.mean(rates):.1f}{spread}"


def cell(measured: Sequence[Mapping[str, Any]]) -> str:
    """One seed: the accuracy with its interval; several: mean and standard deviation over them."""
    accuracies = [100 * m["accuracy"] for m in measured]
    if len(measured) > 1:
        return f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    low, high = (100 * end for end in measured[0]["interval"])
    return f"{accuracies[0]:.1f} [{low:.1f}, {high:.1f}]"


def _notes(path: Path, measured: Mapping[str, Any]) -> list[str]:
    """What the numbers are: images, seeds, where they come from; folded: attacks, weights, paired tests, warnings."""
    rows = measured["rows"]
    runs = [run for row in rows.values() for run in row["seeds"].values()]
    if not runs:
        return [f"Nothing is measured yet. All numbers, with configs and commands: {path.name}."]
    report = runs[0]["evaluation"]

    def each(values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    images, seeds = (
        each(run["evaluation"]["clean"]["n"] for run in runs),
        each(s for r in rows.values() for s in r["seeds"]),
    )
    # Of the code that measured, also later than the rest, and of that which trained.
    sources = [one for run in runs for one in (run, *run.get("later", {}).values())]
    revisions = [one["revision"] for one in (*sources, *(run.get("began") for run in runs)) if one]
    chosen_by = {run["settings"]["select_by"] for run in runs}
    by = " or ".join("clean" if one == "clean" else f"attacked (`{one}`)" for one in sorted(chosen_by))
    best = f"the best on {by} validation images"
    last = {run["settings"]["evaluation"]["checkpoint"] for run in runs} == {"latest"}
    counts = {len(row["seeds"]) > 1 for row in rows.values() if row["seeds"]}
    # Another version of jax draws and rounds otherwise, and so makes another network, as another seed does.
    one = "with 95% Wilson intervals, of the images alone: another seed, or version of jax, makes another network"
    spread = {False: one, True: "mean ± standard deviation over the seeds"}
    how = ", or ".join(spread[several] for several in sorted(counts))
    note = (
        f"Accuracy in per cent on the first {images} test images, seeds {seeds}: {how}. "
        f"The checkpoint is {'the last' if last else best}. *Minutes* are of training. "
        f"Measured on {each(one['hardware'] for one in sources)}, jax {each(filter(None, map(_jax, sources)))}, "
        f"revision {each(revisions)}. All numbers, with configs and commands: {path.name}."
    )
    attacks = [
        *(f"- `{column}`: {attack(report['attacks'][column])}" for column in measured["columns"]),
        *(f"- {name}: per image the worst of {', '.join(f'`{c}`' for c in several)}"
          for name, several in measured["worst"].items()),
        *(f"- {name}: {_universal(ball)}" for name, ball in measured["universal"].items()),
    ]  # fmt: skip
    warned = {f"- {row['label']}, seed {s}: {w}" for row in rows.values() for s, run in row["seeds"].items()
              for w in run["evaluation"]["warnings"]}  # fmt: skip
    return [
        note,
        *_folded("Accuracy under each attack", _each(rows, measured["columns"]) if measured["worst"] else []),
        *_folded("Attacks", attacks),
        *_folded("Weights", _choices(rows)),
        *_folded("Validation accuracy by epoch", _curves(rows, "validation")),
        *_folded(
            "Validation accuracy by epoch, under the attack that chooses the checkpoint", _curves(rows, "attacked")
        ),
        *_folded("Paired tests", _paired(measured)),
        *(["", "Warnings:", "", *sorted(warned)] if warned else []),
        *_unchecked(rows),
    ]


def _jax(source: Mapping[str, Any]) -> str:
    """The version of jax that measured a run, or later some of its columns; empty where it was not noted."""
    return str(source.get("versions", source.get("evaluation", {}).get("versions", {})).get("jax", ""))


def _unchecked(rows: Mapping[str, Any]) -> list[str]:
    """Which rows have a run whose further signs of masked gradients were not looked for."""
    lacking = [
        row["label"]
        for row in rows.values()
        if not all(run["settings"]["evaluation"]["checks"] for run in row["seeds"].values())
    ]
    of = "" if len(lacking) == sum(bool(row["seeds"]) for row in rows.values()) else f" of {', '.join(lacking)}"
    return ["", UNCHECKED.format(of)] if lacking else []


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Markdown that a reader opens; nothing if there is nothing to see."""
    return ["", "<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"] if lines else []


def attack(measured: Mapping[str, Any]) -> str:
    """An attack with its options, and its ball."""
    threat, settings = measured["threat"], dict(measured["settings"])
    name = settings.pop("attack")
    options = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items())
    ball = f"{threat['perturbation']}, {threat['norm']}, radius {threat['radius']} {threat.get('unit', '')}".rstrip()
    return f"{name} ({options}); {ball}"


def _universal(ball: Mapping[str, Any]) -> str:
    images = f"{ball['examples']} {ball.get('split', 'training')} images"
    made = f"{ball['perturbation']} linf {ball['radius']}, made in {ball.get('epochs', 20)} passes over {images}"
    return (
        f"one δ for all images, {made}: the images of other classes that it turns into its target, averaged over all "
        f"targets, and the accuracy under an untargeted one, on at most 1,000 test images"
    )


def _choices(rows: Mapping[str, Any]) -> list[str]:
    """How weights were chosen."""
    lines = []
    for row in rows.values():
        if choice := next(iter(row["seeds"].values()), {}).get("choice"):
            tried = ", ".join(f"{100 * accuracy:.1f} at {value}" for value, accuracy in choice["tried"].items())
            met = max(choice["tried"].values()) >= choice["least"] - 1e-9
            needed = f"needed {100 * choice['least']:.1f}" + ("" if met else ", not reached")
            needed += "; larger ones were not tried" if met and len(choice["tried"]) == 1 else ""
            lines.append(f"- {row['label']}: {choice['chosen']:g} ({tried}; {needed})")
    head = "The largest of those tried whose clean accuracy on validation images is as needed, or the last:"
    return [head, "", *lines] if lines else []


def _curves(rows: Mapping[str, Any], part: str, columns: int = 12) -> list[str]:
    """An accuracy on validation images during training, the mean over seeds, at evenly spaced measurements."""
    curves = {}
    for row in rows.values():
        measured = [run["training"].get(part, []) for run in row["seeds"].values()]
        seeds = [{round(at, 1): found for at, found in curve} for curve in measured if curve]
        if not seeds:
            continue
        curves[row["label"]] = {
            at: np.mean([seed[at] for seed in seeds]) for at in seeds[0] if all(at in seed for seed in seeds)
        }
    epochs = sorted({at for curve in curves.values() for at in curve})
    if len(epochs) < 2:
        return []
    shown = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, columns).round().astype(int))]
    lines = [
        f"| {label} | " + " | ".join(f"{100 * curve[at]:.1f}" if at in curve else "" for at in shown) + " |"
        for label, curve in curves.items()
    ]
    return [
        "| training | " + " | ".join(f"{at:g}" for at in shown) + " |",
        "|---" * (1 + len(shown)) + "|",
        *lines,
    ]


def _paired(measured: Mapping[str, Any]) -> list[str]:
    """A table with a line per pair of rows and seed, on the images that both were attacked on."""
    columns = {column: [column] for column in _shown(measured)} | measured["worst"]
    lines = [line for pair in measured["pairs"] for line in _compared(measured["rows"], columns, *pair)]
    if not lines:
        return []
    heads = ["seed", *_named(_shown(measured)), *measured["worst"]]
    about = (
        "Images that only one of two rows classifies correctly, the first (+) or the second (−), with p of the exact "
        "McNemar test, not corrected for the number of tests:"
    )
    return [about, "", "| first (+) against second (−) | " + " | ".join(heads) + " |",
            "|---" * (1 + len(heads)) + "|", *lines]  # fmt: skip


def _compared(rows: Mapping[str, Any], columns: Mapping[str, Sequence[str]], name: str, baseline: str) -> list[str]:
    if not {name, baseline} <= rows.keys():
        return []
    row, other, lines = rows[name], rows[baseline], []
    for seed in sorted(row["seeds"].keys() & other["seeds"].keys(), key=int):
        if len({one["seeds"][seed]["evaluation"]["clean"]["n"] for one in (row, other)}) > 1:
            continue  # one is older than a change of their number
        cells = [
            _mcnemar(*(_broken(one["seeds"][seed], several) for one in (row, other))) for several in columns.values()
        ]
        # Another version of jax makes another network, as another seed does.
        versions = [_jax(one["seeds"][seed]) for one in (row, other)]
        other_jax = f" (jax {versions[0]} against {versions[1]})" if versions[0] != versions[1] else ""
        lines.append(f"| {row['label']} against {other['label']}{other_jax} | {seed} | " + " | ".join(cells) + " |")
    return lines


def _mcnemar(ours: np.ndarray, theirs: np.ndarray) -> str:
    plus, minus = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    return f"+{plus} −{minus}, {shown_p(mcnemar(plus, minus))}"
