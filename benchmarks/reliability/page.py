"""Puts the tables of docs/results/reliability_*.json into docs/reliability.md: python benchmarks/reliability/page.py.

A table stands behind the comment that names its file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import results

DOCS = Path(__file__).resolve().parents[2] / "docs"


def filled(page: str) -> str:
    """The page with the tables of the files."""
    for path in sorted((DOCS / "results").glob("reliability_*.json")):
        found, mark = json.loads(path.read_text()), f"<!-- {path.name} -->\n"
        if mark in page:
            before, _, after = page.partition(mark)
            after = re.sub(r"\A\n(\|.*\n)*\n?", "", after)
            page = f"{before}{mark}\n{results.table(found)}" + (f"\n{after}" if after else "")
    return page


if __name__ == "__main__":
    path = DOCS / "reliability.md"
    path.write_text(filled(path.read_text()))
