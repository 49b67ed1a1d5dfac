"""Puts the numbers of docs/results/optimality.json and exact_optima.json into docs/optimality.md.

python benchmarks/optimality_page.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- {} -->\n", "<!-- end -->\n"
FILES = ("optimality", "exact_optima")
UNITS = {"additive": "intensity", "flow": "px", "affine": "10° and 1 px"}
TITLES = {
    "digits_standard": "The digits, standard training",
    "digits_pgd": "The digits, adversarial training in linf at 0.1",
    "mnist_standard": "MNIST, standard training",
    "mnist_pgd": "MNIST, adversarial training in linf at 0.3",
}
WITHOUT_GRADIENTS = ("square", "random_search", "grid")
BY_DESIGN = ("fgsm", "stadv", "adef")  # weak: a single step, and smooth fields only


def judges(found: Mapping[str, Any], ball: str = "flow") -> list[str]:
    """The attacks of many restarts, in a ball."""
    names = [name for name, given in found["settings"].items() if "restarts" in given]
    return [name for name in names if ball.startswith("flow") or "derivative" not in name]


def by_model(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The cases of each model, by ball; those whose judges are still missing are left out."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for name, case in sorted(found["cases"].items()):
        model, ball = name.split("/", 1)
        if set(judges(found, ball)) <= case.get("attacks", {}).keys():
            models.setdefault(model, {})[ball] = case
    return models


def optimality(cases: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """A row for each attack, a column for each ball: optimality in per cent, and in brackets what it breaks alone."""
    rows = [["attack", *cases], ["---"] * (1 + len(cases))]
    for attack in settings:
        seen = [case["attacks"].get(attack) for case in cases.values()]
        if any(seen):
            rows.append([attack, *(_cell(one) for one in seen)])
    return _table(rows)


def _cell(seen: Mapping[str, Any] | None) -> str:
    if seen is None:
        return ""
    return f"{seen['optimality']:.1f}" + (f" ({seen['alone']})" if seen["alone"] else "")


def balls(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """The radii of each ball, what the best of all leave there, and what the best single attack leaves."""
    rows = [["ball", "unit", "radii", "left by the best of all, %", "closest attack", "left by it, %"]]
    rows.append(["---"] * len(rows[0]))
    for ball, case in cases.items():
        closest = max(case["attacks"], key=lambda name: case["attacks"][name]["optimality"])
        unit = UNITS[ball.split("/")[0]]
        rows.append([ball, unit, _listed(case["radii"]), _listed(case["best"]), closest,
                     _listed(case["attacks"][closest]["left"])])  # fmt: skip
    return _table(rows)


def summary(models: Mapping[str, Mapping[str, Mapping[str, Any]]], judged: Sequence[str]) -> str:
    """For each ball the lowest optimality over models, of the first three attacks and the last; judges are left out."""
    rows = [["ball", "models", "first", "second", "third", "weakest with gradients"], ["---"] * 6]
    for ball in dict.fromkeys(ball for cases in models.values() for ball in cases):
        cases = [cases[ball] for cases in models.values() if ball in cases]
        names = [name for name in cases[0]["attacks"] if name not in judged]
        lowest = {name: min(case["attacks"][name]["optimality"] for case in cases) for name in names}
        order = sorted(lowest, key=lambda name: -lowest[name])
        last = next(name for name in order[::-1] if name not in WITHOUT_GRADIENTS + BY_DESIGN)
        shown = [f"{name} {lowest[name]:.1f}" for name in (*order[:3], last)]
        rows.append([ball, str(len(cases)), *shown])
    return _table(rows)


def section(model: str, cases: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The heading and the tables of a model."""
    images = ", ".join(str(count) for count in dict.fromkeys(case["images"] for case in cases.values()))
    return f"## {TITLES.get(model, model)}\n\n{images} images.\n\n{optimality(cases, settings)}\n{balls(cases)}"


def settings(found: Mapping[str, Any]) -> str:
    """The options of each attack."""
    rows = [["attack", "options", "runs"], ["---"] * 3]
    for name, given in found["settings"].items():
        options = ", ".join(f"{key}={value!r}" for key, value in given.items() if key != "runs") or "defaults"
        rows.append([name, f"`{options}`", given["runs"]])
    return _table(rows)


def exact(found: Mapping[str, Any]) -> str:
    """A row for each ball with a known optimum, a column for each attack: what it leaves, in per cent."""
    names = list(dict.fromkeys(name for left in found["left"].values() for name in left))
    rows = [["model, ball", *names], ["---"] * (1 + len(names))]
    for ball, left in found["left"].items():
        rows.append([ball, *(f"{100 * left[name]:.0f}" if name in left else "" for name in names)])
    source = f"On {found['hardware']}, revision {found['revision']}; exact_optima.json, from `{found['command']}`."
    return f"{_table(rows)}\n{source}\n"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def filled(page: str) -> str:
    """The page with its tables, each between two comments."""
    found, known = (json.loads((DOCS / "results" / f"{name}.json").read_text()) for name in FILES)
    models = by_model(found)
    sections = [section(model, cases, found["settings"]) for model, cases in models.items()]
    tables = {"summary": summary(models, judges(found)), "settings": settings(found), "models": "\n".join(sections)}
    tables["exact"] = exact(known)
    for name, text in tables.items():
        before, mark, rest = page.partition(START.format(name))
        if mark:
            _, end, after = rest.partition(END)
            page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE = DOCS / "optimality.md"
    PAGE.write_text(filled(PAGE.read_text()))
