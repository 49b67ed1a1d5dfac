"""Signs in the logits alone."""

from __future__ import annotations

import numpy as np

from robust_jax.evaluation.signs.define import TINY, Look, sign

MANY = 0.1  # of the images


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
    # 5%: bfloat16 alone can explain 1%.
    if n := look.changed(look.nudged, 0.05):
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
    # What a tiny change of the input does to the logits is what other rounding may do, in any precision.
    if (n := look.changed(apart, max(1e-3, 4 * look.noise))) > MANY * len(look.images):
        return [
            f"dependent_examples: the logits of {n} of {len(look.images)} images depend on the other images of their "
            f"batch, and so do all numbers here: leave BatchNorm's train mode (train=False, use_running_average=True)"
        ]
    return []


@sign("logits")
def clipped_logits(look: Look) -> list[str]:
    """Many images share the largest or the smallest logit exactly."""
    logits = look.logits[:, (look.logits != look.logits[0]).any(0)]  # such as [0, z] has a constant column
    if not logits.size:
        return []
    low, high = logits.min(), logits.max()
    if (n := int(((logits == low) | (logits == high)).any(-1).sum())) > max(2, MANY * len(logits)):
        return [
            f"clipped_logits: {n} of {len(logits)} images have a logit of exactly {low:.6g} or {high:.6g}, the "
            f"smallest and the largest of all: clipped logits have no gradient, attack what is clipped"
        ]
    return []


@sign("logits")
def probabilities(look: Look) -> list[str]:
    """The logits are in [0, 1] and sum to 1."""
    logits = look.logits
    if (logits >= 0).all() and (logits <= 1).all() and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return ["probabilities: the logits are in [0, 1] and sum to 1: attack what goes into the softmax"]
    return []
