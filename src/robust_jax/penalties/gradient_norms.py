"""Norms of loss gradients over a perturbation space, and three ways to differentiate them in the parameters.

With ``g = ∂/∂δ Σ_i ℓ_i(T(x, δ))`` at δ = 0, ``φ(g_i) = ‖g_i‖^power``, homogeneous of degree k = power, and
``u = stop_gradient(∇φ(g))``: ``∇_θ φ(g) = ∇_θ <g, u>`` exactly, while ``<g, u> = k φ`` in value. With ``v = J u`` the
direction in image space (J the transpose of the pullback), ``<g, u>`` is the derivative of ℓ along v.

- ``double_backprop`` differentiates φ(g) itself: reverse over reverse, the cheapest where the classification loss
  shares the pass (6 forward-equivalents against 3 of a plain step).
- ``directional`` differentiates ``jvp(ℓ, v)``: reverse over forward, exact too, 7 forward-equivalents, and with a
  classification loss, whose backward pass is not shared, 9, of which XLA finds one twice and computes 8.
- ``finite_difference`` differentiates ``‖v‖ (ℓ(x + h v / ‖v‖) - ℓ(x)) / h`` (Finlay & Oberman 2019), 7 and 9, with no
  second derivative of the model. Errors, relative to the direction's length: ``h/2 |∂_θ ∂²_v̂ ℓ|`` from
  truncation (in a smooth model), plus about ``ε_machine |∇_θ ℓ| / h`` from rounding. ‖v‖ is the batch's largest, and no
  example moves further than h. In a ReLU network crossing a kink within h causes an error of O(1), so h must be small:
  on a digits CNN in float32 the error was 3% with the default 1e-4, and larger than the gradient with 1e-2. Such errors
  are rare but 1 / h times too large, so train with ``optimizer.clip_norm`` (with Adam, a penalty ended at 0.3 without
  it, at 2e-5 with it, and at 1e-3 by double backpropagation). Not for half precision.

Gradients are those of the SUM of the losses: unless examples are coupled, example i's norm is that of its own loss,
whatever the batch. Under train-mode BatchNorm only the batch mean of a penalty is meaningful.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from robust_jax.checks import check_images, checked_losses
from robust_jax.extensions import choose
from robust_jax.options import Positive, Range
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import norms, perturbations, registry, threat_models
from robust_jax.spaces.checks import check_layout, check_space, check_threat
from robust_jax.spaces.per_example import value_and_gradient
from robust_jax.spaces.perturbations import Delta, Images, Perturbation
from robust_jax.spaces.threat_models import ThreatModel

LossFn = Callable[[Images], Float[Array, " b"]]

Method = Literal["double_backprop", "directional", "finite_difference"]
METHODS: tuple[Method, ...] = get_args(Method)


def tree_norm(gradient: Delta, norm: norms.Norm, power: float) -> Float[Array, " b"]:
    """``‖gradient‖^power`` per example; for a composition the norm of all parts' entries together."""
    leaves = jax.tree.leaves(gradient)
    if len(leaves) == 1:
        return norms.norm(leaves[0], norm, power)
    if norms.exponent(norm) is None:
        raise ValueError(f"norm={norm!r} is of vectors; the gradient of a composition has none: use an l_p norm.")
    return norms.norm(jnp.concatenate([g.reshape(len(g), -1) for g in leaves], 1), norm, power)


