"""Puts the tables of docs/results/masking.json into docs/masking.md: `python -m benchmarks.masking.page`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.masking import honest, planted
from benchmarks.masking.probe import names

DOCS = Path(__file__).resolve().parents[2] / "docs"
START, END = "<!-- {} -->\n", "<!-- end -->\n"


def filled(page: str) -> str:
    """The page with its tables, each between two comments."""
    found = json.loads((DOCS / "results" / "masking.json").read_text())
    tables = {
        "planted": table(found["planted"], planted.KINDS),
        "later": table(found["planted"], planted.LATER),
        "honest": table(found["honest"], honest.MODELS),
    }
    for name, text in tables.items():
        before, mark, rest = page.partition(START.format(name))
        _, end, after = rest.partition(END)
        page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


def table(found: Mapping[str, Any], cases: Mapping[str, Any]) -> str:
    """One row for each model: what it is, its accuracies in per cent, and the signs that are seen."""
    lines = ["| name | what | clean | left by the attacks | signs |", "| --- | --- | --- | --- | --- |"]
    for name, case in cases.items():
        seen = found[name]
        left = ", ".join(f"{attack} {100 * share:.0f}" for attack, share in seen["left"].items())
        signs = ", ".join(f"`{sign}`" for sign in sorted(names(seen["warnings"]))) or "none"
        lines.append(f"| {name} | {case.says} | {100 * seen['clean']:.0f} | {left} | {signs} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = DOCS / "masking.md"
    path.write_text(filled(path.read_text()))
