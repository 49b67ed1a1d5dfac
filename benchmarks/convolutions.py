"""Times the models' convolution against `jax.lax`'s: `python benchmarks/convolutions.py [--models=small_cnn]`.

For each of four ways in which training or an attack uses a network, the median of three repeats: a plain training
step, an FGR-like step (double backprop), and PGD and gradient-norm ascent in a loop.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax

from measurements import report
from origin import source
from robust_jax import cli, models
from robust_jax.models import cpu_convolution
from runs import selected
from timing import timed

flags.DEFINE_list("models", None, "Some of the networks; all unless given.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")

CASES = {"small_cnn": (128, 28, 28, 1), "vgg11": (8, 32, 32, 3)}
FORMS = {"lax": lax.conv_general_dilated, "ours": cpu_convolution.conv_general_dilated}


def uses(model, images, labels):
    """Functions of (variables, images) by name."""

    def loss(variables, x, train=False):
        mutable = ["batch_stats"] if train else False
        out = model.apply(variables, x, train=train, mutable=mutable)
        logits = out[0] if train else out
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).sum()

    def penalty(variables, x, train=False):
        return jnp.sum(jax.grad(loss, argnums=1)(variables, x, train) ** 2)

    def ascend(objective, steps):
        def run(variables, x):
            step = jax.grad(objective, argnums=1)
            return lax.fori_loop(0, steps, lambda _, z: z + 0.01 * jnp.sign(step(variables, z)), x)

        return run

    return {
        "training step": jax.grad(lambda v, x: loss(v, x, True)),
        "double backprop": jax.grad(lambda v, x: loss(v, x, True) + penalty(v, x, True)),
        "PGD, 5 steps": ascend(loss, 5),
        "norm ascent, 2 steps": ascend(penalty, 2),
    }


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints one row per model and use."""
    origin, rows = source(), []
    for name, shape in selected(CASES, options.models).items():
        images = jax.random.uniform(jax.random.key(0), shape)
        labels = jnp.arange(len(images)) % 10
        seconds: dict[str, dict[str, float]] = {}
        for form, conv in FORMS.items():
            model = models.create(name, num_classes=10, conv_general_dilated=conv)
            variables = model.init(jax.random.key(1), images[:1])
            for use, function in uses(model, images, labels).items():
                run = partial(jax.jit(function), variables, images)
                took = timed(lambda run=run: jax.block_until_ready(run()), repeats=3).median
                seconds.setdefault(use, {})[form] = took
        for use, found in seconds.items():
            row: dict[str, Any] = {"network": f"{name}, {len(images)} images", "use": use}
            rows.append(row | {f"{form}, ms": 1e3 * took for form, took in found.items()})
            rows[-1]["lax / ours"] = found["lax"] / found["ours"]
    report({"Convolutions": rows}, options.out, origin)


if __name__ == "__main__":
    cli.run(main)