def norm_of_gradient(
    loss_fn: LossFn,
    images: Images,
    gradient: Images,
    penalty: Callable[[Images], Float[Array, " b"]],
    method: Method = "double_backprop",
    step: float = 1e-4,
) -> Float[Array, " b"]:
    """``penalty(gradient)``, whose gradient in the parameters is computed by a method of the module's docstring.

    Args:
      loss_fn: ``images -> [B]``.
      images: ``[B, H, W, C]``, constants.
      gradient: ``∂ Σ loss_fn(images) / ∂ images``, differentiable in the parameters.
      penalty: ``image gradient -> [B]``, such as a norm of its pullback.
      method: one of `METHODS`.
      step: h of "finite_difference": how far, in L2 length in image space, the batch's longest direction is followed.

    Raises:
      ValueError: an unknown method, or finite differences of images in half precision.
    """
    choose("method", method, METHODS)
    if method == "double_backprop":
        return penalty(gradient)
    if method == "finite_difference" and images.dtype.itemsize < 4:
        raise ValueError(
            f"method=finite_difference moves images by {step:g}, which is rounded away in {images.dtype}: give float32 "
            f"images, or another method."
        )
    gradient = jax.lax.stop_gradient(gradient)
    # The penalty's derivative in the image gradient is J u: autodiff transposes the pullback itself.
    (_, value), direction = jax.value_and_grad(lambda g: ((p := penalty(g)).sum(), p), has_aux=True)(gradient)
    direction = jax.lax.stop_gradient(direction)
    if method == "directional":
        surrogate = jax.jvp(loss_fn, (images,), (direction,))[1]
    else:
        # One scale for the batch: examples coupled by BatchNorm must move in proportion to their own direction.
        length = norms.norm(direction, "l2").max()
        unit = direction / jnp.where(length > 0, length, 1)
        surrogate = length * (loss_fn(images + step * unit) - loss_fn(images)) / step
    return jax.lax.stop_gradient(value) + surrogate - jax.lax.stop_gradient(surrogate)


def penalty_of(
    perturbation: Perturbation, images: Images, norm: norms.Norm, power: float, scale: Any
) -> Callable[[Images], Float[Array, " b"]]:
    """``image gradient -> ‖scale * pullback‖^power`` at these images: a penalty for `norm_of_gradient`."""

    def penalty(gradient: Images) -> Float[Array, " b"]:
        pulled = perturbations.pullback(perturbation, images, gradient)
        per_part = perturbation.parts and isinstance(scale, tuple | list)
        leaves = jax.tree.leaves(pulled)
        scales = scale if per_part else [scale] * len(leaves)
        if len(scales) != len(leaves) or not all(
            perturbations.broadcasts(np.shape(s), g.shape) for s, g in zip(scales, leaves, strict=True)
        ):
            raise ValueError(f"scale={scale!r} does not fit δ of {perturbation.name}, {[g.shape for g in leaves]}.")
        scaled = [g * jnp.asarray(s, g.dtype) for g, s in zip(leaves, scales, strict=True)]
        scaled = jax.tree.unflatten(jax.tree.structure(pulled), scaled)
        return tree_norm(scaled, norm, power)

    return penalty


@checks_arguments
def value_and_gradient_norm(
    loss_fn: Callable[[Images], Any],
    images: Images,
    perturbation: Any,
    norm: norms.Norm = "l2",
    power: Positive = 2,
    method: Method = "double_backprop",
    has_aux: bool = False,
    scale: Annotated[Any, Range(tuples=True)] = 1.0,
    step: Positive = 1e-4,
) -> Any:
    """The loss and ``‖scale * ∂/∂δ ℓ(T(x, δ), y)‖^power`` at δ = 0, per example, in one shared pass.

    Both are differentiable in what ``loss_fn`` closes over; the penalty by any of the three methods of the module's
    docstring. ``images`` are constants: no gradient flows into them.

    Args:
      loss_fn: ``images -> [B]``, one loss per image; with ``has_aux`` ``images -> ([B], aux)``.
      images: ``[B, H, W, C]``.
      perturbation: a name, a `Perturbation`, or a tuple for their composition, whose parts' entries share one norm.
      norm: the norm of the gradient: "l1", "l2", "linf", a number p >= 1, or for flows "l21" or "l2inf".
      power: the power of the norm.
      method: "double_backprop", "directional" or "finite_difference".
      has_aux: whether ``loss_fn`` returns auxiliary output.
      scale: the gradient is multiplied by it, as by a threat model's radius: in units of δ, a number or an array that
        broadcasts to δ's last axis; for a composition also a tuple with one per part.
      step: h of "finite_difference": the L2 distance in image space by which the batch's longest direction moves.

    Returns:
      ``(loss [B], norm [B])``, with ``has_aux`` ``(loss, norm, aux)``. The norm's unit is loss per unit of δ, to the
      power.

    Raises:
      ValueError: an unknown name, images that are no floats ``[B, H, W, C]`` or whose channels seem to come first, a
        loss that is not one number per image, or a number out of range.

    Example::

        loss, penalty = value_and_gradient_norm(loss_fn, images, "flow", norm="l2", power=2)   # FGR
        total = loss.mean() + 1.47 * penalty.mean()
    """
    space = registry.get(perturbation)
    loss_fn = _checked(loss_fn, images, space, has_aux)
    images = jax.lax.stop_gradient(images)
    loss, gradient, aux = value_and_gradient(loss_fn, images, has_aux)
    penalty = penalty_of(space, images, norm, power, scale)
    plain = (lambda x: loss_fn(x)[0]) if has_aux else loss_fn
    value = norm_of_gradient(plain, images, gradient, penalty, method, step)
    return (loss, value, aux) if has_aux else (loss, value)


