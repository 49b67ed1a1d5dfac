"""Local flatness: the largest gradient norm in a neighbourhood (Xu, Li, Jiang & Xia 2020)."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from robust_jax.attacks.ascent import Ascent, ascend
from robust_jax.checks import check_images, checked_losses
from robust_jax.options import Count, Range
from robust_jax.options.signatures import checks_arguments
from robust_jax.penalties import gradient_norms
from robust_jax.penalties.gradient_norms import LossFn
from robust_jax.spaces import norms
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

StepSize = Annotated[Any, Range(least=0, tuples=True)]


@checks_arguments
def roughest(
    loss_fn: LossFn, images: Images, threat: ThreatModel, *,
    norm: Any = None, key: Key[Array, "..."], steps: Count = 40, step_size: StepSize | None = None, restarts: Count = 1,
    random_start: bool = True, scale: Any = 1.0,
) -> Ascent:  # fmt: skip
    """``argmax_{δ in ball} ‖g(T(x, δ))‖``, with g the gradient in a fresh δ at 0, by ascent on the norm itself.

    The ascent uses the exact second derivative. The best iterate is kept (δ = 0 is one of them if ``random_start`` is
    false) and clipped to [0, 1] as attacks do.

    Args:
      loss_fn: ``images -> [B]``, one loss per image.
      images: ``[B, H, W, C]`` in [0, 1].
      threat: the neighbourhood.
      norm: of the gradient; by default the dual of the threat model's.
      key: one key, or one per image.
      steps, step_size, restarts, random_start: as in `robust_jax.attacks.pgd`.
      scale: multiplies the gradient first, as in `robust_jax.gradient_norm`.

    Returns:
      The points: their ``images``, ``delta``, and ``value``, the norm there, ``[B]``.

    Raises:
      ValueError: what `local_flatness` raises.

    Example::

        found = roughest(loss_fn, images, rj.ThreatModel("additive", "linf", 0.1), key=jax.random.key(0))
    """
    check_images(images)
    check_threat(threat, images)
    chosen, loss_fn = _gradient_norm_of(threat, norm), checked_losses(loss_fn)

    def score(perturbed: Images, *_: Any) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
        gradient = jax.grad(lambda x: loss_fn(x).sum())(perturbed)
        value = gradient_norms.penalty_of(threat.perturbation, perturbed, chosen, 1, scale)(gradient)
        return value, jnp.zeros(len(images), bool)

    return ascend(
        score, images, threat, key=key, steps=steps, step_size=step_size, restarts=restarts,
        random_start=random_start, keep="highest_loss",
    )  # fmt: skip


def local_flatness(
    loss_fn: LossFn, images: Images, threat: ThreatModel, norm: Any = None, *,
    key: Key[Array, "..."], steps: int = 40, step_size: Any = None, **options: Any,
) -> Float[Array, " b"]:  # fmt: skip
    """``max_{δ in ball} ‖∂/∂δ' ℓ(T(T(x, δ), δ'))‖`` at δ' = 0, ``[B]``: LFR's penalty for any space and norm.

    `roughest` finds the point, which is a constant; the norm there is differentiable in what ``loss_fn`` closes over.
    For additive linf of radius ε and the default norm it is ``max ‖∇ℓ(x')‖₁`` over ``‖x' - x‖∞ <= ε``
    (Xu et al. 2020, eq. 6); with radius 0 the L1 norm of the gradient at x.

    Args:
      loss_fn: ``images -> [B]``, one loss per image.
      images: ``[B, H, W, C]`` in [0, 1].
      threat: the neighbourhood. Its radius does not scale the gradient.
      norm: the norm of the gradient; by default the dual of the threat model's norm.
      key: one key, or one per image.
      steps: the number of ascent steps.
      step_size: in units of δ; by default ``2.5 * radius / steps``. The paper's is 0.01 at radius 0.3.
      **options: restarts, random_start, and the options of `robust_jax.value_and_gradient_norm` except power.

    Raises:
      ValueError: a composition whose parts have different norms, without ``norm``; images outside [0, 1] or of the
        wrong rank; a loss that is not one number per image; or an option out of its range.
    """
    search: dict[str, Any] = dict(norm=norm, steps=steps, step_size=step_size, scale=options.get("scale", 1.0))
    search |= {name: options.pop(name) for name in ("restarts", "random_start") if name in options}
    found = roughest(loss_fn, images, threat, key=key, **search)
    at = jax.lax.stop_gradient(found.images)
    return gradient_norms.gradient_norm(loss_fn, at, threat.perturbation, _gradient_norm_of(threat, norm), 1, **options)


def _gradient_norm_of(threat: ThreatModel, norm: Any) -> norms.Norm:
    if norm is not None:
        return norm
    own = set(threat.norm) if threat.perturbation.parts else {threat.norm}
    if len(own) > 1:
        raise ValueError(f"norm=None: the parts' norms differ ({threat.norm}): give the norm of the gradient.")
    return norms.dual(own.pop())
