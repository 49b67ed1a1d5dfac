"""Terms of a training objective: ``(point, *, options) -> [B]``, one number per example at a point.

Keyword-only parameters are the options of a config. An option of type `PointOutput` names another point, for terms that
compare two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from robust_jax import losses
from robust_jax.objectives.define import marked, term
from robust_jax.objectives.inputs import Labels, Mode, Scale
from robust_jax.options import Positive, Range
from robust_jax.penalties import gradient_norms
from robust_jax.penalties.gradient_norms import Method
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.norms import Norm
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.registry import Space
from robust_jax.spaces.threat_models import Threat

PerExample = Float[Array, " b"]


class PointOutput(NamedTuple):
    """A point with the model run on it, in one pass that all terms share.

    Attributes:
      images: the point, constants.
      delta: the δ that turned the clean images into it, if there is one.
      labels: the true classes ``[B]``, or soft ones ``[B, K]`` of a term that takes them.
      logits: those of the model, in the term's mode: train unless its ``batch_norm`` is eval.
      loss: the cross-entropy of each example.
      gradient: that of the sum of the losses in the images, differentiable in the parameters.
      loss_fn: ``images -> [B]``, for terms that evaluate the loss at other images.
    """

    images: Images
    delta: Delta | None
    labels: Labels
    logits: Float[Array, "b k"]
    loss: PerExample
    gradient: Images
    loss_fn: Callable[[Images], PerExample]


def every_term(
    *, at: str = "clean", weight: Annotated[float, Range(schedule=True)] = 1.0, batch_norm: Mode = "train"
) -> None:
    """The options of every term, besides its own: the point's name, the weight in the objective, and the model's mode.

    In eval mode BatchNorm takes its running statistics, dropout is off, and examples do not depend on each other.
    """


@term(classifies=True, soft_labels=True)
def cross_entropy(
    point: PointOutput, *, label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
) -> PerExample:
    """The classification loss, ``-Σ_k q_k log softmax(z)_k``, q smoothed towards uniform by ``label_smoothing``."""
    if not label_smoothing:
        return point.loss
    soft = point.labels.ndim > 1
    targets = point.labels if soft else jax.nn.one_hot(point.labels, point.logits.shape[-1])
    return optax.softmax_cross_entropy(point.logits, optax.smooth_labels(targets, label_smoothing))


@term(soft_labels=True)
def gradient_norm(
    point: PointOutput, *, perturbation: Space, norm: Norm = "l2", power: Positive = 2.0, scale: Scale = 1.0,
    method: Method = "double_backprop", step: Positive = 1e-4,
) -> PerExample:  # fmt: skip
    """``‖scale * ∂/∂δ ℓ(T(x, δ))‖^power`` at δ = 0: FGR for flows, Ross & Doshi-Velez (2018) for additive.

    See `robust_jax.value_and_gradient_norm` for the options.
    """
    penalty = gradient_norms.penalty_of(perturbation, point.images, norm, power, scale)
    return gradient_norms.norm_of_gradient(point.loss_fn, point.images, point.gradient, penalty, method, step)


@term(soft_labels=True)
def first_order_gain(
    point: PointOutput, *, threat: Threat, method: Method = "double_backprop", step: Positive = 1e-4,
) -> PerExample:  # fmt: skip
    """``max_{δ in ball} <∂ℓ/∂δ, δ>``, the exact penalty of Lyu et al. (2015): radius times the dual norm."""

    def penalty(gradient: Images) -> PerExample:
        space = threat.perturbation
        return threat_models.gain(threat, perturbations.pullback(space, point.images, gradient))

    return gradient_norms.norm_of_gradient(point.loss_fn, point.images, point.gradient, penalty, method, step)


@term(soft_labels=True)
def kl_divergence(point: PointOutput, *, reference: PointOutput) -> PerExample:
    """``KL(f(reference) ‖ f(point))``: TRADES (Zhang et al. 2019), `point` attacked and `reference` clean."""
    return losses.kl_divergence(point.logits, reference.logits)


@term(classifies=True)
def boosted_cross_entropy(point: PointOutput) -> PerExample:
    """``-log p_y - log(1 - max_{k != y} p_k)`` (MART, Wang et al. 2020, eq. 8)."""
    own = jax.nn.one_hot(point.labels, point.logits.shape[-1], dtype=bool)
    # log(1 - p_k) = log of the sum of the others' probabilities, which does not cancel where p_k is near 1.
    others = jnp.where(own, -jnp.inf, jax.lax.stop_gradient(point.logits)).argmax(-1)
    rest = jnp.where(jax.nn.one_hot(others, point.logits.shape[-1], dtype=bool), -jnp.inf, point.logits)
    return point.loss + jax.nn.logsumexp(point.logits, -1) - jax.nn.logsumexp(rest, -1)


@term
def weighted_kl_divergence(point: PointOutput, *, reference: PointOutput) -> PerExample:
    """``KL(f(reference) ‖ f(point)) (1 - p_y(reference))``: MART's regulariser (Wang et al. 2020, eq. 9)."""
    return kl_divergence(point, reference=reference) * -jnp.expm1(-reference.loss)


