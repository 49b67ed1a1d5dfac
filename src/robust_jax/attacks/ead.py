"""EAD over any l1 threat model: the smallest δ by an elastic net, with few coordinates changed (Chen et al. 2018)."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from robust_jax.attacks.define import Cost, Problem, attack
from robust_jax.attacks.minimal import CANDIDATES, Smallest, boundary, check_norm, finite, in_units, search_const
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.options import Count, NotNegative, Positive
from robust_jax.spaces import norms, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    steps, others = o.steps * o.binary_search_steps, min(CANDIDATES, problem.classes - 1)
    return Cost(3 + 2 * steps, others + steps)


@attack(family="white_box", cost=_cost, check=partial(check_norm, p=1))
def ead(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 500,
    binary_search_steps: Count = 9,
    learning_rate: Positive = 0.01,
    initial_const: Positive = 10.0,
    beta: NotNegative = 10.0,
    rule: Literal["l1", "en"] = "l1",
    confidence: NotNegative = 0.0,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖₁`` that EAD (equations 7 and 8) finds across the boundary, in the ball.

    For each of several weights c, FISTA minimises from δ = 0, and every iterate across the boundary counts::

        ‖v‖₂² + beta ‖v‖₁ + c max(d(δ), 0) / s,    v = δ / (radius s),

    with d, s and the search for c as in `robust_jax.attacks.carlini_wagner`: learning rate, beta and c have no unit,
    and neither the radius nor the scale of the logits changes the result. A step follows the gradient of the first and
    last term, shrinks every coordinate of v by beta times the learning rate, which makes most of them 0, and clips δ
    to the box if the perturbation supports it. The learning rate falls as a square root to 0.

    On a linear model the minimum is at most ``(beta + 2) / beta`` times the l1 distance: a large beta comes closer,
    and a small one spreads δ as the l2 norm does. (In the paper's code the threshold is not multiplied by the learning
    rate of 0.01: its beta of 0.01 acts as 1.)

    The radius is both the unit of size and the bound, see `robust_jax.attacks.deepfool`. Costs
    ``steps * binary_search_steps`` gradients and as many forward passes more, and a gradient for each of up to
    ten classes.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm l1 (in every part) and radius.
      key: not used: the attack is deterministic.
      steps: of FISTA for each c.
      binary_search_steps: the number of values of c.
      learning_rate: of FISTA, in units of v.
      initial_const: the first c; for a linear model any above ``beta + 2`` leads to the optimum.
      beta: the weight of the l1 norm.
      rule: by what the smallest δ is chosen: "l1", or "en", the elastic net (with the s of the first c).
      confidence: the lead of the other class over the label, in logits.
      targeted: whether labels are targets.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: another norm, images outside [0, 1] or of the wrong rank, labels out of range (both for concrete
        arrays), or an option out of its range.
    """
    space = threat.perturbation
    zeros = space.zeros(images)
    start = boundary(logits_fn, images, labels, threat, confidence=confidence, targeted=targeted)

    def square(delta: Delta, scale: Array) -> Array:
        parts = [norms.norm(leaf, "l2", power=2) for leaf in jax.tree.leaves(threat_models.in_radii(threat, delta))]
        return jnp.stack(parts).sum(0) / jnp.square(scale)

    def cost(delta: Delta) -> Array:
        size = threat_models.size(threat, delta)
        if rule == "l1":
            return size
        # Outside of the ball a δ is no result, however small its net.
        return jnp.where(size <= 1, square(delta, start.scale) + beta * size / start.scale, jnp.inf)

    def minimise(const: Array, unit: Array, smallest: Smallest) -> tuple[Smallest, Array]:
        # What is maximised, as slopes over flows are those of an ascent, see `Perturbation.slope`.
        def objective(delta: Delta) -> Array:
            return -(square(delta, unit) + const * jnp.maximum(start.distance(delta)[0], 0) / unit).sum()

        def step(i: Array, carry: tuple[Delta, Delta, Smallest, Array]) -> tuple:
            delta, ahead, smallest, success = carry
            rate = learning_rate * jnp.sqrt(1 - i / steps)
            gradient = in_units(threat, unit, finite(jax.grad(objective)(ahead)))
            stepped = jax.tree.map(jnp.add, ahead, in_units(threat, rate * unit, gradient))
            threshold = in_units(threat, rate * beta * unit, jax.tree.map(jnp.ones_like, delta))
            shrunk = jax.tree.map(lambda d, t: jnp.sign(d) * jnp.maximum(jnp.abs(d) - t, 0), stepped, threshold)
            shrunk = perturbations.confined(space, images, shrunk)
            ahead = jax.tree.map(lambda new, old: new + i / (i + 3) * (new - old), shrunk, delta)
            crossed = start.distance(shrunk)[1]
            return shrunk, ahead, smallest.or_smaller(shrunk, cost(shrunk), crossed), success | crossed

        first = (zeros, zeros, smallest, jnp.zeros(len(images), bool))
        return jax.lax.fori_loop(0, steps, step, first)[2:]

    return search_const(minimise, threat, start, initial_const, binary_search_steps).result(images, threat)
