"""Tables of what a benchmark times or counts: a row is a name for each number, the same in all rows of a table.

Benchmarks print them as Markdown and keep them as JSON, from which `result_tables.py` writes the pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from origin import keep

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> list[str]:
    """A row per line; numbers of three significant digits. A row may lack some of the numbers."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(_shown(row.get(head, "")) for head in heads) + " |" for row in rows]


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def report(tables: Mapping[str, Sequence[Row]], out: str, source: Mapping[str, Any]) -> None:
    """Prints tables by their titles and, if ``out`` names a file, keeps their numbers and their source there."""
    for title, rows in tables.items():
        print(f"\n{title}\n\n" + "\n".join(markdown(rows)), flush=True)
    if out:
        keep(Path(out).expanduser(), {"tables": tables} | dict(source))
