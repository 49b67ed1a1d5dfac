"""Bits of a checkpoint, flipped one at a time: none is restored as other numbers.

python benchmarks/reliability/bits.py [--bits=200] [--seed=0] [--out=FILE]

A run has two latest checkpoints, of steps 35 and 40. In each copy of it one bit of one file of the newer is flipped:
half of them in the files that hold the numbers, the others in any file, in turn. What is then restored is compared with
what was saved, bit for bit: the newer checkpoint (the bit was of no importance), the older one with a warning, or none
with an error; anything else is a failure.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import programs
import results

COLUMNS = ("file", "flipped bits", "noticed: the older one restored, with a warning", "of no importance", "silent")


def state(seed: int) -> dict[str, Any]:
    """Arrays of several types, as those of a training state."""
    import numpy as np

    draw = np.random.default_rng(seed)
    return {
        "params": {"Dense_0": {"kernel": draw.normal(size=(64, 16)).astype(np.float32), "bias": np.zeros(16, "f")}},
        "momentum": draw.normal(size=(64, 16)).astype(np.float32),
        "step": np.int32(seed),
        "best": np.float32(0.25),
    }


def flipped(options: argparse.Namespace, folder: Path, out: Path) -> None:
    """Flips and restores; writes a list of (file, what came of it)."""
    from robust_jax.workdir import checkpoints, integrity

    with checkpoints.opened(folder / "good") as saved:
        for step in (35, 40):
            saved.save("latest", step, state(step))
    expected = {step: integrity.checksums(state(step)) for step in (35, 40)}
    source, draw, found = folder / "good" / "checkpoints" / "latest" / "40", random.Random(options.seed), []
    names = [p.relative_to(source) for p in sorted(source.rglob("*")) if p.is_file() and p.stat().st_size]
    numbers = [name for name in names if name.parent.name == "d"]
    sizes = [(source / name).stat().st_size for name in numbers]
    logger, warned = logging.getLogger("absl"), []
    logger.addHandler(_Kept(warned))
    for i in range(options.bits):
        name = draw.choices(numbers, sizes)[0] if i % 2 else names[i // 2 % len(names)]
        shutil.copytree(folder / "good", folder / "copy")
        path = folder / "copy" / "checkpoints" / "latest" / "40" / name
        data = bytearray(path.read_bytes())
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        warned.clear()
        with checkpoints.opened(folder / "copy") as saved:
            restored = saved.newest(("latest",))
        right = integrity.checksums(restored.state) == expected[restored.step]
        told = restored.step == 40 or any("latest/40 is damaged" in text for text in warned)
        found.append((str(name), COLUMNS[{40: 3, 35: 2}[restored.step]] if right and told else COLUMNS[4]))
        shutil.rmtree(folder / "copy")
    out.write_text(json.dumps(found))


class _Kept(logging.Handler):
    """Keeps messages."""

    def __init__(self, messages: list[str]):
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def main() -> None:
    """Prints the table; exit status 1 if a bit was restored silently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        programs.prepare(Path(name))
        ended = programs.Program(flipped, options, Path(name), Path(name) / "found.json").ended(600)
        if ended.status:
            sys.exit(f"it ended with {ended.status}: {ended.printed[-3000:]}")
        found = json.loads((Path(name) / "found.json").read_text())
    counts = collections.Counter((_group(file), what) for file, what in found)
    groups = sorted({group for group, _ in counts})
    rows = [
        [group, sum(n for (g, _), n in counts.items() if g == group), *(counts[group, what] for what in COLUMNS[2:])]
        for group in groups
    ]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(COLUMNS)))])
    results.report(COLUMNS, rows, options.out, options.seed)
    sys.exit(bool(rows[-1][-1]))


def _group(file: str) -> str:
    path = Path(file)
    return "numbers" if path.parent.name == "d" else path.name


if __name__ == "__main__":
    main()
