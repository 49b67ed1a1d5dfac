"""Signs in the logits alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from robust_jax.evaluation.signs.define import Look, sign

TINY = 1e-6  # a change of the input that should change nothing


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
    # 5%: bfloat16 alone can explain 1%.
    if n := look.changed(look.logits_of(look.images + inward), 0.05):
        return [
            f"jumping_logits: a change of {TINY:g} in the input changes the logits of {n} of {len(look.images)} "
            f"images: a random or quantised input, whose gradients say little"
        ]
    return []


@sign("logits")
def probabilities(look: Look) -> list[str]:
    """The logits are in [0, 1] and sum to 1."""
    logits = look.logits
    if (logits >= 0).all() and (logits <= 1).all() and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return ["probabilities: the logits are in [0, 1] and sum to 1: attack what goes into the softmax"]
    return []
