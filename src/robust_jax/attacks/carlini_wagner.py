"""Carlini & Wagner's attack over any l2 threat model: the smallest δ by a penalty, Adam and a search for its weight."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from robust_jax.attacks.ascent import in_float32
from robust_jax.attacks.define import Cost, Problem, attack
from robust_jax.attacks.minimal import CANDIDATES, Smallest, boundary, check_norm, finite, in_units, search_const
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.options import Count, NotNegative, Positive
from robust_jax.spaces import perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    steps, others = o.steps * o.binary_search_steps, min(CANDIDATES, problem.classes - 1)
    return Cost(3 + steps, others + steps)


@attack(family="white_box", cost=_cost, check=partial(check_norm, p=2))
def carlini_wagner(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 500,
    binary_search_steps: Count = 9,
    learning_rate: Positive | None = None,
    initial_const: Positive = 1.0,
    confidence: NotNegative = 0.0,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖₂`` that C&W's L2 attack (2017, section VI A) finds across the boundary, in the ball.

    For each of several weights c, Adam minimises from δ = 0, and every iterate across the boundary counts::

        (‖δ / radius‖₂ / s)² + c max(d(δ), 0) / s,

    d the linearised distance to the boundary (see `minimal.boundary`), and s per example the size of the smallest δ so
    far, or d(0) as long as there is none. c grows tenfold until an example succeeds (and s doubles), and is then
    bisected between the largest that failed and the smallest that succeeded.

    This differs from the paper in four ways. The margin of the logits is measured as a distance, so that learning rate
    and c have no unit, and neither the radius nor the scale of the logits changes the result. It aims at the nearest
    class, which need not have the largest logit. The learning rate falls to 0 as a cosine, so that δ does not oscillate
    about the boundary. And after each step δ is clipped to the box if the perturbation supports it (`confine`), instead
    of using tanh, whose gradient vanishes where images are 0 or 1. No example stops early.

    For a composition the largest of its parts' sizes is minimised. The radius is both the unit of size and the bound,
    see `robust_jax.attacks.deepfool`. Costs ``steps * binary_search_steps`` gradients, and one for each of up to ten
    classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm l2 (in every part) and radius.
      key: not used: the attack is deterministic.
      steps: of Adam for each c.
      binary_search_steps: the number of values of c.
      learning_rate: of Adam: the most that a step moves a coordinate, as a fraction of s * radius; by default the
        larger of 0.01 and ``0.5 / sqrt(n)`` for the n coordinates of δ (per example and part).
      initial_const: the first c; for a linear model any above 2 leads to the optimum.
      confidence: the lead of the other class over the label, in logits.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: another norm, images outside [0, 1] or of the wrong rank, labels out of range (both for concrete
        arrays), or an option out of its range.
    """
    space = threat.perturbation
    start = boundary(logits_fn, images, labels, threat, confidence=confidence, targeted=targeted)
    adam = optax.adam(optax.cosine_decay_schedule(1.0, steps))
    zeros = space.zeros(images)

    def rate(leaf: Array) -> float:
        return max(0.01, 0.5 / math.sqrt(leaf[0].size)) if learning_rate is None else learning_rate

    def minimise(const: Array, unit: Array, smallest: Smallest) -> tuple[Smallest, Array]:
        # What is maximised, as slopes over flows are those of an ascent, see `Perturbation.slope`.
        def objective(delta: Delta) -> tuple[Array, tuple[Array, Array]]:
            size = threat_models.size(threat, delta)
            away, crossed = start.distance(delta)
            return -(jnp.square(size / unit) + const * jnp.maximum(away, 0) / unit).sum(), (size, crossed)

        def step(_: Array, carry: tuple[Delta, optax.OptState, Smallest, Array]) -> tuple:
            delta, state, smallest, success = carry
            gradient, (size, crossed) = jax.grad(objective, has_aux=True)(delta)
            # In float16 Adam's squares and its epsilon of 1e-8 are 0.
            update, state = adam.update(in_float32(in_units(threat, unit, finite(gradient))), state)
            update = in_units(threat, unit, jax.tree.map(lambda u: u * rate(u), update))
            moved = jax.tree.map(lambda d, u: d - u.astype(d.dtype), delta, update)
            moved = perturbations.confined(space, images, moved)
            return moved, state, smallest.or_smaller(delta, size, crossed), success | crossed

        first = (zeros, adam.init(in_float32(zeros)), smallest, jnp.zeros(len(images), bool))
        return jax.lax.fori_loop(0, steps, step, first)[2:]

    return search_const(minimise, threat, start, initial_const, binary_search_steps).result(images, threat)
