"""DDN over any l2 threat model: the smallest δ, with its direction and norm decoupled (Rony et al. 2019)."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from robust_jax.attacks.define import Cost, OpenFraction, Problem, attack
from robust_jax.attacks.minimal import CANDIDATES, Smallest, boundary, check_norm, finite
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.options import Count
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# The blur of the minimum over classes, per step length: larger values mix classes for longer, 0 may settle on a class
# too early.
BLUR = 0.3


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    return Cost(4 + o.steps, min(CANDIDATES, problem.classes - 1) + o.steps)


@attack(family="white_box", cost=_cost, check=partial(check_norm, p=2))
def ddn(
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
    """The smallest ``‖δ / radius‖₂`` that DDN (algorithm 1) finds across the boundary, in the ball.

    From δ = 0 and the size ε = s, each step follows the gradient and then goes to the sphere of size ε, which shrinks
    if δ is across the boundary and otherwise grows::

        δ' = δ + α ε u,    ε <- min(ε (1 - gamma if crossed else 1 + gamma), 1),    δ <- clip(ε δ' / ‖δ' / radius‖₂),

    u the ball's steepest direction and α falling from 1 to 0.01 as a cosine.

    This differs from the paper in three ways. It starts at s, the linearised distance of the clean image to the
    boundary (see `minimal.boundary`), instead of 1, and steps have the length α ε instead of α, so that the radius does
    not change the result. It follows the gradient of that distance, the smooth minimum over classes, sharper as α ε
    shrinks, instead of that of cross-entropy, which mixes classes until the end and vanishes where softmax saturates.
    And intensities are not rounded to bytes.

    All parts of a composition move by the same fraction of their balls. The radius is both the unit of size and the
    bound, see `robust_jax.attacks.deepfool`. Costs ``steps`` gradients, and one for each of up to ten classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm l2 (in every part) and radius.
      key: not used: the attack is deterministic.
      steps: the number of steps; fewer than 50 leave ε far from the boundary.
      gamma: the fraction by which ε changes per step.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: another norm, images outside [0, 1] or of the wrong rank, labels out of range (both for concrete
        arrays), or an option out of its range.
    """
    space = threat.perturbation
    start = boundary(logits_fn, images, labels, threat, confidence=0, targeted=targeted)

    def nearer(delta: Delta, blur: Array) -> tuple[Array, Array]:
        away, crossed = start.distance(delta, blur)
        return -away.sum(), crossed

    def step(i: Array, carry: tuple[Delta, Array, Smallest]) -> tuple[Delta, Array, Smallest]:
        delta, epsilon, smallest = carry
        alpha = 0.01 + 0.99 * (1 + jnp.cos(math.pi * i / steps)) / 2
        gradient, crossed = jax.grad(nearer, has_aux=True)(delta, BLUR * alpha * epsilon)
        smallest = smallest.or_smaller(delta, threat_models.size(threat, delta), crossed)
        gradient = finite(gradient)
        # Coordinates that the box holds back leave the step to the others.
        headroom = perturbations.headroom(space, images, delta, gradient)
        free = perturbations.free(gradient, headroom)
        direction = threat_models.steepest(threat, free)
        delta = jax.tree.map(jnp.add, delta, per_example.times(alpha * epsilon, direction))
        epsilon = jnp.clip(epsilon * jnp.where(crossed, 1 - gamma, 1 + gamma), 0, 1)
        size = threat_models.size(threat, delta)
        delta = per_example.times(per_example.quotient(epsilon, size), delta)
        return perturbations.confined(space, images, delta), epsilon, smallest

    delta, _, smallest = jax.lax.fori_loop(0, steps, step, (space.zeros(images), start.scale, start.smallest))
    smallest = smallest.or_smaller(delta, threat_models.size(threat, delta), start.distance(delta)[1])
    return smallest.result(images, threat)
