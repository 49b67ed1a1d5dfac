"""The steps of Auto-PGD: how δ moves, and how the step size adapts at checkpoints; those of l1 are its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from robust_jax.attacks.result import Candidate
from robust_jax.spaces import norms, per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


class State(NamedTuple):
    """The state of a run, each ``[B, ...]``.

    Attributes:
      delta: the current δ.
      previous: the δ before it.
      value: the score at the previous δ.
      top: the δ of the highest score of this run, the gradient and the score there.
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
      periods: for each number of steps done, the steps since the last checkpoint if there is one now, else 0.
      step: the first η.
      halved: the first `State.halved`.
      checked: the first `State.checked`.
      adapt: ``(period, state) -> (which examples return to their highest point, state)``.
      move: ``(steps done, images, state, δ, gradient) -> the next δ``.
    """

    periods: np.ndarray
    step: float
    halved: Array
    checked: Array
    adapt: Callable[[Array, State], tuple[Bool[Array, " b"], State]]
    move: Callable[[Array, Images, State, Delta, Delta], Delta]


def steps_for(threat: ThreatModel, zeros: Delta, steps: int, rho: float) -> Steps:
    """The steps of Croce & Hein 2021, algorithm 1, for l1 without compositions; otherwise those of 2020."""
    batch = len(jax.tree.leaves(zeros)[0])
    if threat.perturbation.parts or norms.exponent(threat.norm) != 1:
        return Steps(
            checkpoints(steps), 2.0, jnp.ones(batch, bool), jnp.full(batch, -jnp.inf),
            partial(_halve, rho), partial(_with_momentum, threat),
        )  # fmt: skip
    count = sum(leaf[0].size for leaf in jax.tree.leaves(zeros))
    return Steps(
        _sparse_checkpoints(steps), 1.0, jnp.full(batch, count), jnp.full(batch, 0.2 * count),
        _sparsify, partial(_sparse, threat),
    )  # fmt: skip


def _halve(rho: float, period: Array, state: State) -> tuple[Array, State]:
    highest = state.top[2]
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
    target = confined(threat_models.move(threat, delta, gradient, size, headroom))

    def ahead(d: Array, t: Array, before: Array) -> Array:
        pull = per_example.expand(jnp.where(done > 0, 0.75, 1.0), d)
        return d + pull * (t - d) + (1 - pull) * (d - before)

    return confined(threat_models.project(threat, jax.tree.map(ahead, delta, target, state.previous)))


def _sparsify(period: Array, state: State) -> tuple[Array, State]:
    changed = (state.top[0] != 0).reshape(len(state.step), -1).sum(-1)
    back = (period > 0) & (changed < 0.95 * state.halved)
    return back, state._replace(
        step=jnp.where(period > 0, jnp.where(back, 1, jnp.maximum(state.step / 1.5, 0.1)), state.step),
        halved=jnp.where(period > 0, changed, state.halved),
        checked=jnp.where(period > 0, changed / 1.5, state.checked),
    )


def _sparse(threat: ThreatModel, _: Array, images: Images, state: State, delta: Array, gradient: Array) -> Array:
    size = jnp.abs(gradient * jnp.asarray(threat.radius, delta.dtype)).reshape(len(images), -1)
    free = perturbations.headroom(threat.perturbation, images, delta, gradient).reshape(size.shape) > 0
    count = jnp.clip(state.checked, 1, size.shape[1]).astype(int)
    least = jnp.take_along_axis(jnp.sort(size, descending=True), count[:, None] - 1, axis=-1)[:, 0]
    # At least the best of the coordinates that the box does not hold back.
    largest = size >= jnp.minimum(least, jnp.where(free, size, 0).max(-1))[:, None]
    # Coordinates that the box holds back are pushed too, beyond the count: the projection would shrink them first.
    share = per_example.expand(state.step / jnp.maximum((largest & free).sum(-1), 1), delta)
    step = share * largest.reshape(delta.shape) * jnp.sign(gradient) * jnp.asarray(threat.radius, delta.dtype)
    return project_l1(threat, images, delta + step)


def checkpoints(steps: int) -> np.ndarray:
    """`Steps.periods` of Croce & Hein 2020, after 22% of the steps and then in periods from 19% down to 6%."""
    at, before, now = [0], 0.0, 0.22
    while now <= 1:
        at.append(math.ceil(round(now * steps, 6)))
        before, now = now, now + max(now - before - 0.03, 0.06)
    periods = np.zeros(steps + 1, int)
    periods[at[1:]] = np.diff(at)
    return periods


def _sparse_checkpoints(steps: int) -> np.ndarray:
    period = max(round(0.04 * steps), 1)
    return np.where((np.arange(steps) > 0) & (np.arange(steps) % period == 0), period, 0)


def project_l1(threat: ThreatModel, images: Images, delta: Array) -> Array:
    """The nearest point of the l1 ball within the box: soft-thresholded and confined, the threshold by bisection."""
    radius = jnp.asarray(threat.radius, delta.dtype)

    def shrunk(threshold: Array) -> Array:
        soft = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - per_example.expand(threshold, delta) * radius, 0)
        return perturbations.confined(threat.perturbation, images, soft)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        inside = threat_models.size(threat, shrunk(middle)) <= 1
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    size = threat_models.size(threat, delta)
    inside = threat_models.size(threat, shrunk(jnp.zeros_like(size))) <= 1
    return shrunk(jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(size), jnp.where(inside, 0, size)))[1])
