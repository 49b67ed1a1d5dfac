"""What a flow can change the loss by to first order, from the flow gradient or from the norm of the input gradient.

Xia & Li 2021: the former is the tighter bound.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from robust_jax import losses
from robust_jax.attacks.compiled import as_argument
from robust_jax.attacks.result import LogitsFn, clip_box
from robust_jax.checks import check_batch
from robust_jax.evaluation.landscapes import loss_gradients
from robust_jax.losses import LossFn
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import norms, perturbations, threat_models
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.flow import flow
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import differences


class FlowBounds(NamedTuple):
    """The largest change of the loss by a flow of the ball, to first order, and what it is compared with.

    Attributes:
      flow: ``[B]``, that change, from the flow gradient on both sides of δ = 0: it is attained.
      image: ``[B]``, an upper bound from the norm of the input gradient.
      forward: ``[B]``, the radius times the dual norm of the flow gradient on the forward side alone, which FGR
        penalises; it may be smaller or larger than ``flow``, as it takes the other side for its mirror image.
    """

    flow: Float[Array, " b"]
    image: Float[Array, " b"]
    forward: Float[Array, " b"]


@checks_arguments
def flow_bounds(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel,
    loss: str | LossFn = losses.cross_entropy,
) -> FlowBounds:  # fmt: skip
    """What flows of a ball can change the loss by, to first order, from the flow and from the input gradient.

    With g the input gradient and J(δ) the derivative of the warped image at 0 in the direction δ::

        flow  =  max_{δ in ball} <g, J(δ)>  <=  image  =  ‖g‖₂ max_{δ in ball} ‖J(δ)‖₂

    The first knows where in the image the loss is steep, as the flow gradient does that FGR makes small; the second
    only how steep it is, as input-gradient regularisation does, and follows by Cauchy and Schwarz. This is how we read
    the claim of Xia & Li (2021) that flow gradients give the tighter bound. A bilinear warp has a kink at 0: along each
    axis J is the forward difference of the image for positive δ, and the backward one for negative δ.

    Both are bounds of the linearised loss. The loss is curved, so that a real change may exceed them.

    Args:
      logits_fn: any JAX function of images.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: ``[B]``, the true classes.
      threat: flows, of norm linf or l2, with one number as the radius.
      loss: ``(logits, labels) -> [B]``, or the name of one of the library.

    Raises:
      ValueError: another threat model.
    """
    known = {np.inf: "linf", 2.0: "l2"}
    norm = known.get(norms.exponent(threat.norm) or 0) if threat.perturbation is flow else None
    if norm is None or np.ndim(threat.radius):
        raise ValueError(
            f"flow_bounds: {threat.perturbation.name} in {threat.norm} of radius {threat.radius} has no closed form "
            f"here: give ThreatModel('flow', 'linf' or 'l2', a number)."
        )
    gradients = loss_gradients(logits_fn, images, labels, loss)
    ahead, behind = _sides(images)
    gains = [(gradients.image * side).sum(-1) for side in (*ahead, *behind)]
    steepest = jnp.maximum(jnp.maximum(jnp.stack(gains[:2], -1), -jnp.stack(gains[2:], -1)), 0)
    stretch = _stretch(ahead, behind, norm) * jnp.asarray(threat.radius)
    return FlowBounds(
        threat_models.gain(threat, steepest),
        norms.norm(gradients.image, "l2") * stretch,
        threat_models.gain(threat, gradients.flow),
    )


def _sides(images: Images) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The forward and the backward differences of the images, (down, across) each; 0 at the border."""
    ahead, mean = differences(images), differences(images, "symmetric")
    return ahead, (2 * mean[0] - ahead[0], 2 * mean[1] - ahead[1])


def _stretch(ahead: tuple[Array, Array], behind: tuple[Array, Array], norm: str) -> Float[Array, " b"]:
    """``max ‖J(δ)‖₂`` over flows of norm 1: a pixel changes by its own vector, in one of four quadrants, alone."""

    def quadrant(down: Array, across: Array) -> Array:
        a, b, c = (down * down).sum(-1), (down * across).sum(-1), (across * across).sum(-1)
        if norm == "linf":
            return a + c + 2 * jnp.maximum(b, -jnp.minimum(a, c) / 2)  # (1, 1), or one axis alone
        largest = (a + c) / 2 + jnp.sqrt(((a - c) / 2) ** 2 + b**2)  # the larger eigenvalue of JᵀJ
        return jnp.where(b > 0, largest, jnp.maximum(a, c))  # whose vector is in the quadrant only if b > 0

    pixels = jnp.stack([quadrant(d, r) for d in (ahead[0], -behind[0]) for r in (ahead[1], -behind[1])]).max(0)
    return jnp.sqrt(pixels.sum((1, 2)) if norm == "linf" else pixels.max((1, 2)))


@checks_arguments
def loss_change(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, delta: Delta,
    loss: str | LossFn = losses.cross_entropy,
) -> Float[Array, " b"]:  # fmt: skip
    """``ℓ(T(x, δ)) - ℓ(x)``, with images clipped to [0, 1], per image."""
    check_batch(images, labels, logits_fn)
    check_threat(threat, images)
    perturbations.check_delta(threat.perturbation, images, delta=delta)
    return _change(as_argument(logits_fn), images, labels, threat, delta, loss)


@partial(jax.jit, static_argnames="loss")
def _change(logits_fn: Any, images: Any, labels: Any, threat: ThreatModel, delta: Any, loss: Any) -> Array:
    moved, loss = clip_box(threat.perturbation.apply(images, delta)), losses.get(loss)
    return loss(logits_fn(moved), labels) - loss(logits_fn(images), labels)


def shares_within(change: Float[Array, " b"], bounds: FlowBounds) -> dict[str, float]:
    """The fractions of images whose loss changed by no more than each bound, and the bounds' median ratios."""
    flow_bound, image_bound, forward = (np.asarray(bound, float) for bound in bounds)
    changed, steep = np.asarray(change), flow_bound > 0

    def median_ratio(one: np.ndarray) -> float:
        return float(np.median(one[steep] / flow_bound[steep])) if steep.any() else float("nan")

    return {
        "within the flow bound": float((changed <= flow_bound).mean()),
        "within the image bound": float((changed <= image_bound).mean()),
        "median of image / flow": median_ratio(image_bound),
        "median of forward / flow": median_ratio(forward),
    }
