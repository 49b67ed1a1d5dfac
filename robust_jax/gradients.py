"""Norms of loss gradients over a perturbation space, and three ways to differentiate them in the parameters.

With ``g = ∂/∂δ Σ_i ℓ_i(T(x, δ))`` at δ = 0, ``φ(g_i) = ‖g_i‖^power``, homogeneous of degree k = power, and
``u = stop_gradient(∇φ(g))``: ``∇_θ φ(g) = ∇_θ <g, u>`` exactly, while ``<g, u> = k φ`` in value. With ``v = J u`` the
direction in image space (J the transpose of the pullback), ``<g, u>`` is the derivative of ℓ along v.

- ``double_backprop`` differentiates φ(g) itself: reverse over reverse, the cheapest where the classification loss
  shares the pass (6 forward-equivalents against 3 of a plain step).
- ``directional`` differentiates ``jvp(ℓ, v)``: reverse over forward, exact too, 7 forward-equivalents.
- ``finite_difference`` differentiates ``‖v‖ (ℓ(x + h v / ‖v‖) - ℓ(x)) / h`` (Finlay & Oberman 2019), 7 too, with no
  second derivative of the model. Errors, relative to the direction's length: ``h/2 |∂_θ ∂²_v̂ ℓ|`` from truncation (in a
  smooth model), plus about ``ε_machine |∇_θ ℓ| / h`` from rounding. ‖v‖ is the batch's largest, and no example moves
  further than h. In a ReLU network a kink crossed within h costs O(1), so h must be small: on a digits CNN in float32
  the default 1e-4 was seen 3% off, 1e-2 off by more than the gradient itself. That O(1) comes seldom and then 1 / h
  times too large: train with ``optimizer.clip_norm`` (seen with Adam: a penalty that ends at 0.3 without, at 2e-5 with
  it and by double backpropagation at 1e-3). Not for bfloat16.

Gradients are of the SUM of the losses: where examples are not coupled, example i's norm is of its own loss,
whatever the batch. Under train-mode BatchNorm only the batch mean of a penalty is meaningful.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax import norms, perturbations, threat_models
from robust_jax.perturbations import Delta, Images, Perturbation
from robust_jax.threat_models import ThreatModel

LossFn = Callable[[Images], Float[Array, " b"]]

METHODS = ("double_backprop", "directional", "finite_difference")


def value_and_gradient(
    loss_fn: Callable[[Images], Any], images: Images, has_aux: bool = False
) -> tuple[Float[Array, " b"], Images, Any]:
    """Losses ``[B]``, the gradient of their sum in the images, and aux (None without ``has_aux``); one pass."""

    def total(x: Images) -> tuple[Array, tuple[Array, Any]]:
        loss, aux = loss_fn(x) if has_aux else (loss_fn(x), None)
        if loss.shape != images.shape[:1]:
            raise ValueError(
                f"loss_fn must return one loss an image, [{len(images)}]; it returned {loss.shape}, no mean."
            )
        return loss.sum(), (loss, aux)

    gradient, (loss, aux) = jax.grad(total, has_aux=True)(images)
    return loss, gradient, aux


def tree_norm(gradient: Delta, norm: norms.Norm, power: float) -> Float[Array, " b"]:
    """The norm of a gradient; for a composition that of all its parts' entries together."""
    leaves = jax.tree.leaves(gradient)
    if len(leaves) == 1:
        return norms.norm(leaves[0], norm, power)
    if norms.exponent(norm) is None:
        raise ValueError(f"norm={norm!r} is of single vectors, a composition has none: use an l_p norm.")
    return norms.norm(jnp.concatenate([g.reshape(len(g), -1) for g in leaves], 1), norm, power)


