"""Times the models' convolution against `jax.lax`'s: `python benchmarks/convolutions.py [MODEL]`.

For each of four ways in which training or an attack uses a network, the median of three repeats: a plain training
step, an FGR-like step (double backprop), and PGD and gradient-norm ascent in a loop.
"""

from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from robust_jax import models
from robust_jax.models import cpu_convolution
from timing import timed

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


def main(names):
    """Prints one row per model and use."""
    print(f"{'model':<10} {'use':<21} {'lax':>9} {'ours':>9}  lax / ours")
    for name in names:
        images = jax.random.uniform(jax.random.key(0), CASES[name])
        labels = jnp.arange(len(images)) % 10
        times = {}
        for form, conv in FORMS.items():
            model = models.create(name, num_classes=10, conv_general_dilated=conv)
            variables = model.init(jax.random.key(1), images[:1])
            for use, function in uses(model, images, labels).items():
                run = partial(jax.jit(function), variables, images)
                times[form, use] = timed(lambda run=run: jax.block_until_ready(run()), repeats=3).median
        for use in uses(model, images, labels):
            slow, fast = times["lax", use], times["ours", use]
            print(f"{name:<10} {use:<21} {slow:>8.3f}s {fast:>8.3f}s  {slow / fast:.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
