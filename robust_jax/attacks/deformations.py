"""Smooth deformations: stAdv (Xiao et al. 2018) and ADef (Alaifari et al. 2019).

Both look for a small smooth field, not for the worst in a ball: the threat model's radius is their unit and bound, see
`robust_jax.attacks.deepfool`. They take "flow", and any other perturbation whose δ is a field ``[B, H, W, V]``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses, perturbations, threat_models
from robust_jax.attacks.ascent import Point, best_of, clip_box, crossed
from robust_jax.attacks.deepfool import check_search, minimal_step
from robust_jax.attacks.lbfgs import minimise
from robust_jax.attacks.minimal import found_or_clean
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.checks import check_batch
from robust_jax.perturbations import Images, example_keys
from robust_jax.threat_models import ThreatModel

Field = Float[Array, "b h w v"]

SMOOTHING = 0.01
"""Below this length differences between neighbours count as their square in `total_variation`."""


def total_variation(field: Field) -> Float[Array, " b"]:
    """``Σ_p Σ_{q in N4(p)} sqrt(‖δ_p - δ_q‖² + ε²) - ε``, per example (Xiao et al. 2018, eq. 4), ε = `SMOOTHING`.

    Every pair of neighbours counts twice, as in the paper; ε is what makes it differentiable at a constant field.
    """

    def lengths(difference: Array) -> Array:
        squared = jnp.square(difference).sum(-1)
        # sqrt(s + ε²) - ε, without losing the digits of a small s.
        return (squared / (jnp.sqrt(squared + SMOOTHING**2) + SMOOTHING)).sum((1, 2))

    return 2 * (lengths(field[:, 1:] - field[:, :-1]) + lengths(field[:, :, 1:] - field[:, :, :-1]))


def stadv(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    smoothness: float = 0.01,
    confidence: float = 0.0,
    start: float = 0.01,
    targeted: bool = False,
) -> AttackResult:
    """Spatially transformed adversarial examples (Xiao et al. 2018): a smooth flow by L-BFGS.

    Minimises ``max(f(T(x, δ)), -confidence) + smoothness * total_variation(δ)`` (eqs. 2 to 4), f the lead of the
    label's logit over the largest other one (targeted: of the largest other logit over the target's). The paper sets no
    bound: give a large radius for its success rate and flow sizes (``radius * threat_models.size(threat, delta)``).
    Each point of L-BFGS is projected into the ball and tried, and of the successes that of the least objective is
    returned.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "flow", or another perturbation with δ ``[B, H, W, V]``; norm and radius.
      key: one key, or one an image ``[B]``, of the start.
      steps: points of L-BFGS tried, those of its line searches too, a gradient each.
      smoothness: the paper's τ, in logits a pixel of flow. It has 0.05, with which a little trained SmallCNN on MNIST
        was fooled in half of the images only, with 0.01 in all, by flows 5% longer.
      confidence: the paper's κ, in logits: by how much the label is to be beaten.
      start: standard deviation of the first flow, in units of δ. At 0 exactly bilinear sampling has a kink.
      targeted: whether labels are targets.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), a δ that is no
        field, or an impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    check_field("stadv", threat, images)
    if steps < 1 or not min(smoothness, confidence, start) >= 0:
        raise ValueError(
            f"stadv: steps={steps}, smoothness={smoothness}, confidence={confidence}, start={start}: steps must be at "
            f"least 1, the others not negative."
        )
    space = threat.perturbation

    def objective(field: Field) -> Array:
        logits = logits_fn(clip_box(space.apply(images, field)))
        lead = losses.margin(logits, labels) * (1 if targeted else -1)
        return jnp.maximum(lead, -confidence) + smoothness * total_variation(field)

    def visit(field: Field, value: Array, best: Point) -> Point:
        field = threat_models.project(threat, jnp.nan_to_num(field))
        logits = logits_fn(clip_box(space.apply(images, field)))
        return best_of(Point(field, -value, crossed(logits, labels, targeted)), best)

    first = perturbations.gaussian_delta(space, example_keys(key, len(images)), images, start)
    # A clean image that succeeds is better than any other, one that does not is worse.
    there = losses.misclassified(logits_fn(images), labels) != targeted
    clean = Point(space.zeros(images), jnp.where(there, jnp.inf, -jnp.inf), there)
    best = minimise(objective, first, steps, visit, clean)
    return found_or_clean(threat, images, best.delta, best.success)


