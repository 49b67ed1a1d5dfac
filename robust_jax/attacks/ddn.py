"""DDN over any l2 threat model: the smallest δ, its direction and norm found apart (Rony et al. 2019)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from robust_jax import norms, perturbations, threat_models
from robust_jax.attacks.minimal import Smallest, boundary, check_minimal, finite
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.checks import check_batch
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel

# Of classes, per length of a step: larger mixes them for longer, 0 may settle on a class too early.
BLUR = 0.3


def ddn(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    gamma: float = 0.05,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖₂`` that DDN (algorithm 1) finds across the boundary, in the ball.

    From δ = 0 and the size ε = s, each step goes along the gradient and then to the sphere of size ε, which shrinks
    where δ is across the boundary and grows where it is not::

        ε <- min(ε (1 - gamma if crossed else 1 + gamma), 1),    δ <- clip(ε (δ + α ε u) / ‖(δ + α ε u) / radius‖₂),

    u the ball's steepest direction and α falling from 1 to 0.01 as a cosine. s is how far the boundary is from the
    clean image, linearised (see `minimal.boundary`), where the paper has 1, and its steps α are ε times as long here:
    the radius does not change what is found. Gradients are those of this distance, in the place of cross-entropy, whose
    direction mixes classes to the end and vanishes where softmax saturates: it is the smooth minimum over classes, as
    sharp as α ε is small. Intensities are not rounded to bytes.

    The parts of a composition move by the same fraction of their balls. The radius is the unit of size and also the
    bound, see `robust_jax.attacks.deepfool`. Costs so many gradients, and one for each of ten classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm l2 (in every part) and radius.
      key: not used, the attack is deterministic.
      steps: so many; fewer than 50 leave ε far from the boundary.
      gamma: by which fraction ε changes a step.
      targeted: whether labels are targets.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: another norm, images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays),
        or an impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    check_minimal("ddn", threat, 2, steps)
    if not 0 < gamma < 1:
        raise ValueError(f"ddn: gamma={gamma} must lie between 0 and 1: it is the fraction by which the norm changes.")
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
        # Where the box leaves no room the step goes elsewhere.
        room = perturbations.room(space, images, delta, gradient)
        direction = threat_models.steepest(threat, jax.tree.map(lambda g, r: jnp.where(r > 0, g, 0), gradient, room))
        delta = jax.tree.map(jnp.add, delta, times(direction, alpha * epsilon))
        epsilon = jnp.clip(epsilon * jnp.where(crossed, 1 - gamma, 1 + gamma), 0, 1)
        size = threat_models.size(threat, delta)
        delta = times(delta, jnp.where(size > 0, epsilon / jnp.where(size > 0, size, 1), 0))
        return perturbations.confined(space, images, delta), epsilon, smallest

    delta, _, smallest = jax.lax.fori_loop(0, steps, step, (space.zeros(images), start.scale, start.smallest))
    smallest = smallest.or_smaller(delta, threat_models.size(threat, delta), start.distance(delta)[1])
    return smallest.result(images, threat)


def times(delta: Delta, factor: Array) -> Delta:
    """Each example's δ times its factor ``[B]``."""
    return jax.tree.map(lambda d: d * norms.expand(factor, d), delta)
