"""What checksums cost when a checkpoint is written.

python benchmarks/reliability/write_time.py [--model=vgg11] [--repeats=20] [--out=FILE]

The training state of a network (weights, momentum, averages) is saved with checksums and without, in turns, and each
time waited for until it is on the disk. The ratio is that of the medians. `save` is how long training waits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from typing import Any

import programs
import results

COLUMNS = ("checkpoint", "MiB", "with checksums, ms", "without, ms", "ratio", "save with, ms", "save without, ms")


def state_of(name: str) -> Any:
    """A training state, as NumPy arrays."""
    import jax
    import optax

    from robust_jax import models
    from robust_jax.training.step import init_state

    model = models.create(name, num_classes=10)
    variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
    return jax.device_get(init_state(variables, optax.sgd(0.1, 0.9), 0.99))


def measured(state: Any, repeats: int) -> dict[bool, list[tuple[float, float]]]:
    """Seconds of `save` and until the checkpoint is on the disk, with checksums (True) and without."""
    from robust_jax.workdir import checkpoints, integrity

    made = integrity.checksums
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, checkpoints.opened(folder) as saved:
        for step in range(2 * repeats + 2):
            checked = bool(step % 2)
            integrity.checksums = made if checked else lambda *_: {}  # type: ignore[assignment]
            began = time.perf_counter()
            saved.save("latest", step, state)
            returned = time.perf_counter()
            saved.wait("latest")
            if step >= 2:  # the first of each creates folders
                seconds[checked].append((returned - began, time.perf_counter() - began))
    return seconds


def main() -> None:
    """Prints the table; exit status 1 if checksums take more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg11", help="of robust_jax.models")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    sys.path.insert(0, str(programs.ROOT / "src"))
    import jax

    state = state_of(options.model)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    seconds = measured(state, options.repeats)
    (save, whole), (save_plain, whole_plain) = (
        [1000 * statistics.median(column) for column in zip(*seconds[checked], strict=True)]
        for checked in (True, False)
    )
    ratio = whole / whole_plain
    row = [
        options.model,
        *(round(v) for v in (size, whole, whole_plain)),
        f"{ratio:.3f}",
        round(save),
        round(save_plain),
    ]
    results.report(COLUMNS, [row], options.out, None, seconds={str(k): v for k, v in seconds.items()})
    sys.exit(ratio > 1.1)


if __name__ == "__main__":
    main()
