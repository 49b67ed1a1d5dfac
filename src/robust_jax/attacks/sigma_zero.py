"""σ-zero: the fewest changed pixels, by a smooth count of them and an adaptive threshold (Cinà et al. 2025)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from robust_jax import losses
from robust_jax.attacks.ascent import in_float32
from robust_jax.attacks.define import Cost, Problem, attack
from robust_jax.attacks.minimal import Smallest, finite
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box, crossed, found_or_clean
from robust_jax.attacks.sparse import check_pixelwise, ends
from robust_jax.options import Count, NotNegative, Positive
from robust_jax.spaces import per_example
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

THRESHOLD = (0.3, 0.01)  # the first one, in radii, and its change per learning rate


def _cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(o.steps + 2, o.steps)


@attack(family="white_box", cost=_cost, check=check_pixelwise)
def sigma_zero(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    learning_rate: Positive = 1.0,
    sigma: Positive = 0.001,
    weight: NotNegative = 1.0,
    max_pixels: Count | None = None,
    targeted: bool = False,
) -> AttackResult:
    """The δ with the fewest changed pixels that σ-zero (algorithm 1) finds across the boundary.

    With ``v = δ / radius``, n pixels and m the lead of the label's logit over the largest other one, Adam follows ::

        max(m, 0) / m_0 + weight / n Σ_i v_i² / (v_i² + sigma)

    from v = 0, each example's gradient divided by its largest entry. After each step δ is clipped to ball and box, and
    all ``|v_i| < τ`` are set to 0. τ rises by 0.01 of the learning rate if the δ before the step was across the
    boundary, and falls by as much if not. The learning rate falls as a cosine to a tenth. Every iterate across the
    boundary counts.

    This differs from the paper in that m is divided by m_0, the lead at the clean image, so that the scale of the
    logits does not change the result.

    Costs ``steps`` gradients and two forward passes more. A pixel is a single value, in colour images one channel, see
    `robust_jax.attacks.jsma`.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "additive" with norm linf; the radius bounds the change of each pixel (1: any).
      key: not used: the attack is deterministic.
      steps: the number of steps of Adam.
      learning_rate: of Adam, in units of v.
      sigma: how smooth the count is: a pixel with ``v² = sigma`` counts half.
      weight: of the count.
      max_pixels: the largest number of changed pixels; None for any.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), another
        threat model, or an option out of its range.

    Example::

        anything = ThreatModel("additive", "linf", 1.0)
        result = sigma_zero(logits_fn, images, labels, anything, key=jax.random.key(0), steps=1000)
        pixels = (result.delta != 0).sum((1, 2, 3))
    """
    low, high = ends(threat, images)
    radius = jnp.broadcast_to(jnp.asarray(threat.radius, images.dtype), images.shape)
    unit = jnp.where(radius > 0, radius, 1)
    adam = optax.scale_by_adam()

    def lead(logits: Array) -> Array:
        return losses.margin(logits, labels) * (1 if targeted else -1)

    clean = logits_fn(images)
    scale = jnp.nan_to_num(lead(clean), nan=1, posinf=1, neginf=1)
    scale = jnp.where(scale > 0, scale, 1)

    def objective(delta: Images) -> tuple[Array, Array]:
        logits = logits_fn(clip_box(images + delta))
        square = jnp.square(in_float32(delta / unit))  # in float16 the slope of the count is infinite
        count = (square / (square + sigma)).mean((1, 2, 3))
        return (jnp.maximum(lead(logits), 0) / scale + weight * count).sum(), crossed(logits, labels, targeted)

    def step(i: Array, carry: tuple[Images, Array, optax.OptState, Smallest]) -> tuple:
        delta, threshold, state, smallest = carry
        gradient, success = jax.grad(objective, has_aux=True)(delta)
        smallest = smallest.or_smaller(delta, _changed(delta), success)
        gradient = in_float32(finite(gradient))
        largest = jnp.abs(gradient).max((1, 2, 3), keepdims=True)
        uphill, state = adam.update(gradient / jnp.where(largest > 0, largest, 1), state)
        rate = learning_rate * (0.1 + 0.9 * (1 + jnp.cos(math.pi * i / steps)) / 2)
        delta = jnp.clip(delta - (rate * uphill).astype(delta.dtype) * radius, low, high)
        change = THRESHOLD[1] * rate * jnp.where(success, 1, -1)
        threshold = jnp.clip(threshold + change, 0, 1)
        return (
            jnp.where(jnp.abs(delta) < per_example.expand(threshold, delta) * radius, 0, delta),
            threshold,
            state,
            smallest,
        )

    zeros = jnp.zeros_like(images)
    first = Smallest(zeros, jnp.where(losses.misclassified(clean, labels) != targeted, 0, jnp.inf))
    start = zeros, jnp.full(len(images), THRESHOLD[0]), adam.init(in_float32(zeros)), first
    delta, *_, smallest = jax.lax.fori_loop(0, steps, step, start)
    smallest = smallest.or_smaller(
        delta, _changed(delta), crossed(logits_fn(clip_box(images + delta)), labels, targeted)
    )
    most = images[0].size if max_pixels is None else max_pixels
    return found_or_clean(threat, images, smallest.delta, smallest.cost <= most)


def _changed(delta: Images) -> Array:
    """The number of changed pixels, as floats."""
    return (delta != 0).sum((1, 2, 3)).astype(jnp.float32)