def smoothed(field: Field, sigma: float) -> Field:
    """The field convolved with a Gaussian of ``sigma`` pixels, zero beyond the border: linear and its own transpose."""

    def kernel(size: int) -> Array:
        offset = jnp.arange(size)
        weights = jnp.exp(-0.5 * jnp.square((offset[:, None] - offset) / sigma))
        reach = math.ceil(6 * sigma)
        return weights / sum(math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1))

    if not sigma:
        return field
    rows, columns = (kernel(size).astype(field.dtype) for size in field.shape[1:3])
    # Full precision: steps are as long as the linearised distance only if the transpose is exact.
    return jnp.einsum("ip,jq,bpqv->bijv", rows, columns, field, precision="highest")


def adef(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 50,
    sigma: float = 0.5,
    overshoot: float = 0.02,
    candidates: int = 10,
    targeted: bool = False,
) -> AttackResult:
    """ADef, the smallest smooth deformation that changes the class (Alaifari et al. 2019, algorithm 1).

    `robust_jax.attacks.deepfool` over ``T(x, S η)``, S the convolution with a Gaussian, η small in l2: the step to the
    zero of ``f_k = z_k - z_y`` is ``τ = -f_k S(S α) / ‖S α‖²``, ``α = ∂f_k/∂δ``, k the class of the smallest ‖S α‖²
    step; steps are summed and the original image is deformed by ``δ = S η``. The result is projected into the threat
    model's ball, and is a success if it still is one there: the ball is a bound, the search itself is in l2.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "flow", or another perturbation with δ ``[B, H, W, V]``; norm and radius.
      key: not used, the attack is deterministic.
      steps: at most so many.
      sigma: of the Gaussian, in pixels; the paper takes 0.5 for MNIST and 1 for ImageNet. 0 smooths nothing.
      overshoot: by which fraction of δ the linearised boundary is crossed.
      candidates: so many classes are stepped towards, those of the largest logits at the clean image.
      targeted: whether labels are targets.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), a δ that is no
        field, or an impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    check_search("adef", steps, overshoot, candidates)
    check_field("adef", threat, images)
    if not sigma >= 0:
        raise ValueError(f"adef: sigma={sigma} pixels must not be negative.")
    space = threat.perturbation
    # Without the slope of single pixels: neighbours move together.
    blurred = replace(
        space, apply=lambda x, field: space.apply(x, smoothed(field, sigma)),
        pullback_at_zero=None, confine=None, slope=None,
    )  # fmt: skip
    # No deformation is longer than the diagonal at every pixel.
    height, width = images.shape[1:3]
    everywhere = ThreatModel(blurred, "l2", math.hypot(height, width) * math.sqrt(height * width))
    field, _ = minimal_step(
        logits_fn, images, labels, everywhere, space.zeros(images),
        steps=steps, relaxation=1.0, overshoot=overshoot, candidates=candidates, targeted=targeted, confine=False,
    )  # fmt: skip
    delta = threat_models.project(threat, smoothed(field, sigma))
    logits = logits_fn(clip_box(space.apply(images, delta)))
    return found_or_clean(threat, images, delta, losses.misclassified(logits, labels) != targeted)


def check_field(path: str, threat: ThreatModel, images: Images | jax.ShapeDtypeStruct) -> None:
    """Raises ValueError, starting with ``path``, for a δ other than one displacement a pixel of the images."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(threat.perturbation.zeros, images))]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][:3] != images.shape[:3]:
        raise ValueError(
            f"{path}: perturbation {threat.perturbation.name} has δ of shape {' and '.join(map(str, shapes))}, not a "
            f"field {(*images.shape[:3], 2)}: take 'flow', or for this perturbation pgd or deepfool."
        )
