"""What attacks work with and return: candidates for δ, the better of two, and the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from robust_jax import losses
from robust_jax.options import shown
from robust_jax.spaces import per_example
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

LogitsFn = Callable[[Images], Float[Array, "b k"]]


class AttackResult(NamedTuple):
    """What every attack returns.

    Attributes:
      images: ``[B, H, W, C]`` in [0, 1].
      delta: the δ that produced them, inside the ball.
      success: ``[B]``, true exactly where the image is misclassified (targeted: classified as the target).
    """

    images: Images
    delta: Delta
    success: Bool[Array, " b"]

    def __repr__(self) -> str:
        shapes = f"images {shown.shape(self.images)}, delta {shown.shape(self.delta)}"
        return f"AttackResult({shapes}, success {shown.share(self.success)})"


class Candidate(NamedTuple):
    """A δ that was tried.

    Attributes:
      delta: inside the ball.
      value: of the score that the attack maximises, at δ.
      success: where the attack succeeds at δ.
    """

    delta: Delta
    value: Float[Array, " b"]
    success: Bool[Array, " b"]


def clip_box(images: Images) -> Images:
    """Images clipped to [0, 1]."""
    # where, not clip: a pixel exactly on 0 or 1 keeps its full gradient.
    return jnp.where(images < 0, 0.0, jnp.where(images > 1, 1.0, images))


def rounding(logits: Float[Array, "b k"]) -> Float[Array, " b"]:
    """Margins below this are ties: the same model, compiled differently, may prefer another class."""
    return 0.5e-5 * jnp.abs(logits).max(-1)


def crossed(logits: Float[Array, "b k"], labels: Int[Array, " b"], targeted: bool) -> Bool[Array, " b"]:
    """Where the attack succeeds by more than a tie."""
    succeeds = losses.misclassified(logits, labels) != targeted
    return succeeds & (jnp.abs(losses.margin(logits, labels)) > rounding(logits))


def equal(a: Delta, b: Delta) -> Bool[Array, " b"]:
    """Where two δ are the same."""
    same = jax.tree.map(lambda x, y: (x == y).reshape(len(x), -1).all(-1), a, b)
    return jnp.stack(jax.tree.leaves(same)).all(0)


def best_of(new: Candidate, old: Candidate) -> Candidate:
    """The better candidate by (success, then value), per example; the old one if they are equal."""
    higher = (new.success & ~old.success) | ((new.success == old.success) & (new.value > old.value))
    return per_example.where(higher, new, old)


def found_or_clean(threat: ThreatModel, images: Images, delta: Delta, success: Bool[Array, " b"]) -> AttackResult:
    """The result of an attack that seeks the smallest δ: δ and its images where it succeeds, else the clean images.

    Pixels that are not finite, where half precision overflowed, are no image and no success.
    """
    moved = clip_box(threat.perturbation.apply(images, delta))
    success &= jnp.isfinite(moved).all((1, 2, 3))
    delta = per_example.where(success, delta, threat.perturbation.zeros(images))
    return AttackResult(per_example.where(success, moved, images), delta, success)
