"""The steps of Auto-PGD: how δ moves, and how the step size adapts at checkpoints; those of l1 are its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax.attacks.result import Candidate
from robust_jax.spaces import capped, norms, per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# Strides of `pgd` that a step may take, as its first ones are two radii long. Over l21 flows one or eight leave more.
LONGER = 4.0


class State(NamedTuple):
    """The state of a run, each ``[B, ...]``.

    Attributes:
      delta: the current δ.
      previous: the δ before it.
      value: the score at the previous δ.
      top: the δ of the highest score of this climb, the gradient and the score there.
      kept: the best candidate by (success, then score), of earlier runs too.
      step: the step size η, in radii.
      rises: the number of steps since the last checkpoint that raised the score.
      halved: whether η was halved at the last checkpoint; in l1 the number of coordinates changed in ``top``.
      checked: the highest score at the last checkpoint; in l1 the number of coordinates that a step moves.
    """

    delta: Delta
    previous: Delta
    value: Float[Array, " b"]
    top: tuple[Delta, Delta, Float[Array, " b"]]
    kept: Candidate
    step: Float[Array, " b"]
    rises: Int[Array, " b"]
    halved: Array
    checked: Float[Array, " b"]


class Steps(NamedTuple):
    """How a run moves and adapts.

    Attributes:
      begins: for each number of gradients taken, whether the next is the first of a climb.
      counts: likewise, whether it is taken within the ball, so that δ is a candidate.
      step: the first η.
      halved: the first `State.halved`.
      checked: the first `State.checked`.
      start: ``(keys, images) -> the first δ``.
      adapt: ``(gradients taken, state) -> (which examples return to their highest point, state)``.
      move: ``(gradients taken, images, state, δ, gradient) -> the next δ``.
    """

    begins: np.ndarray
    counts: np.ndarray
    step: float
    halved: Array
    checked: Array
    start: Callable[[Key[Array, " b"], Images], Delta]
    adapt: Callable[[Array, State], tuple[Bool[Array, " b"], State]]
    move: Callable[[Array, Images, State, Delta, Delta], Delta]


def is_sparse(threat: ThreatModel) -> bool:
    """Whether the steps are those of Croce & Hein 2021, for l1 without compositions."""
    return not threat.perturbation.parts and norms.exponent(threat.norm) == 1


def gradients(threat: ThreatModel, steps: int) -> int:
    """The number of gradients of a run: in l1 one more for each climb but the last."""
    return len(_climbs(steps).factors) if is_sparse(threat) else steps


def steps_for(threat: ThreatModel, zeros: Delta, steps: int, rho: float) -> Steps:
    """The steps of Croce & Hein 2021, algorithm 1, for l1 without compositions; otherwise those of 2020."""
    batch = len(jax.tree.leaves(zeros)[0])
    if not is_sparse(threat):
        return Steps(
            np.arange(steps) == 0, np.ones(steps, bool), 2.0, jnp.ones(batch, bool), jnp.full(batch, -jnp.inf),
            partial(_anywhere, threat), partial(_halve, checkpoints(steps), rho), partial(_with_momentum, threat),
        )  # fmt: skip
    climbs = _climbs(steps)
    return Steps(
        climbs.begins, climbs.factors == 1, 1.0, jnp.zeros(batch, int), jnp.zeros(batch),
        partial(_sparse_start, threat, climbs.factors[0]), partial(_sparsify, climbs), partial(_sparse, threat, climbs),
    )  # fmt: skip


def checkpoints(steps: int) -> np.ndarray:
    """The steps since the last checkpoint if there is one after this number of steps, else 0 (Croce & Hein 2020).

    Checkpoints are after 22% of the steps and then in periods from 19% down to 6%.
    """
    at, before, now = [0], 0.0, 0.22
    while now <= 1:
        if (after := math.ceil(round(now * steps, 6))) > at[-1]:  # with few steps, several are the same
            at.append(after)
        before, now = now, now + max(now - before - 0.03, 0.06)
    periods = np.zeros(steps + 1, int)
    periods[at[1:]] = np.diff(at)
    return periods


def _anywhere(threat: ThreatModel, keys: Array, images: Images) -> Delta:
    return perturbations.confined(threat.perturbation, images, threat_models.random_delta(threat, keys, images))


def _halve(periods: np.ndarray, rho: float, done: Array, state: State) -> tuple[Array, State]:
    period, highest = jnp.asarray(periods)[done], state.top[2]
    back = (period > 0) & ((state.rises < rho * period) | (~state.halved & (highest <= state.checked)))
    return back, state._replace(
        step=jnp.where(back, state.step / 2, state.step),
        rises=jnp.where(period > 0, 0, state.rises),
        halved=jnp.where(period > 0, back, state.halved),
        checked=jnp.where(period > 0, highest, state.checked),
    )


def _with_momentum(
    threat: ThreatModel, done: Array, images: Images, state: State, delta: Delta, gradient: Delta
) -> Delta:
    confined = partial(perturbations.confined, threat.perturbation, images)
    headroom = perturbations.headroom(threat.perturbation, images, delta, gradient)
    size = jax.tree.map(lambda r, d: per_example.expand(state.step, d) * r, threat.radius, delta)
    stride = jax.tree.map(lambda s: LONGER * s, threat_models.strides(threat, delta))
    target = confined(threat_models.move(threat, delta, gradient, size, headroom, stride))

    def ahead(d: Array, t: Array, before: Array) -> Array:
        pull = per_example.expand(jnp.where(done > 0, 0.75, 1.0), d)
        return d + pull * (t - d) + (1 - pull) * (d - before)

    return confined(threat_models.project(threat, jax.tree.map(ahead, delta, target, state.previous)))


class _Climbs(NamedTuple):
    """The climbs of a run in l1, through smaller and smaller balls; each array ``[gradients of the run]``.

    Attributes:
      begins: whether a climb begins with this gradient.
      ends: whether it ended before: then the next climb starts at the highest point, projected.
      checks: whether there is a checkpoint.
      factors: the ball in which the gradient is taken, in radii.
      next: the ball to which the next δ belongs, in radii.
    """

    begins: np.ndarray
    ends: np.ndarray
    checks: np.ndarray
    factors: np.ndarray
    next: np.ndarray


def _climbs(steps: int) -> _Climbs:
    """30% of the steps at 3 radii, 30% at 2 radii and the rest at 1; each with a checkpoint every 4% of its own."""
    larger = min(math.ceil(0.3 * steps), (steps - 1) // 2)
    lengths = {3: larger, 2: larger, 1: steps - 2 * larger}
    found = []
    for factor, length in lengths.items():
        period = max(int(0.04 * length), 1)
        for i in range(length + (factor > 1) if length else 0):
            ends = factor > 1 and i == length
            found.append((i == 0, ends, i > 0 and i % period == 0, factor, factor - ends))
    return _Climbs(*(np.asarray(column) for column in zip(*found, strict=True)))


def _enlarged(threat: ThreatModel, factor: Array | float, delta: Array) -> ThreatModel:
    """The threat model with its radius multiplied by a factor, or one for each example."""
    factor = jnp.asarray(factor, delta.dtype)
    return threat_models.scaled(threat, per_example.expand(factor, delta) if factor.ndim else factor)


def _sparse_start(threat: ThreatModel, factor: float, keys: Array, images: Images) -> Array:
    """Gaussian noise of standard deviation 1 in units of δ, projected: few and large changes, others for each key.

    If an entry of the radius is above their mean, its standard deviation is so too.
    """
    zeros = threat.perturbation.zeros(images)
    radius = jnp.broadcast_to(jnp.asarray(threat.radius, zeros.dtype), zeros.shape)
    mean = radius.mean(tuple(range(1, zeros.ndim)), keepdims=True)  # of each example's own
    noise = perturbations.gaussian_delta(threat.perturbation, keys, images, 1.0)
    spread = noise * radius / jnp.where(mean > 0, mean, 1)
    ball = _enlarged(threat, factor, zeros)
    inside = threat_models.size(ball, spread) < 1
    # A direction is in units of the radius: it is not spread again.
    return project_l1(ball, images, per_example.where(inside, threat_models.on_sphere(ball, noise), spread))


def _sparsify(climbs: _Climbs, done: Array, state: State) -> tuple[Array, State]:
    begins, ends, checks = (jnp.asarray(table)[done] for table in (climbs.begins, climbs.ends, climbs.checks))
    changed = (state.top[0] != 0).reshape(len(state.step), -1).sum(-1)
    sparser = checks & (changed < 0.95 * state.halved)
    step = jnp.where(checks, jnp.maximum(state.step / 1.5, 0.1), state.step)
    return sparser | ends, state._replace(
        step=jnp.where(begins | sparser, 1, step),
        halved=jnp.where(begins | checks, changed, state.halved),
        checked=jnp.where(begins | checks, changed / 1.5, state.checked),
    )


def _sparse(
    threat: ThreatModel, climbs: _Climbs, done: Array, images: Images, state: State, delta: Array, gradient: Array
) -> Array:
    ball = _enlarged(threat, jnp.asarray(climbs.next)[done], delta)
    radius = jnp.asarray(ball.radius, delta.dtype)
    size = jnp.abs(gradient * radius).reshape(len(images), -1)
    free = perturbations.headroom(threat.perturbation, images, delta, gradient).reshape(size.shape) > 0
    count = jnp.floor(jnp.clip(state.checked, 1, size.shape[1]))
    # At least the best of the coordinates that the box does not hold back.
    best = jnp.where(free, size, 0).max(-1, keepdims=True)
    largest = (size > 0) & ((size >= best) | (capped.fill(size, jnp.ones_like(size), count[:, None]) > 0))
    # Coordinates that the box holds back take their share too, which is lost: if it went to the few others, their
    # steps would be too long (measured on MNIST, 5 restarts: 50% left instead of 47).
    length = jnp.where(jnp.asarray(climbs.ends)[done], 0, state.step)
    share = per_example.expand(length / jnp.maximum(largest.sum(-1), 1), delta)
    step = share * largest.reshape(delta.shape) * jnp.sign(gradient) * radius
    return project_l1(ball, images, delta + step)


def project_l1(threat: ThreatModel, images: Images, delta: Array) -> Array:
    """The nearest point of the l1 ball within the box: soft-thresholded and confined, the threshold by bisection."""
    radius = jnp.asarray(threat.radius, delta.dtype)
    precision = jnp.finfo(delta.dtype).eps

    def shrunk(threshold: Array) -> Array:
        soft = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - per_example.expand(threshold, delta) * radius, 0)
        return perturbations.confined(threat.perturbation, images, soft)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        inside = threat_models.size(threat, shrunk(middle)) <= 1
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    # The rounding of a sum is no reason to search.
    inside = threat_models.size(threat, shrunk(jnp.zeros(len(delta), delta.dtype))) <= 1 + 1e-6
    largest = norms.norm(threat_models.in_radii(threat, delta), "linf")
    bounds = jnp.zeros_like(largest), jnp.where(inside, 0, largest)
    return shrunk(jax.lax.while_loop(lambda b: (b[1] - b[0] > precision * largest).any(), halve, bounds)[1])
