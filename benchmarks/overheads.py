"""What a loop costs beyond its arithmetic: `python benchmarks/overheads.py [--repeats=5]`.

1. PGD-20 as one program, compared with 20 calls of a program of one step, on small_cnn and vgg11; seconds of
   compilation.
2. Training a small network on the digits: steps per second as `train.py` runs them, many per dispatch; of a loop that
   dispatches each step and reads nothing; of one that reads each loss; and of one as it is usually written, which also
   splits a key and puts the batch on the device before each step, and how many times as fast `train.py` is; batches
   per second of the data pipeline alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from measurements import report
from origin import source
from robust_jax import attacks, cli, data, models, parallel
from robust_jax.config import build
from robust_jax.spaces.threat_models import ThreatModel
from steps import built, image_shape, step_of
from timing import timed

flags.DEFINE_integer("attacked", 64, "Images attacked.")
flags.DEFINE_integer("small_batch", 32, "Batch size of the small networks.")

SMALL = {"mlp": {"hidden": (64,)}, "digits_cnn": {}}


def attack(name: str, size: int, repeats: int) -> dict[str, Any]:
    """A row of the first table."""
    model, variables = built(name, "float32")
    bound = models.bind(model, variables)
    images = jax.random.uniform(jax.random.key(0), (size, *image_shape(name)))
    labels = jnp.arange(size) % 10
    threat = ThreatModel("additive", "linf", 0.03)
    run = partial(attacks.pgd, step_size=0.01, keep="last", key=jax.random.key(1))
    start = time.perf_counter()
    whole = jax.jit(partial(run, steps=20)).lower(bound, images, labels, threat).compile()
    compiling = time.perf_counter() - start
    single = jax.jit(lambda bound, x, y, threat: run(bound, x, y, threat, steps=1).images)

    def one_by_one() -> jax.Array:
        x = images
        for _ in range(20):
            x = single(bound, x, labels, threat)
        return x.block_until_ready()

    def at_once() -> jax.Array:
        return whole(bound, images, labels, threat).images.block_until_ready()

    # Alternating, because a machine's speed drifts.
    pairs = [(timed(at_once, 0).median, timed(one_by_one, 0).median) for _ in range(repeats + 1)]
    together, apart = map(statistics.median, zip(*pairs[1:], strict=True))
    return {
        "PGD-20": name, "one program, ms": 1e3 * together, "20 calls, ms": 1e3 * apart, "ratio": together / apart,
        "compile s": compiling,
    }  # fmt: skip


def steps_per_second(run: Callable[[int], None], together: int, repeats: int) -> float:
    """Steps per second of a loop of about half a second, whose number of steps is a multiple of ``together``."""
    few = 10 * together
    count = max(round(0.5 * few / timed(lambda: run(few), 1).median / together), 1) * together
    return count / timed(lambda: run(count), repeats).median


def training(name: str, size: int, repeats: int) -> dict[str, Any]:
    """A row of the second table."""
    dataset = data.load("digits")
    model = models.create(name, num_classes=10, **SMALL[name])
    variables = build.init_variables(model, dataset.image_shape, 0)
    batches, blocks = (f(dataset.train, size, 0) for f in (data.train_batches, data.train_blocks))
    loop, state, step = step_of("plain", model, variables, "digits_methods")
    single, together, key = parallel.pmap(step), len(next(blocks)["label"]), jax.random.key(0)
    held = [state]  # its buffers are donated to every step

    def dispatched(count: int) -> None:
        for _ in range(count):
            held[0], _ = single(held[0], parallel.shard(next(batches)), key)
        jax.block_until_ready(held[0])

    def read(count: int) -> None:
        for _ in range(count):
            held[0], metrics = single(held[0], parallel.shard(next(batches)), key)
            float(metrics["loss"][0])

    def written(count: int) -> None:
        chain = key
        for _ in range(count):
            chain, now = jax.random.split(chain)
            batch = {k: jnp.asarray(v) for k, v in parallel.shard(next(batches)).items()}
            held[0], metrics = single(held[0], batch, now)
            float(metrics["loss"][0])

    def looped(count: int) -> None:
        for _ in range(count // together):
            held[0], _ = loop(held[0], parallel.resident(next(blocks)), key, 0, together)
        jax.block_until_ready(held[0])

    def pipeline(count: int) -> None:
        for _ in range(count // together):
            next(blocks)

    fast, *slow, fed = (steps_per_second(f, together, repeats) for f in (looped, dispatched, read, written, pipeline))
    row: dict[str, Any] = {"training": name, "steps/s": fast}
    for loop_of, rate in zip(("each dispatched", "each read", "as usually written"), slow, strict=True):
        row |= {loop_of: rate, f"train.py / {loop_of}": fast / rate}
    return row | {"batches/s of the pipeline": fed}


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints two tables."""
    origin = source()
    tables = {
        f"PGD of 20 steps, {options.attacked} images": [
            attack(name, options.attacked, options.repeats) for name in ("small_cnn", "vgg11")
        ],
        f"Training, batches of {options.small_batch}": [
            training(name, options.small_batch, options.repeats) for name in SMALL
        ],
    }
    report(tables, options.out, origin)


if __name__ == "__main__":
    cli.run(main)
