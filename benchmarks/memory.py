"""What `model.options.remat` saves and costs: `python benchmarks/memory.py [--models=wrn_28_10] [--batch=128]`.

For a plain and an FGR step: the GiB that the forward pass keeps for the backward pass of the weights, and the
arithmetic in forward passes, both of the program before XLA rewrites it. Nothing is run, so no device is needed. On CPU
XLA merges the recomputation with the first computation: there `remat` saves nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from measurements import report
from origin import source
from robust_jax import cli, losses, models
from robust_jax.penalties import gradient_norms
from timing import traced_flops

flags.DEFINE_list("models", ["wrn_28_10", "preact_resnet18"], "Residual networks of robust_jax.models.")
flags.DEFINE_integer("batch", 128, "Images per step.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")


def losses_of(name: str, size: int, remat: bool) -> tuple[dict[str, Callable[[Any, Any], jax.Array]], Any]:
    """Mean losses as functions of (params, batch_stats) by name, and the shapes of these."""
    images, labels = jnp.zeros((size, 32, 32, 3)), jnp.arange(size) % 10
    model = models.create(name, num_classes=10, remat=remat)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])

    def of_images(params: Any, statistics: Any) -> Callable[[jax.Array], jax.Array]:
        variables = {"params": params, "batch_stats": statistics}
        return lambda x: losses.cross_entropy(model.apply(variables, x, train=True, mutable=["batch_stats"])[0], labels)

    def fgr(params: Any, statistics: Any) -> jax.Array:
        loss, penalty = gradient_norms.value_and_gradient_norm(of_images(params, statistics), images, "flow")
        return loss.mean() + penalty.mean()

    return {"plain": lambda p, s: of_images(p, s)(images).mean(), "FGR": fgr}, (shapes["params"], shapes["batch_stats"])


def kept(loss: Callable[[Any, Any], jax.Array], shapes: Any) -> float:
    """The size, in GiB, of what the backward pass closes over."""
    backward = jax.eval_shape(lambda params, statistics: jax.vjp(lambda p: loss(p, statistics), params)[1], *shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)) / 2**30


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints the table."""
    origin, rows = source(), []
    for name in options.models:
        (functions, shapes), (again, _) = (losses_of(name, options.batch, remat) for remat in (False, True))
        forward = traced_flops(functions["plain"], *shapes)
        for step, function in functions.items():
            row: dict[str, Any] = {"step": f"{name} {step}"}
            for mode, f in (("", function), (", remat", again[step])):
                row |= {f"GiB stored{mode}": kept(f, shapes)}
                row |= {f"arithmetic, in forward passes{mode}": traced_flops(jax.grad(f), *shapes) / forward}
            rows.append(row)
    report({f"Batches of {options.batch}": rows}, options.out, origin)


if __name__ == "__main__":
    cli.run(main)
