"""Signs in the logits alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from robust_jax.evaluation.signs.define import Look, sign

TINY = 1e-6  # a change of the input that should change nothing
ROUNDING = 0.05  # of the largest logit: bfloat16 alone can explain 1%


@sign("logits")
def random_logits(look: Look) -> list[str]:
    """Two calls with the same images return different logits."""
    if n := look.random_images:
        return [
            f"random_logits: two calls differ at {n} of {len(look.images)} images: average them "
            f"(attacks.expectation) and attack the mean"
        ]
    return []


@sign("logits")
def jumping_logits(look: Look) -> list[str]:
    """A change of the input by 1e-6 changes the logits by more than rounding explains."""
    if look.random_images:
        return []
    inward = jnp.where(look.images > 0.5, -TINY, TINY)
    if n := look.changed(look.logits_of(look.images + inward), ROUNDING):
        return [
            f"jumping_logits: a change of {TINY:g} in the input changes the logits of {n} of {len(look.images)} "
            f"images: a random or quantised input, whose gradients say little"
        ]
    return []


@sign("logits")
def dependent_examples(look: Look) -> list[str]:
    """The logits of a batch differ from those of its halves, beyond what rounding explains."""
    half = len(look.images) // 2
    if look.random_images or not half:
        return []
    try:
        halves = [look.logits_of(look.images[i : i + half]) for i in (0, half)]
    except (TypeError, ValueError):  # a model of a fixed batch size
        return []
    apart = np.concatenate([*halves, look.logits[2 * half :]])
    if n := look.changed(apart, ROUNDING):
        return [
            f"dependent_examples: the logits of {n} of {len(look.images)} images depend on the other images of their "
            f"batch, and so do all numbers here: leave BatchNorm's train mode (train=False, use_running_average=True)"
        ]
    return []


@sign("logits")
def probabilities(look: Look) -> list[str]:
    """The logits are in [0, 1] and sum to 1."""
    logits = look.logits
    if (logits >= 0).all() and (logits <= 1).all() and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return ["probabilities: the logits are in [0, 1] and sum to 1: attack what goes into the softmax"]
    return []