@term(soft_labels=True)
def gradient_difference(
    point: PointOutput, *, other: PointOutput, perturbation: Space, norm: Norm = "l2", power: Positive = 2.0
) -> PerExample:
    """``‖g(other) - g(point)‖^power``, g the gradient in a fresh δ at 0.

    CURE (Moosavi-Dezfooli et al. 2019, eq. 5), with `other` a short step along the gradient's sign.
    """
    difference = jax.tree.map(jnp.subtract, _in_delta(other, perturbation), _in_delta(point, perturbation))
    return gradient_norms.tree_norm(difference, norm, power)


@term(soft_labels=True)
def gradient_misalignment(point: PointOutput, *, other: PointOutput, perturbation: Space) -> PerExample:
    """``1 - cos(g(point), g(other))``, 1 where one is 0 (GradAlign, Andriushchenko & Flammarion 2020, eq. 5)."""
    one, two = _unit(_in_delta(point, perturbation)), _unit(_in_delta(other, perturbation))
    return 1 - per_example.inner(one, two)


@term(soft_labels=True)
def linearity_gap(point: PointOutput, *, other: PointOutput, perturbation: Space) -> PerExample:
    """``|ℓ(T(x, δ)) - ℓ(x) - <∂ℓ/∂δ, δ>|``, δ that of the point `other` (LLR, Qin et al. 2019, eq. 7)."""
    return jnp.abs(other.loss - point.loss - _slope(point, other, perturbation))


@term(soft_labels=True)
def directional_derivative(point: PointOutput, *, other: PointOutput, perturbation: Space) -> PerExample:
    """``|<∂ℓ/∂δ, δ>|``, δ that of the point `other`: the second regulariser of LLR (Qin et al. 2019, eq. 7)."""
    return jnp.abs(_slope(point, other, perturbation))


def _in_delta(point: PointOutput, perturbation: Space) -> Delta:
    return perturbations.pullback(perturbation, point.images, point.gradient)


def _unit(gradient: Delta) -> Delta:
    """``g / ‖g‖₂``, 0 where ``‖g‖ < 1e-30``, beyond which nothing can be divided by it."""

    def divided(g: Delta, length: Array, least: float) -> Delta:
        factor = jnp.where(length > least, 1 / jnp.where(length > least, length, 1), 0)
        return per_example.times(factor, g)

    # Scaled by a constant first: in the derivative of the division the square of a tiny length would be 0.
    near = divided(gradient, jax.lax.stop_gradient(gradient_norms.tree_norm(gradient, "l2", 1)), 1e-30)
    return divided(near, gradient_norms.tree_norm(near, "l2", 1), 0)


def _slope(point: PointOutput, other: PointOutput, perturbation: Space) -> PerExample:
    gradient = _in_delta(point, perturbation)
    if point.delta is not None:
        raise ValueError("at: the point other was found from the clean images: give a point that does not move them.")
    shapes, own = (jax.tree.map(jnp.shape, delta) for delta in (gradient, other.delta))
    if shapes != own:
        raise ValueError(
            f"perturbation={perturbation.name!r} is not the one that made the other point: give its perturbation, and "
            f"a point other than the clean images."
        )
    return per_example.inner(gradient, other.delta)


TERMS: dict[str, Callable[..., PerExample]] = marked(globals(), "term")
