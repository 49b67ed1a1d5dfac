"""Shared by minimal-norm attacks: the distance to the decision boundary, and the smallest δ that crossed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from robust_jax import losses
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box, found_or_clean, rounding
from robust_jax.spaces import norms, per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

CANDIDATES = 10  # the number of classes whose boundary is considered
SCALES = (1e-4, 1.0)  # the smallest and largest unit of steps, in radii


class Boundary(NamedTuple):
    """The decision boundary, linearised at the clean images.

    Attributes:
      distance: ``(δ, blur=None) -> (d [B], crossed [B])``: the linearised distance of T(x, δ) to the boundary in radii,
        negative beyond it, and whether it is crossed by more than rounding and confidence. With a blur ``[B]`` d is
        the smooth minimum over classes, ``-blur * log Σ_k exp(-d_k / blur)``. Differentiate -d, not d: over flows the
        slope is that of an ascent, see `Perturbation.slope`.
      scale: ``[B]``, d at δ = 0, clipped to `SCALES`.
      smallest: δ = 0, which counts as found where the clean image is misclassified.
    """

    distance: Callable[..., tuple[Float[Array, " b"], Bool[Array, " b"]]]
    scale: Float[Array, " b"]
    smallest: Smallest


class Smallest(NamedTuple):
    """The best δ so far.

    Attributes:
      delta: 0 if none was found.
      cost: what is minimised, infinite if none was found.
    """

    delta: Delta
    cost: Float[Array, " b"]

    def or_smaller(self, delta: Delta, cost: Float[Array, " b"], crossed: Bool[Array, " b"]) -> Smallest:
        """The other δ for examples where it crossed the boundary at a smaller cost."""
        return per_example.where(crossed & (cost < self.cost), Smallest(delta, cost), self)

    def result(self, images: Images, threat: ThreatModel) -> AttackResult:
        """The δ found in the ball; otherwise δ = 0, the clean image and success False."""
        success = jnp.isfinite(self.cost) & (threat_models.size(threat, self.delta) <= 1)
        return found_or_clean(threat, images, self.delta, success)


def boundary(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *,
    confidence: float, targeted: bool, candidates: int = CANDIDATES,
) -> Boundary:  # fmt: skip
    """The nearest decision boundary, by the gradients at the clean images.

    The distance to class k is ``d_k = (z_y - z_k + confidence) / ‖radius * ∂(z_k - z_y)/∂δ‖_dual`` with the gradient
    at δ = 0, and d is the smallest over the ``candidates`` classes of the largest logits: exact for linear models, for
    which the class of the largest other logit need not be the nearest. Targeted, z_k is the target's logit and z_y the
    largest other one.
    """
    space, zeros = threat.perturbation, threat.perturbation.zeros(images)
    clean = logits_fn(images)
    rivals = losses.rivals(clean, labels, candidates)

    def margins(delta: Delta) -> tuple[Array, Array]:
        logits = logits_fn(clip_box(perturbations.apply_with_slope(space, images, delta)))
        label = jnp.take_along_axis(logits, labels[:, None], -1)
        if targeted:
            return -losses.margin(logits, labels)[:, None], logits
        return jnp.take_along_axis(logits, rivals, -1) - label, logits

    values, pull, _ = jax.vjp(margins, zeros, has_aux=True)

    def gain(row: Array) -> Array:
        gradient = pull(row + jnp.zeros_like(values))[0]  # as sharded as the values are
        gradient = finite(gradient)
        # Coordinates that the box holds back do not lead to the boundary.
        headroom = perturbations.headroom(space, images, zeros, gradient)
        return threat_models.gain(threat, perturbations.free(gradient, headroom))

    gains = jax.lax.map(gain, jnp.eye(values.shape[1], dtype=values.dtype)).T
    # A class whose gradient vanishes at δ = 0 is far, but not infinitely: at other δ it may not vanish.
    gains = jnp.maximum(gains, 1e-3 * gains.max(-1, keepdims=True))
    gains = jnp.where((gains > 0) & jnp.isfinite(gains), gains, 1)

    def distance(delta: Delta, blur: Array | None = None) -> tuple[Array, Array]:
        values, logits = margins(delta)
        # Beyond rounding: at a tie the same model, compiled differently, may prefer another class.
        needed = confidence + 2 * rounding(jax.lax.stop_gradient(logits))
        away = (needed[:, None] - values) / gains
        margin = losses.margin(logits, labels) * (-1 if targeted else 1)
        away = away.min(-1) if blur is None else -blur * jax.nn.logsumexp(-away / blur[:, None], axis=-1)
        return away, (losses.misclassified(logits, labels) != targeted) & (margin >= needed)

    scale = jnp.clip(jnp.nan_to_num(distance(zeros)[0], nan=1, posinf=1), *SCALES)
    cost = jnp.where(losses.misclassified(clean, labels) != targeted, 0, jnp.inf)
    return Boundary(distance, scale, Smallest(zeros, cost))


def search_const(
    minimise: Callable[[Float[Array, " b"], Float[Array, " b"], Smallest], tuple[Smallest, Bool[Array, " b"]]],
    threat: ThreatModel, start: Boundary, initial_const: float, steps: int,
) -> Smallest:  # fmt: skip
    """Searches, per example, for the smallest weight c of a penalty that leads across the boundary.

    c grows tenfold until it does, and is then bisected between the largest that failed and the smallest that
    succeeded. The scale doubles, up to 1 radius, until an example succeeds, and is then the size of its smallest δ.

    Args:
      minimise: ``(c [B], scale [B], the smallest δ so far) -> (the smallest δ, whether this c crossed)``.
      threat: its ball is the unit of sizes.
      start: the boundary, with the first scale and the smallest δ at the start.
      initial_const: the first c.
      steps: the number of values of c.
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
    """Unit-free numbers times radius and scale, which gives δ; likewise for gradients."""
    return jax.tree.map(lambda r, d: (d * r * per_example.expand(scale, d)).astype(d.dtype), threat.radius, delta)


def finite(tree: Delta) -> Delta:
    """NaN and infinite numbers replaced by 0, as the moments of Adam would keep them."""
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)


def check_norm(name: str, threat: ThreatModel, p: int) -> None:
    """Raises ValueError, beginning with ``name``, for a norm other than l_p."""
    named = threat.norm if threat.perturbation.parts else (threat.norm,)
    if any(norms.exponent(norm) != p for norm in named):
        raise ValueError(
            f"{name}: norm={threat.norm!r}, but it minimises l{p}, in every part of a composition: give norm='l{p}', "
            f"or use deepfool, which takes any norm."
        )
