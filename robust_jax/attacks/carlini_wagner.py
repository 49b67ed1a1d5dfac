"""Carlini & Wagner's attack over any l2 threat model: the smallest δ by a penalty, Adam and a search for its weight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from robust_jax import perturbations, threat_models
from robust_jax.attacks.minimal import (
    Smallest,
    boundary,
    check_minimal,
    check_penalty,
    finite,
    in_units,
    search_const,
)
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.checks import check_batch
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel


def carlini_wagner(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 500,
    binary_search_steps: int = 9,
    learning_rate: float | None = None,
    initial_const: float = 1.0,
    confidence: float = 0.0,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖₂`` that C&W's L2 attack (2017, section VI A) finds across the boundary, in the ball.

    For each of several weights c, Adam minimises from δ = 0, and every iterate across the boundary counts::

        (‖δ / radius‖₂ / s)² + c max(d(δ), 0) / s,

    d how far the boundary is, linearised (see `minimal.boundary`), and s per example the size of the smallest δ so
    far, before there is one d(0). c grows tenfold until an example succeeds (and s doubles), and is then halved
    between the largest that failed and the smallest that succeeded.

    It differs from the paper in four ways. The margin of the logits is measured in distances, so that learning rate
    and c have no unit, and neither the radius nor the scale of the logits changes what is found. The nearest class is
    sought, not that of the largest logit. The learning rate falls to 0 as a cosine, not to swing about the boundary.
    And δ is clipped to the box after each step where the perturbation can be (`confine`) instead of taken through
    tanh, whose gradient vanishes at the 0s and 1s of images. No example stops early.

    For a composition the largest of its parts' sizes is minimised. The radius is the unit of size and also the bound,
    see `robust_jax.attacks.deepfool`. Costs ``steps * binary_search_steps`` gradients, and one for each of ten
    classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm l2 (in every part) and radius.
      key: not used, the attack is deterministic.
      steps: of Adam for each c.
      binary_search_steps: so many c.
      learning_rate: of Adam, so far at most a step moves a coordinate, as a fraction of s * radius; by default the
        larger of 0.01 and ``0.5 / sqrt(n)`` for the n coordinates of an example's δ (of each part).
      initial_const: the first c; for a linear model any above 2 leads to the optimum.
      confidence: by how much, in logits, the other class must lead.
      targeted: whether labels are targets.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: another norm, images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays),
        or an impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    check_minimal("carlini_wagner", threat, 2, steps, confidence)
    check_penalty("carlini_wagner", binary_search_steps, learning_rate, initial_const)
    space = threat.perturbation
    start = boundary(logits_fn, images, labels, threat, confidence=confidence, targeted=targeted)
    adam = optax.adam(optax.cosine_decay_schedule(1.0, steps))
    zeros = space.zeros(images)

    def rate(leaf: Array) -> float:
        return max(0.01, 0.5 / math.sqrt(leaf[0].size)) if learning_rate is None else learning_rate

    def minimise(const: Array, unit: Array, smallest: Smallest) -> tuple[Smallest, Array]:
        def objective(delta: Delta) -> tuple[Array, tuple[Array, Array]]:
            size = threat_models.size(threat, delta)
            away, crossed = start.distance(delta)
            return (jnp.square(size / unit) + const * jnp.maximum(away, 0) / unit).sum(), (size, crossed)

        def step(_: Array, carry: tuple[Delta, optax.OptState, Smallest, Array]) -> tuple:
            delta, state, smallest, success = carry
            gradient, (size, crossed) = jax.grad(objective, has_aux=True)(delta)
            update, state = adam.update(in_units(threat, unit, finite(gradient)), state)
            update = in_units(threat, unit, jax.tree.map(lambda u: u * rate(u), update))
            moved = jax.tree.map(jnp.add, delta, update)
            moved = perturbations.confined(space, images, moved)
            return moved, state, smallest.or_smaller(delta, size, crossed), success | crossed

        first = (zeros, adam.init(zeros), smallest, jnp.zeros(len(images), bool))
        return jax.lax.fori_loop(0, steps, step, first)[2:]

    return search_const(minimise, threat, start, initial_const, binary_search_steps).result(images, threat)