def gradient_norm(
    loss_fn: LossFn, images: Images, perturbation: Any, norm: norms.Norm = "l2", power: float = 2,
    method: Method = "double_backprop", scale: Any = 1.0, step: float = 1e-4,
) -> Float[Array, " b"]:  # fmt: skip
    """``‖scale * ∂/∂δ ℓ(T(x, δ), y)‖^power`` at δ = 0, ``[B]``, without the loss.

    Arguments and errors are those of `value_and_gradient_norm`.

    Example::

        sharpness = gradient_norm(loss_fn, images, "additive", norm="l1", power=1)   # ‖∇ℓ‖₁ of each image
    """
    return value_and_gradient_norm(loss_fn, images, perturbation, norm, power, method, False, scale, step)[1]


def _checked(loss_fn: Any, images: Any, space: Perturbation, has_aux: bool = False) -> Callable[[Images], Any]:
    """The loss_fn, which raises ValueError unless it returns ``[B]``, for images that fit the perturbation."""
    check_images(images, in_box=False)
    check_layout(space, images)
    check_space(space, images)
    return checked_losses(loss_fn, has_aux)


def _in_delta(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Delta:
    check_images(images, in_box=False)
    check_threat(threat, images)
    loss_fn = checked_losses(loss_fn)
    return perturbations.pullback(threat.perturbation, images, value_and_gradient(loss_fn, images)[1])


def first_order_gain(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Float[Array, " b"]:
    """``max_{δ in ball} <∂ℓ/∂δ, δ>``, the increase of the loss that an adversary can cause to first order, ``[B]``.

    It is the radius times the dual norm of the gradient, in units of the loss, and differentiable in what ``loss_fn``
    closes over. For additive l_p it is ``σ ‖∇ℓ‖_{p*}`` (Lyu et al. 2015, eq. 8); for a composition the sum over its
    parts. Over flows and affine maps, which have a kink at δ = 0, the derivative is the forward one, and the true
    increase may be smaller or larger, see `robust_jax.evaluation.flow_bounds`.

    Args:
      loss_fn: ``images -> [B]``, one loss per image.
      images: ``[B, H, W, C]``, constants.
      threat: perturbation, norm, and radius, the σ.

    Raises:
      ValueError: images that are no floats ``[B, H, W, C]`` or do not fit the threat model; a loss that is not one
        number per image.

    Example::

        gain = first_order_gain(loss_fn, images, rj.ThreatModel("additive", "linf", 8 / 255))   # 8/255 ‖∇ℓ‖₁
    """
    return threat_models.gain(threat, _in_delta(loss_fn, images, threat))


def steepest(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Delta:
    """``argmax_{δ in ball} <∂ℓ/∂δ, δ>``: FGSM for linf, Lyu et al. (2015) eq. 9 for l_p; 0 where the gradient is 0.

    Arguments and errors are those of `first_order_gain`; returns a δ of the perturbation for each image. Images are not
    clipped: attacks do.

    Example::

        delta = steepest(loss_fn, images, rj.ThreatModel("flow", "l2inf", 0.25))   # [B, H, W, 2], in pixels
    """
    return threat_models.steepest(threat, _in_delta(loss_fn, images, threat))
