"""FMN over any threat model: the smallest δ, by steps in a ball that follows the boundary (Pintor et al. 2021)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax.attacks.define import Cost, OpenFraction, Problem, attack
from robust_jax.attacks.minimal import CANDIDATES, Smallest, boundary, finite
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.options import Count
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    return Cost(4 + o.steps, min(CANDIDATES, problem.classes - 1) + o.steps)


@attack(family="white_box", cost=_cost)
def fmn(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    gamma: OpenFraction = 0.05,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖`` that FMN (algorithm 1) finds across the boundary, in the ball, for any norm.

    From δ = 0 and the size ε = s, each step first adapts ε and then ascends in the ball of size ε::

        ε <- (1 - γ) min(ε, the smallest size so far)   if δ is across the boundary,
             (1 + γ) ε                                  if not, but an earlier δ was,
             max((1 + γ) ε, ‖δ / radius‖ + d(δ))        if none was,
        δ <- clip(Π_ε(δ + α ε u)),

    d the distance in radii to the boundary linearised at δ, s that at the clean image (see `minimal.boundary`), and u
    the ball's steepest direction towards it. α falls from 1 to 0.01 and γ from ``gamma`` to ``gamma / 50``, both as a
    cosine.

    This differs from the paper in four ways. Steps follow the steepest direction of the norm, as in
    `robust_jax.attacks.pgd`, and have the length α ε, instead of the gradient with a length of α in l2: the radius does
    not change the result. The boundary is that to the nearest class, not to that of the largest other logit. Until a
    first δ is across, ε grows by γ at least: in l1, where a pixel soon reaches the end of the box, d is far too small.
    And ε is shrunk below the smallest size so far at once.

    All parts of a composition have balls of the same ε. The radius is both the unit of size and the bound, see
    `robust_jax.attacks.deepfool`. Costs ``steps`` gradients, and one for each of up to ten classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: not used: the attack is deterministic.
      steps: the number of steps; fewer than 50 leave ε far from the boundary.
      gamma: the fraction by which ε changes in the first steps.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or an
        option out of its range.

    Example::

        everywhere = ThreatModel("additive", "linf", 1.0)
        result = fmn(logits_fn, images, labels, everywhere, key=jax.random.key(0))
        distance = threat_models.size(everywhere, result.delta)
    """
    space = threat.perturbation
    start = boundary(logits_fn, images, labels, threat, confidence=0, targeted=targeted)

    def closeness(delta: Delta) -> tuple[Array, tuple[Array, Array]]:
        away, crossed = start.distance(delta)
        return -away.sum(), (away, crossed)

    def step(i: Array, carry: tuple[Delta, Array, Smallest]) -> tuple[Delta, Array, Smallest]:
        delta, epsilon, smallest = carry
        left = (1 + jnp.cos(math.pi * i / steps)) / 2
        alpha, rate = 0.01 + 0.99 * left, gamma * (0.02 + 0.98 * left)
        gradient, (away, crossed) = jax.grad(closeness, has_aux=True)(delta)
        gradient, size = finite(gradient), threat_models.size(threat, delta)
        smallest = smallest.or_smaller(delta, size, crossed)
        headroom = perturbations.headroom(space, images, delta, gradient)
        free = perturbations.free(gradient, headroom)
        gain = threat_models.gain(threat, free)
        ahead = jnp.nan_to_num(per_example.quotient(away, gain))
        grown = (1 + rate) * epsilon
        farther = jnp.where(jnp.isfinite(smallest.cost), grown, jnp.maximum(grown, size + ahead))
        nearer = (1 - rate) * jnp.minimum(epsilon, smallest.cost)
        epsilon = jnp.clip(jnp.where(crossed, nearer, farther), 0, 1)
        return _moved(images, threat, delta, free, headroom, alpha, epsilon), epsilon, smallest

    delta, _, smallest = jax.lax.fori_loop(0, steps, step, (space.zeros(images), start.scale, start.smallest))
    smallest = smallest.or_smaller(delta, threat_models.size(threat, delta), start.distance(delta)[1])
    return smallest.result(images, threat)


def _moved(
    images: Images, threat: ThreatModel, delta: Delta, gradient: Delta, headroom: Delta, alpha: Array,
    epsilon: Float[Array, " b"],
) -> Delta:  # fmt: skip
    """A projected step of length ``alpha`` times the radius in the ball ``epsilon`` times as large, within the box."""
    # In units of the smaller ball, so that it is the ball of the threat model.
    larger = 1 / jnp.where(epsilon > 0, epsilon, 1)
    length = jax.tree.map(lambda r: alpha * r, threat.radius)
    grown, headroom, stride = per_example.times(larger, (delta, headroom, threat_models.strides(threat, delta)))
    moved = threat_models.move(threat, grown, gradient, length, headroom, stride)
    return perturbations.confined(threat.perturbation, images, per_example.times(epsilon, moved))