def norm_of_gradient(
    loss_fn: LossFn,
    images: Images,
    gradient: Images,
    penalty: Callable[[Images], Float[Array, " b"]],
    method: str = "double_backprop",
    step: float = 1e-4,
) -> Float[Array, " b"]:
    """``penalty(gradient)`` with its parameter gradient by the given method, see the module's docstring.

    Args:
      loss_fn: ``images -> [B]``, whose gradient ``gradient`` is.
      images: where; constants.
      gradient: ``∂ Σ loss / ∂ images`` there, differentiable in the parameters.
      penalty: ``image gradient -> [B]``, such as a norm of its pullback.
      method: one of `METHODS`.
      step: h of finite_difference, the L2 length in image space of the batch's longest direction.

    Raises:
      ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {list(METHODS)}.")
    if method == "double_backprop":
        return penalty(gradient)
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
    """The function ``image gradient -> ‖scale * pullback‖^power`` at these images, for `norm_of_gradient`."""

    def penalty(gradient: Images) -> Float[Array, " b"]:
        pulled = perturbations.pullback(perturbation, images, gradient)
        scales = scale if perturbation.parts and isinstance(scale, tuple | list) else None
        if scales is None:
            scaled = jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), pulled)
        else:
            scaled = tuple(g * jnp.asarray(s, g.dtype) for g, s in zip(pulled, scales, strict=True))
        return tree_norm(scaled, norm, power)

    return penalty


def value_and_gradient_norm(
    loss_fn: Callable[[Images], Any],
    images: Images,
    perturbation: Any,
    norm: norms.Norm = "l2",
    power: float = 2,
    method: str = "double_backprop",
    has_aux: bool = False,
    scale: Any = 1.0,
    step: float = 1e-4,
) -> Any:
    """The loss and ``‖scale * ∂/∂δ ℓ(T(x, δ), y)‖^power`` at δ = 0, per example, in one shared pass.

    Differentiable in what ``loss_fn`` closes over, by any of the three methods of the module's docstring. ``images``
    are constants: a penalty's gradient does not flow into them.

    Args:
      loss_fn: ``images -> [B]``, one loss an image; with ``has_aux`` ``images -> ([B], aux)``.
      images: ``[B, H, W, C]``.
      perturbation: a name, a `Perturbation`, or a tuple (composition: the norm is of all parts' entries together).
      norm: of the gradient: "l1", "l2", "linf", a number p >= 1, for flows "l21" and "l2inf".
      power: the norm is raised to it.
      method: "double_backprop", "directional" or "finite_difference".
      has_aux: whether ``loss_fn`` returns auxiliary output.
      scale: units of δ, a number or one that broadcasts to δ's last axis (for a composition also a tuple, one
        a part); the gradient is multiplied by it, as by a threat model's radius.
      step: h of "finite_difference": the L2 distance that the batch's longest direction is moved in image space.

    Returns:
      ``(loss [B], norm [B])``, with ``has_aux`` ``(loss, norm, aux)``. Units: loss per unit of δ, to the power.

    Raises:
      ValueError: an unknown name, or a loss that is not one number an image.
    """
    images = jax.lax.stop_gradient(images)
    loss, gradient, aux = value_and_gradient(loss_fn, images, has_aux)
    penalty = penalty_of(perturbations.get(perturbation), images, norm, power, scale)
    plain = (lambda x: loss_fn(x)[0]) if has_aux else loss_fn
    value = norm_of_gradient(plain, images, gradient, penalty, method, step)
    return (loss, value, aux) if has_aux else (loss, value)


def gradient_norm(
    loss_fn: LossFn, images: Images, perturbation: Any, norm: norms.Norm = "l2", power: float = 2, **options: Any
) -> Float[Array, " b"]:
    """``‖∂/∂δ ℓ(T(x, δ), y)‖^power`` at δ = 0, ``[B]``; see `value_and_gradient_norm`."""
    return value_and_gradient_norm(loss_fn, images, perturbation, norm, power, **options)[1]


def _in_delta(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Delta:
    return perturbations.pullback(threat.perturbation, images, value_and_gradient(loss_fn, images)[1])


def first_order_gain(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Float[Array, " b"]:
    """``max_{δ in ball} <∂ℓ/∂δ, δ>``, the loss an adversary gains to first order: radius times the dual norm.

    ``[B]``, in units of the loss, differentiable in what ``loss_fn`` closes over. For additive l_p it is
    ``σ ‖∇ℓ‖_{p*}`` (Lyu et al. 2015, eq. 8); for a composition the sum over its parts.
    """
    return threat_models.gain(threat, _in_delta(loss_fn, images, threat))


def steepest(loss_fn: LossFn, images: Images, threat: ThreatModel) -> Delta:
    """``argmax_{δ in ball} <∂ℓ/∂δ, δ>``: FGSM for linf, Lyu et al. (2015) eq. 9 for l_p; 0 where the gradient is."""
    return threat_models.steepest(threat, _in_delta(loss_fn, images, threat))
