"""Shared by the reliability benchmarks: what a workdir holds, and whether two runs ended with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from robust_jax.workdir import runs

ROOT = Path(__file__).resolve().parents[2]


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` that are whole."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # is being written
            break
    return found


def steps_done(workdir: Path) -> int:
    """The last step that the run has logged."""
    return int(max((line["step"] for line in metrics(workdir)), default=0))


def same_end(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs are the same to the last bit, and their metrics but for their times."""
    first, second = (runs.load(workdir, "latest") for workdir in (one, other))
    leaves = [jax.tree.leaves(restored.variables) for restored in (first, second)]
    same = first.step == second.step and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*leaves, strict=True)
    )
    untimed = [[{k: v for k, v in m.items() if k != "steps_per_second"} for m in metrics(w)] for w in (one, other)]
    return same and untimed[0] == untimed[1]
