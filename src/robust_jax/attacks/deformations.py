"""Smooth deformations: stAdv (Xiao et al. 2018) and ADef (Alaifari et al. 2019).

Both search for a small smooth field, not for the worst one in a ball: the threat model's radius is their unit and
bound, see `robust_jax.attacks.deepfool`. They support "flow", and any other perturbation whose δ is a field
``[B, H, W, V]``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.deepfool import Search, minimal_step
from robust_jax.attacks.define import Cost, Problem, attack
from robust_jax.attacks.lbfgs import minimise
from robust_jax.attacks.result import AttackResult, Candidate, LogitsFn, best_of, clip_box, crossed, found_or_clean
from robust_jax.options import Count, NotNegative
from robust_jax.spaces import perturbations, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

Field = Float[Array, "b h w v"]

SMOOTHING = 0.01
"""Below this length differences between neighbours count as their square in `total_variation`."""


def total_variation(field: Field) -> Float[Array, " b"]:
    """``Σ_p Σ_{q in N4(p)} sqrt(‖δ_p - δ_q‖² + ε²) - ε``, per example (Xiao et al. 2018, eq. 4), ε = `SMOOTHING`.

    Every pair of neighbours counts twice, as in the paper; ε makes it differentiable at a constant field.
    """

    def lengths(difference: Array) -> Array:
        squared = jnp.square(difference).sum(-1)
        # sqrt(s + ε²) - ε, without cancellation for a small s.
        return (squared / (jnp.sqrt(squared + SMOOTHING**2) + SMOOTHING)).sum((1, 2))

    return 2 * (lengths(field[:, 1:] - field[:, :-1]) + lengths(field[:, :, 1:] - field[:, :, :-1]))


def check_field(name: str, threat: ThreatModel) -> None:
    """Raises ValueError, beginning with ``name``, unless δ is one array ``[B, H, W, V]``."""
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(threat.perturbation.zeros, images))
    if [leaf.ndim for leaf in leaves] != [4]:
        shapes = " and ".join(f"[{', '.join(['B', *map(str, leaf.shape[1:])])}]" for leaf in leaves)
        raise ValueError(_no_field(name, threat, shapes, "B, H, W"))


def _check_size(name: str, threat: ThreatModel, images: Images) -> None:
    """Raises ValueError unless the field has one displacement per pixel of these images."""
    shape = jax.tree.leaves(jax.eval_shape(threat.perturbation.zeros, images))[0].shape
    if shape[:3] != images.shape[:3]:
        raise ValueError(_no_field(name, threat, str(shape), ", ".join(map(str, images.shape[:3]))))


def _no_field(name: str, threat: ThreatModel, shapes: str, expected: str) -> str:
    return (
        f"{name}: perturbation {threat.perturbation.name} has δ of shape {shapes}, not a field [{expected}, 2]: "
        f"give 'flow', or for this perturbation use pgd or deepfool."
    )


def _stadv_cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(3 + 2 * o.steps, 1 + o.steps)


@attack(family="white_box", cost=_stadv_cost, check=check_field)
def stadv(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    smoothness: NotNegative = 0.01,
    confidence: NotNegative = 0.0,
    start: NotNegative = 0.01,
    targeted: bool = False,
) -> AttackResult:
    """Spatially transformed adversarial examples (Xiao et al. 2018): a smooth flow by L-BFGS.

    Minimises ``max(f(T(x, δ)), -confidence) + smoothness * total_variation(δ)`` (eqs. 2 to 4), f the lead of the
    label's logit over the largest other one (targeted: of the largest other logit over the target's). The paper sets no
    bound: a large radius gives its success rate and flow sizes (``radius * threat_models.size(threat, delta)``).
    Each point of L-BFGS is projected into the ball and tried; of the successes the one of the smallest objective is
    returned.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "flow", or another perturbation with δ ``[B, H, W, V]``; norm and radius.
      key: one key, or one per example ``[B]``, for the start.
      steps: the number of points that L-BFGS tries, including those of its line searches; one gradient each.
      smoothness: the paper's τ, in logits per pixel of flow. The paper's 0.05 fooled a briefly trained SmallCNN on
        MNIST on half of the images only, 0.01 on all, with flows 5% longer.
      confidence: the paper's κ, in logits: the lead over the label beyond which the objective does not fall.
      start: the standard deviation of the first flow, in units of δ. At exactly 0 bilinear sampling has a kink.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), a δ that
        is not a field, or an option out of its range.
    """
    _check_size("stadv", threat, images)
    space = threat.perturbation

    def tried(field: Field) -> tuple[Array, Array]:
        logits = logits_fn(clip_box(space.apply(images, field)))
        lead = losses.margin(logits, labels) * (1 if targeted else -1)
        return jnp.maximum(lead, -confidence) + smoothness * total_variation(field), logits

    def visit(field: Field, _: Array, best: Candidate) -> Candidate:
        field = threat_models.project(threat, jnp.nan_to_num(field))
        value, logits = tried(field)
        return best_of(Candidate(field, -value, crossed(logits, labels, targeted)), best)

    first = perturbations.gaussian_delta(space, example_keys(key, len(images)), images, start)
    # A clean image that succeeds is better than any other candidate, and one that does not is worse.
    success = losses.misclassified(logits_fn(images), labels) != targeted
    clean = Candidate(space.zeros(images), jnp.where(success, jnp.inf, -jnp.inf), success)
    best = minimise(lambda field: tried(field)[0], first, steps, visit, clean)
    return found_or_clean(threat, images, best.delta, best.success)


def smoothed(field: Field, sigma: float) -> Field:
    """The field convolved with a Gaussian of ``sigma`` pixels, with zeros beyond the border; linear and symmetric."""

    def kernel(size: int) -> Array:
        offset = jnp.arange(size)
        weights = jnp.exp(-0.5 * jnp.square((offset[:, None] - offset) / sigma))
        reach = math.ceil(6 * sigma)
        return weights / sum(math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1))

    if not sigma:
        return field
    rows, columns = (kernel(size).astype(field.dtype) for size in field.shape[1:3])
    # Full precision: the length of steps is the linearised distance only if the transpose is exact.
    return jnp.einsum("ip,jq,bpqv->bijv", rows, columns, field, precision="highest")


def _adef_cost(o: SimpleNamespace, problem: Problem) -> Cost:
    return Cost(2 + 2 * o.steps, o.steps * min(o.candidates, problem.classes - 1))


@attack(family="boundary", cost=_adef_cost, check=check_field)
def adef(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 50,
    sigma: NotNegative = 0.5,
    overshoot: NotNegative = 0.02,
    candidates: Count = 10,
    targeted: bool = False,
) -> AttackResult:
    """ADef, the smallest smooth deformation that changes the class (Alaifari et al. 2019, algorithm 1).

    `robust_jax.attacks.deepfool` over ``T(x, S η)``, S the convolution with a Gaussian, η small in l2: the step to the
    zero of ``f_k = z_k - z_y`` is ``τ = -f_k S(S α) / ‖S α‖²``, ``α = ∂f_k/∂δ``, k the class of the smallest ‖S α‖²
    step; steps are summed and the original image is deformed by ``δ = S η``. The result is projected into the threat
    model's ball, and is a success if it still succeeds there: the ball is a bound, the search itself is in l2.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "flow", or another perturbation with δ ``[B, H, W, V]``; norm and radius.
      key: not used: the attack is deterministic.
      steps: the largest number of steps.
      sigma: of the Gaussian, in pixels; the paper takes 0.5 for MNIST and 1 for ImageNet. 0 smooths nothing.
      overshoot: how far beyond the linearised boundary δ is tried, as a fraction of δ.
      candidates: the number of classes that are considered, those of the largest logits at the clean image.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), a δ that
        is not a field, or an option out of its range.
    """
    _check_size("adef", threat, images)
    space, longest = threat.perturbation, max(images.shape[1:3])
    if sigma > longest:
        raise ValueError(f"adef: sigma={sigma:g} pixels is more than the images' {longest}: 0.5 to 1 is usual.")
    # Without `slope`, which is for single pixels: neighbours move together.
    blurred = replace(
        space, apply=lambda x, field: space.apply(x, smoothed(field, sigma)),
        pullback_at_zero=None, confine=None, slope=None,
    )  # fmt: skip
    # No deformation is longer than the diagonal at every pixel.
    height, width = images.shape[1:3]
    everywhere = ThreatModel(blurred, "l2", math.hypot(height, width) * math.sqrt(height * width))
    search = Search(steps, 1.0, overshoot, candidates, targeted, confine=False)
    field, _ = minimal_step(logits_fn, images, labels, everywhere, space.zeros(images), search)
    delta = threat_models.project(threat, smoothed(field, sigma))
    logits = logits_fn(clip_box(space.apply(images, delta)))
    return found_or_clean(threat, images, delta, losses.misclassified(logits, labels) != targeted)
