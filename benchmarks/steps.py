"""Times training steps, as `train.py` runs them, on any device; and PyTorch's, for networks that it has here too.

python benchmarks/steps.py [--models=vgg11] [--batch=128] [--methods=plain,fgr] [--dtype=float32] [--repeats=5]

A row is a method of the config cifar10_methods; fgr comes with its three ways to differentiate, lfr and adt with 3
steps of their inner search. Columns: milliseconds (the median), images a second, the ratio to our plain step, the
arithmetic's ratio (forward-equivalents over 3), achieved GFLOP/s (forward-equivalents times the FLOPs of a forward
pass) and their share of the rate of a large matrix product measured in the same run, peak temporary memory, seconds of
compilation.
Images are random. With --peers also PyTorch's plain step and FGR by double backprop, eager and by torch.compile, after
both libraries' penalties with the same weights are compared: pip install -e '.[bench]'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

import robust_jax as rj
from measurements import report
from origin import source
from robust_jax import cli, losses, models, parallel
from robust_jax.config import build, optimizers
from robust_jax.data.known import STATISTICS
from robust_jax.objectives.objective import make_objective
from robust_jax.training import init_state, make_train_step
from timing import flops, timed

flags.DEFINE_list("models", ["vgg11"], "Names of robust_jax.models.")
flags.DEFINE_integer("batch", 128, "Images per step, over all devices.")
flags.DEFINE_list("methods", None, "Some of the rows; all unless given.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the network's computations.")
flags.DEFINE_integer("repeats", 5, "Timed steps.")
flags.DEFINE_bool("peers", False, "Time PyTorch too.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")

INNER = 3  # steps of inner searches
# Name: (method, its way to differentiate, forward-equivalents: 1 for a forward pass, 1 for a backward pass to images or
# to weights, twice that for what is differentiated twice).
ROWS: dict[str, tuple[str, str | None, int]] = {
    "plain": ("standard", None, 3),
    "igr": ("igr", "double_backprop", 6),
    "fgr": ("fgr", "double_backprop", 6),
    # Of their own 7; the classification loss has a backward pass of its own.
    "fgr directional": ("fgr", "directional", 9),
    "fgr finite_difference": ("fgr", "finite_difference", 9),
    "lfr": ("lfr", None, 3 + 6 + 4 * INNER + 2),
    "adt": ("adt", None, 3 + 2 * INNER + 1),
}


def image_shape(name: str) -> tuple[int, int, int]:
    """The image shape that the network is usually trained on."""
    return {"digits_cnn": (8, 8, 1), "mlp": (8, 8, 1), "small_cnn": (28, 28, 1)}.get(name, (32, 32, 3))


def built(name: str, dtype: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network with random weights, none of them 0: some start with a last layer of zeros, and penalties of 0."""
    mean, std = STATISTICS["cifar10"] if image_shape(name)[-1] == 3 else ((0.0,), (1.0,))
    model = models.create(name, num_classes=10, mean=mean, std=std, dtype=jnp.dtype(dtype))
    variables = build.init_variables(model, image_shape(name), 0)
    noise = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.02 * noise.normal(size=p.shape).astype(p.dtype), variables["params"])
    return model, {**variables, "params": moved}


