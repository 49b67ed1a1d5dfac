"""Signs in the logits alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax.evaluation.signs.define import TINY, Look, ball, is_many, sign
from robust_jax.spaces import threat_models
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

GREY = 0.5 / 255  # half a step of an 8-bit image


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
            f"images: a random or quantised input, whose gradients say little. Attack without it (attacks.bpda) or its "
            f"mean (attacks.expectation), and without gradients (square)"
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
    if is_many(where := look.differs(apart, max(1e-3, 4 * look.noise))):
        return [
            f"dependent_examples: the logits of {where.sum()} of {len(look.images)} images depend on the other images "
            f"of their batch, and so do all numbers here: leave BatchNorm's train mode (train=False, "
            f"use_running_average=True)"
        ]
    return []


@sign("logits")
def clipped_logits(look: Look) -> list[str]:
    """Many images share the largest or the smallest logit exactly."""
    logits = look.logits[:, (look.logits != look.logits[0]).any(0)]  # such as [0, z] has a constant column
    if not logits.size:
        return []
    low, high = logits.min(), logits.max()
    if is_many(where := ((logits == low) | (logits == high)).any(-1)) and where.sum() > 2:
        return [
            f"clipped_logits: {where.sum()} of {len(logits)} images have a logit of exactly {low:.6g} or {high:.6g}, "
            f"the smallest and the largest of all: clipped logits have no gradient, attack what is clipped"
        ]
    return []


@sign("logits")
def probabilities(look: Look) -> list[str]:
    """The logits are in [0, 1] and sum to 1."""
    logits = look.logits
    if (logits >= 0).all() and (logits <= 1).all() and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return ["probabilities: the logits are in [0, 1] and sum to 1: attack what goes into the softmax"]
    return []


@sign("logits")
def tiny_radius(look: Look) -> list[str]:
    """The ball of an attack is too small to change any pixel by half a grey level."""
    attacks = {ball(o.attack.threat): (name, o.attack.threat) for name, o in look.measured.attacks.items()}
    return [
        f"tiny_radius: the largest perturbations of {name} (radius {threat.radius}) change no pixel by more than "
        f"{change:.2g}, less than half a grey level of 8-bit images ({GREY:.2g}): its accuracy says nothing. Is the "
        f"radius in units of images in [0, 1] (8/255), of pixels or of degrees?"
        for name, threat in attacks.values()
        if (change := _largest_change(threat, look.images)) < GREY
    ]


def _largest_change(threat: ThreatModel, images: Images) -> float:
    """The largest change of a pixel by two perturbations on the ball's surface: all of δ, and one entry of it."""
    zeros = threat.perturbation.zeros(images)
    middle = jax.tree.map(lambda d: d.at[:, *(n // 2 for n in d.shape[1:])].set(1), zeros)
    changed = (
        threat.perturbation.apply(images, threat_models.steepest(threat, gradient)) - images
        for gradient in (jax.tree.map(jnp.ones_like, zeros), middle)
    )
    return max(float(jnp.abs(change).max()) for change in changed)
