"""What the scripts beside find: a JSON file, and the same counts as a table in Markdown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "filelock")


def table(found: Mapping[str, Any]) -> str:
    """The counts of a result in Markdown."""
    columns = found["columns"]
    lines = [columns, ["---"] * len(columns), *found["rows"]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def report(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], out: str = "", seed: int | None = None, **more: Any
) -> None:
    """Prints the table and writes it, with what is needed to repeat it, to a JSON file.

    Args:
      columns: the heads of the table.
      rows: its cells.
      out: the file; empty: none.
      seed: of what was drawn.
      more: further content of the file.
    """
    module = sys.modules["__main__"].__spec__  # run by python -m
    program = ["-m", module.name] if module else [str(Path(*Path(sys.argv[0]).resolve().parts[-3:]))]
    found = {
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
        "seed": seed,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES},
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        **more,
    }
    print(table(found))
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(found, indent=1) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