def batch_of(name: str, size: int) -> dict[str, np.ndarray]:
    """Random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *image_shape(name)), np.uint8)
    return {"image": images, "label": np.arange(size, dtype=np.int32) % 10, "id": np.arange(size, dtype=np.int32)}


def step_of(
    row: str, model: nn.Module, variables: dict[str, Any], configs: str = "cifar10_methods"
) -> tuple[Callable, Any, Callable]:
    """The jitted loop that `robust_jax.train` runs, its first state, and the step itself."""
    method, way, _ = ROWS[row]
    c = cli.load_config(f"{configs}:{method}")
    for point in c.points.values():
        if point.get("steps"):
            point.steps = INNER
    for term in c.terms.values():
        if way and term.kind == "gradient_norm":
            term.method = way
    settings = {k: v for k, v in c.optimizer.items() if k not in optimizers.OF_STEP} | {"weight_decay": 5e-4}
    optimizer = optimizers.make_optimizer(lambda step: 1e-4, **settings)
    objective = make_objective(c.points.to_dict(), c.terms.to_dict())
    step = make_train_step(model, objective, optimizer, augmentation=dict(c.data.augment))
    state = jax.device_get(init_state(variables, optimizer, 0.0))
    return parallel.loop(step), parallel.replicate(state), step


def matrix_rate(dtype: str) -> float:
    """FLOP/s of a large matrix product on all devices together."""
    size = 2048 if parallel.on_cpu() else 8192
    a = parallel.replicate(jnp.ones((size, size), dtype))
    product = parallel.each(lambda a: a @ a)
    return len(a) * 2 * size**3 / timed(lambda: product(a).block_until_ready(), 5).median


def measured(row: str, name: str, dtype: str, size: int, repeats: int) -> dict[str, float]:
    """Seconds of a step and of its compilation, and the MiB that it needs beside its arguments."""
    model, variables = built(name, dtype)
    run, state, _ = step_of(row, model, variables)
    batches, key = parallel.resident({k: v[None] for k, v in batch_of(name, size).items()}), jax.random.key(0)
    start = time.perf_counter()
    compiled = run.lower(state, batches, key, 0, 1).compile()
    compile_seconds = time.perf_counter() - start
    holder = [state]

    def once() -> None:
        holder[0], metrics = compiled(holder[0], batches, key, 0, 1)
        jax.block_until_ready(metrics)

    seconds = timed(once, repeats).median
    memory = compiled.memory_analysis()
    temporary = getattr(memory[0] if isinstance(memory, list) else memory, "temp_size_in_bytes", 0)
    return {"seconds": seconds, "compile": compile_seconds, "MiB": temporary / 2**20}


def forward_flops(name: str, size: int) -> float:
    """FLOPs of the forward pass of a batch, counted in the program before XLA rewrites it."""
    model, variables = built(name, "float32")
    images = jnp.zeros((size, *image_shape(name)))
    return flops(lambda v, x: model.apply(v, x), variables, images)


def peers(name: str, dtype: str, size: int, repeats: int) -> Iterator[tuple[str, float]]:
    """Seconds of PyTorch's steps by name, where it has the network."""
    import torch

    import torch_steps
    from torch_models import NETWORKS, converted, tensors

    if name not in NETWORKS:
        return
    model, variables = built(name, "float32")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = batch_of(name, size)
    floats = (batch["image"] / 255).astype(np.float32)
    images, labels = tensors(floats, batch["label"], device)

    def network() -> torch.nn.Module:
        return converted(name, model, variables, image_shape(name)).to(device)

    few = slice(0, 16)
    theirs = float(torch_steps.flow_penalty(network().eval(), images[few], labels[few])[1])
    bound = models.bind(model, variables)
    x, y = jnp.asarray(floats[few]), jnp.asarray(batch["label"][few])
    ours = rj.gradient_norm(lambda x: losses.cross_entropy(bound(x), y), x, "flow").mean()
    print(f"{name}: flow penalty {float(ours):.6g} here, {theirs:.6g} in PyTorch", flush=True)
    kind = getattr(torch, dtype)
    for row, loss in (("plain", torch_steps.plain), ("fgr", torch_steps.fgr)):
        step = torch_steps.stepper(net := network().train(), loss(net), kind)
        yield f"PyTorch {row}", timed(lambda step=step: step(images, labels), repeats).median
        try:
            compiled = torch.compile(loss(net := network().train()))
            step = torch_steps.stepper(net, compiled, kind)
            yield f"PyTorch {row}, compiled", timed(lambda step=step: step(images, labels), repeats).median
        except Exception as error:  # whatever its compiler raises is a result too
            print(f"PyTorch {row}, compiled: {type(error).__name__}: {str(error).strip()}", flush=True)


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints one table per network."""
    rows, tables = options.methods or list(ROWS), {}
    if unknown := sorted({*rows} - {*ROWS}):
        raise ValueError(f"--methods: {', '.join(unknown)} unknown; there are {', '.join(ROWS)}.")
    origin = source(*(("torch",) if options.peers else ()))
    rate, size = matrix_rate(options.dtype), options.batch
    for name in options.models:
        forward = forward_flops(name, size)
        seconds, found = {}, []
        for row in rows:
            figures, work = measured(row, name, options.dtype, size, options.repeats), ROWS[row][2]
            seconds[row] = figures["seconds"]
            achieved = work * forward / seconds[row]
            found.append(times(f"{name} {row}", seconds[row], size, seconds.get("plain")) | {
                "arithmetic, to plain": work / 3, "GFLOP/s": achieved / 1e9, "of the matrix rate": achieved / rate,
                "MiB": figures["MiB"], "compile s": figures["compile"],
            })  # fmt: skip
            print(found[-1], flush=True)
        for row, of_peer in peers(name, options.dtype, size, options.repeats) if options.peers else ():
            found.append(times(f"{name} {row}", of_peer, size, seconds.get("plain")))
        tables[f"{name}, batch {size}, {options.dtype}; a matrix product has {rate / 1e9:.0f} GFLOP/s"] = found
        report(tables, options.out, origin)


def times(name: str, seconds: float, size: int, plain: float | None) -> dict[str, Any]:
    """What every row has; ``plain`` are the seconds of the plain step."""
    ratio = {"to plain": seconds / plain} if plain else {}
    return {"step": name, "ms": 1e3 * seconds, "images/s": size / seconds} | ratio


if __name__ == "__main__":
    cli.run(main)
