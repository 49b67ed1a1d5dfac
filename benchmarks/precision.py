"""What a lower precision does to trained networks' numbers: `python benchmarks/precision.py --workdirs=runs/fgr`.

Errors of bfloat16 computations relative to float32: the largest error of a logit over the largest logit; the flow
penalty ‖∂ loss / ∂ flow‖² (of its mean over images, and the median over images of each one's); the gradients of the
mean loss and of the mean penalty with respect to the weights, as the norm of the difference over the norm. On training
images, with the network in eval mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from measurements import report
from origin import source
from robust_jax import cli, losses
from robust_jax.penalties import gradient_norms
from robust_jax.workdir import runs

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_integer("images", 256, "Training images.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")


def found(model: Any, variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, "..."]:
    """Logits, penalties, and the gradients of the mean loss and of the mean penalty with respect to the weights."""

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        return losses.cross_entropy(model.apply({**variables, "params": params}, x), labels)

    def penalties(params: Any) -> jax.Array:
        return gradient_norms.gradient_norm(lambda x: loss_fn(params, x), images, "flow")

    params = variables["params"]
    of_loss = jax.grad(lambda p: loss_fn(p, images).mean())(params)
    of_penalty = jax.grad(lambda p: penalties(p).mean())(params)
    return model.apply(variables, images), penalties(params), of_loss, of_penalty


def errors(workdir: Path, count: int) -> dict[str, Any]:
    """The relative errors of one network, in per cent."""
    trained = runs.load(workdir)
    model, variables, (images, labels) = trained.model, trained.variables, trained.examples(count, "train")
    full, half = (
        jax.jit(found, static_argnums=0)(model.clone(dtype=jnp.dtype(dtype)), variables, images, labels)
        for dtype in ("float32", "bfloat16")
    )

    def of_gradient(a: Any, b: Any) -> float:
        return float(optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(a))

    relative = {
        "logits": float(jnp.abs(half[0] - full[0]).max() / jnp.abs(full[0]).max()),
        "penalty, mean": abs(float(half[1].mean() / full[1].mean()) - 1),
        "penalty, per image": float(jnp.median(jnp.abs(half[1] - full[1]) / jnp.where(full[1] > 0, full[1], 1))),
        "gradient of the loss": of_gradient(full[2], half[2]),
        "gradient of the penalty": of_gradient(full[3], half[3]),
    }
    return {"network": workdir.name} | {f"{name}, %": 100 * error for name, error in relative.items()}


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints the errors, a row per network."""
    origin = source()
    rows = [errors(Path(workdir), options.images) for workdir in options.workdirs]
    report({f"bfloat16 against float32, {options.images} training images": rows}, options.out, origin)


if __name__ == "__main__":
    cli.run(main)
