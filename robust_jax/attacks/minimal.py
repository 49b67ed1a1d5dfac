"""What minimal-norm attacks share: how far the boundary is, and the smallest perturbation that crossed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import clip_box
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel

SCALES = (1e-4, 1.0)  # of the ball: what steps are measured by


class Boundary(NamedTuple):
    """The boundary as seen from the clean images.

    Attributes:
      distance: ``(δ, blur=None) -> (d [B], crossed [B])``: how far the boundary is from T(x, δ), linearised, in units
        of the ball, negative beyond; and where it is crossed by more than rounding and confidence. With a blur ``[B]``
        d is the smooth minimum over classes, ``-blur * log Σ_k exp(-d_k / blur)``.
      scale: ``[B]``, d at δ = 0, at most 1, the ball, and never 0.
      smallest: δ = 0, found where the clean image is misclassified.
    """

    distance: Callable[..., tuple[Float[Array, " b"], Bool[Array, " b"]]]
    scale: Float[Array, " b"]
    smallest: Smallest


class Smallest(NamedTuple):
    """The best δ so far.

    Attributes:
      delta: 0 where none was found.
      cost: what is to be small, infinite where none was found.
    """

    delta: Delta
    cost: Float[Array, " b"]

    def or_smaller(self, delta: Delta, cost: Float[Array, " b"], crossed: Bool[Array, " b"]) -> Smallest:
        """Another δ, where it crossed the boundary at a smaller cost."""
        return norms.where(crossed & (cost < self.cost), Smallest(delta, cost), self)

    def result(self, images: Images, threat: ThreatModel) -> AttackResult:
        """What was found in the ball; elsewhere δ = 0, the clean image and success False."""
        success = jnp.isfinite(self.cost) & (threat_models.size(threat, self.delta) <= 1)
        return found_or_clean(threat, images, self.delta, success)


def boundary(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *,
    confidence: float, targeted: bool, candidates: int = 10,
) -> Boundary:  # fmt: skip
    """The nearest boundary, by the gradients at the clean images.

    The distance to class k is ``d_k = (z_y - z_k + confidence) / ‖radius * ∂(z_k - z_y)/∂δ‖_dual``, the gradient
    that at δ = 0, and d the smallest over so many candidates, the largest logits: exact for linear models, where the
    largest logit need not be that of the nearest class. Targeted, z_k is the target's and z_y the largest other.
    """
    space, zeros = threat.perturbation, threat.perturbation.zeros(images)
    clean = logits_fn(images)
    rivals = losses.rivals(clean, labels, candidates)

    def margins(delta: Delta) -> tuple[Array, Array]:
        logits = logits_fn(clip_box(perturbations.followed(space, images, delta)))
        label = jnp.take_along_axis(logits, labels[:, None], -1)
        if targeted:
            return -losses.margin(logits, labels)[:, None], logits
        return jnp.take_along_axis(logits, rivals, -1) - label, logits

    values, pull, _ = jax.vjp(margins, zeros, has_aux=True)

    def gain(row: Array) -> Array:
        gradient = pull(jnp.broadcast_to(row, values.shape))[0]
        gradient = finite(gradient)
        # Where the box leaves no room a coordinate is no way to the boundary.
        room = perturbations.room(space, images, zeros, gradient)
        return threat_models.gain(threat, jax.tree.map(lambda g, r: jnp.where(r > 0, g, 0), gradient, room))

    gains = jax.lax.map(gain, jnp.eye(values.shape[1], dtype=values.dtype)).T
    # A class whose gradient vanishes here is far, but not infinitely: elsewhere it may not.
    gains = jnp.maximum(gains, 1e-3 * gains.max(-1, keepdims=True))
    gains = jnp.where((gains > 0) & jnp.isfinite(gains), gains, 1)

    def distance(delta: Delta, blur: Array | None = None) -> tuple[Array, Array]:
        values, logits = margins(delta)
        # Beyond rounding: at a tie another compilation may see another class.
        needed = confidence + 1e-5 * jnp.abs(jax.lax.stop_gradient(logits)).max(-1)
        away = (needed[:, None] - values) / gains
        margin = losses.margin(logits, labels) * (-1 if targeted else 1)
        away = away.min(-1) if blur is None else -blur * jax.nn.logsumexp(-away / blur[:, None], axis=-1)
        return away, (losses.misclassified(logits, labels) != targeted) & ~(margin < needed)

    scale = jnp.clip(jnp.nan_to_num(distance(zeros)[0], nan=1, posinf=1), *SCALES)
    cost = jnp.where(losses.misclassified(clean, labels) != targeted, 0, jnp.inf)
    return Boundary(distance, scale, Smallest(zeros, cost))


def found_or_clean(threat: ThreatModel, images: Images, delta: Delta, success: Bool[Array, " b"]) -> AttackResult:
    """What an attack for the smallest δ returns: δ and its images where they succeed, the clean image elsewhere."""
    delta = norms.where(success, delta, threat.perturbation.zeros(images))
    moved = clip_box(threat.perturbation.apply(images, delta))
    return AttackResult(norms.where(success, moved, images), delta, success)


def search_const(
    minimise: Callable[[Float[Array, " b"], Float[Array, " b"], Smallest], tuple[Smallest, Bool[Array, " b"]]],
    threat: ThreatModel, start: Boundary, initial_const: float, steps: int,
) -> Smallest:  # fmt: skip
    """Seeks the least weight c of a penalty with which each example crosses the boundary.

    c grows tenfold until it does and is then halved between the largest that failed and the smallest that succeeded.
    The scale doubles, up to the ball, until an example succeeds, and is then the size of its smallest δ.

    Args:
      minimise: ``(c [B], scale [B], the smallest δ so far) -> (the smallest δ, whether this c crossed)``.
      threat: what δ is measured by.
      start: the first scale, and what is known.
      initial_const: the first c.
      steps: so many c.
    """

    def step(_: Array, carry: tuple[Array, Array, Array, Array, Smallest]) -> tuple:
        const, scale, low, high, smallest = carry
        smallest, success = minimise(const, scale, smallest)
        low, high = jnp.where(success, low, const), jnp.where(success, const, high)
        found = jnp.isfinite(smallest.cost)
        scale = jnp.where(found, threat_models.size(threat, smallest.delta), 2 * scale)
        const = jnp.where(jnp.isfinite(high), (low + high) / 2, 10 * low)
        return const, jnp.clip(scale, *SCALES), low, high, smallest

    const = jnp.full_like(start.scale, initial_const)
    first = (const, start.scale, jnp.zeros_like(const), jnp.full_like(const, jnp.inf), start.smallest)
    return jax.lax.fori_loop(0, steps, step, first)[-1]


def in_units(threat: ThreatModel, scale: Float[Array, " b"], delta: Delta) -> Delta:
    """δ, or a gradient in it, times radius and scale: what turns unit-free numbers into δ."""
    return jax.tree.map(lambda r, d: d * r * norms.expand(scale, d), threat.radius, delta)


def finite(tree: Delta) -> Delta:
    """0 in the place of NaN and infinite numbers, which Adam would not forget."""
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)


def check_minimal(path: str, threat: ThreatModel, p: int, steps: int, confidence: float = 0) -> None:
    """Raises ValueError, starting with ``path``, for a norm other than l_p or settings that cannot be."""
    check_norm(path, threat, p)
    if steps < 1 or not confidence >= 0:
        raise ValueError(f"{path}: steps={steps} must be at least 1, and confidence={confidence} not negative.")


def check_norm(path: str, threat: ThreatModel, p: int) -> None:
    """Raises ValueError, starting with ``path``, for a norm other than l_p."""
    named = threat.norm if threat.perturbation.parts else (threat.norm,)
    if any(norms.exponent(norm) != p for norm in named):
        raise ValueError(
            f"{path}: norm={threat.norm!r}, but it minimises l{p}, in every part of a composition: give norm='l{p}', "
            f"or use deepfool, which takes any norm."
        )


def check_penalty(path: str, binary_search_steps: int, learning_rate: float | None, initial_const: float) -> None:
    """Raises ValueError, starting with ``path``, for settings of a penalised search that cannot be."""
    if binary_search_steps < 1 or (learning_rate is not None and not learning_rate > 0) or not initial_const > 0:
        raise ValueError(
            f"{path}: binary_search_steps={binary_search_steps}, learning_rate={learning_rate}, "
            f"initial_const={initial_const}, but all must be positive."
        )
