"""Terms of a training objective: ``(here, *, options) -> [B]``, one number an example at a point.

Keyword-only parameters are the options of a config. One of type `Here` names another point: a term that compares two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from robust_jax import gradients, losses, norms, perturbations, threat_models
from robust_jax.perturbations import Delta, Images
from robust_jax.points import Labels
from robust_jax.threat_models import ThreatModel

PerExample = Float[Array, " b"]


class Here(NamedTuple):
    """A point with the model run on it, in one pass that all terms share.

    Attributes:
      images: the point, constants.
      delta: what turned the clean images into it, if one δ did.
      labels: the true classes.
      logits: of the model in train mode.
      loss: cross-entropy of each example.
      gradient: of the sum of the losses in the images, differentiable in the parameters.
      loss_fn: ``images -> [B]``, for terms that look elsewhere.
    """

    images: Images
    delta: Delta | None
    labels: Labels
    logits: Float[Array, "b k"]
    loss: PerExample
    gradient: Images
    loss_fn: Callable[[Images], PerExample]


def cross_entropy(here: Here, *, label_smoothing: float = 0.0) -> PerExample:
    """The classification loss, ``-Σ_k q_k log softmax(z)_k``, q smoothed towards uniform by ``label_smoothing``."""
    if not label_smoothing:
        return here.loss
    targets = jax.nn.one_hot(here.labels, here.logits.shape[-1])
    return optax.softmax_cross_entropy(here.logits, optax.smooth_labels(targets, label_smoothing))


def gradient_norm(
    here: Here, *, perturbation: Any, norm: Any = "l2", power: float = 2.0, scale: Any = 1.0,
    method: str = "double_backprop", step: float = 1e-4,
) -> PerExample:  # fmt: skip
    """``‖scale * ∂/∂δ ℓ(T(x, δ))‖^power`` at δ = 0: FGR for flows, Ross & Doshi-Velez (2018) for additive.

    See `robust_jax.value_and_gradient_norm` for the options.
    """
    penalty = gradients.penalty_of(perturbations.get(perturbation), here.images, norm, power, scale)
    return gradients.norm_of_gradient(here.loss_fn, here.images, here.gradient, penalty, method, step)


def first_order_gain(
    here: Here, *, perturbation: Any, norm: Any = "linf", radius: Any,
    method: str = "double_backprop", step: float = 1e-4,
) -> PerExample:  # fmt: skip
    """``max_{δ in ball} <∂ℓ/∂δ, δ>``, the exact penalty of Lyu et al. (2015): radius times the dual norm."""
    threat = ThreatModel(perturbation, norm, radius)

    def penalty(gradient: Images) -> PerExample:
        space = threat.perturbation
        return threat_models.gain(threat, perturbations.pullback(space, here.images, gradient))

    return gradients.norm_of_gradient(here.loss_fn, here.images, here.gradient, penalty, method, step)


def kl_divergence(here: Here, *, reference: Here) -> PerExample:
    """``KL(f(reference) ‖ f(here))``: TRADES (Zhang et al. 2019), with `here` the attacked and reference the clean."""
    return losses.kl_divergence(here.logits, reference.logits)


def boosted_cross_entropy(here: Here) -> PerExample:
    """``-log p_y - log(1 - max_{k != y} p_k)`` (MART, Wang et al. 2020, eq. 8)."""
    own = jax.nn.one_hot(here.labels, here.logits.shape[-1], dtype=bool)
    # log(1 - p_k) = log of the sum of the others' probabilities, which does not cancel where p_k is near 1.
    others = jnp.where(own, -jnp.inf, jax.lax.stop_gradient(here.logits)).argmax(-1)
    rest = jnp.where(jax.nn.one_hot(others, here.logits.shape[-1], dtype=bool), -jnp.inf, here.logits)
    return here.loss + jax.nn.logsumexp(here.logits, -1) - jax.nn.logsumexp(rest, -1)


def weighted_kl_divergence(here: Here, *, reference: Here) -> PerExample:
    """``KL(f(reference) ‖ f(here)) (1 - p_y(reference))``: MART's regulariser (Wang et al. 2020, eq. 9)."""
    return kl_divergence(here, reference=reference) * -jnp.expm1(-reference.loss)


def gradient_difference(
    here: Here, *, other: Here, perturbation: Any, norm: Any = "l2", power: float = 2.0
) -> PerExample:
    """``‖g(other) - g(here)‖^power``, g the gradient in a fresh δ at 0.

    CURE (Moosavi-Dezfooli et al. 2019, eq. 5), with `other` a short step along the gradient's sign.
    """
    difference = jax.tree.map(jnp.subtract, _in_delta(other, perturbation), _in_delta(here, perturbation))
    return gradients.tree_norm(difference, norm, power)


def gradient_misalignment(here: Here, *, other: Here, perturbation: Any) -> PerExample:
    """``1 - cos(g(here), g(other))``, 1 where one is 0 (GradAlign, Andriushchenko & Flammarion 2020, eq. 5)."""
    one, two = _unit(_in_delta(here, perturbation)), _unit(_in_delta(other, perturbation))
    return 1 - perturbations.inner(one, two)


def linearity_gap(here: Here, *, other: Here, perturbation: Any) -> PerExample:
    """``|ℓ(T(x, δ)) - ℓ(x) - <∂ℓ/∂δ, δ>|``, δ that of the point `other` (LLR, Qin et al. 2019, eq. 7)."""
    return jnp.abs(other.loss - here.loss - _slope(here, other, perturbation))


def directional_derivative(here: Here, *, other: Here, perturbation: Any) -> PerExample:
    """``|<∂ℓ/∂δ, δ>|``, δ that of the point `other`: the second regulariser of LLR (Qin et al. 2019, eq. 7)."""
    return jnp.abs(_slope(here, other, perturbation))


def _in_delta(here: Here, perturbation: Any) -> Delta:
    return perturbations.pullback(perturbations.get(perturbation), here.images, here.gradient)


def _unit(gradient: Delta) -> Delta:
    """``g / ‖g‖₂``, 0 where ``‖g‖ < 1e-30``, beyond which nothing can be divided by it."""

    def divided(g: Delta, length: Array, least: float) -> Delta:
        factor = jnp.where(length > least, 1 / jnp.where(length > least, length, 1), 0)
        return jax.tree.map(lambda leaf: leaf * norms.expand(factor, leaf), g)

    # Scaled by a constant first: in the derivative of the division the square of a tiny length would be 0.
    near = divided(gradient, jax.lax.stop_gradient(gradients.tree_norm(gradient, "l2", 1)), 1e-30)
    return divided(near, gradients.tree_norm(near, "l2", 1), 0)


def _slope(here: Here, other: Here, perturbation: Any) -> PerExample:
    gradient = _in_delta(here, perturbation)
    shapes, own = (jax.tree.map(jnp.shape, delta) for delta in (gradient, other.delta))
    if shapes != own:
        raise ValueError(f"perturbation={perturbation!r} is not the one that made the other point.")
    return perturbations.inner(gradient, other.delta)


TERMS: dict[str, Callable[..., PerExample]] = {
    f.__name__: f
    for f in (
        cross_entropy,
        gradient_norm,
        first_order_gain,
        kl_divergence,
        boosted_cross_entropy,
        weighted_kl_divergence,
        gradient_difference,
        gradient_misalignment,
        linearity_gap,
        directional_derivative,
    )  # fmt: skip
}
