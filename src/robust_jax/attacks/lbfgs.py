"""L-BFGS of a batch of problems at once, each with its own line search; one gradient of the batch per step.

optax's line search is not used: under `jax.vmap` it waits at each step for the slowest example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from robust_jax.spaces import per_example
from robust_jax.spaces.per_example import inner, value_and_gradient

Carry = TypeVar("Carry")

TRIALS = 10
"""The largest number of step lengths that are tried along a direction."""


class Search(NamedTuple):
    """The line search of each example.

    Attributes:
      point: its start.
      value: of the objective at its start.
      gradient: of the objective at its start.
      direction: the direction of the line.
      memory: the state of `optax.scale_by_lbfgs`.
      length: the step length to try next, in units of the direction.
      least: the lower bound of the step length.
      most: the upper bound of the step length.
      trials: the number of lengths tried, including the next one.
    """

    point: Float[Array, "b ..."]
    value: Float[Array, " b"]
    gradient: Float[Array, "b ..."]
    direction: Float[Array, "b ..."]
    memory: optax.OptState
    length: Float[Array, " b"]
    least: Float[Array, " b"]
    most: Float[Array, " b"]
    trials: Int[Array, " b"]


def minimise(
    objective: Callable[[Array], Float[Array, " b"]],
    start: Float[Array, "b ..."],
    steps: int,
    visit: Callable[[Array, Float[Array, " b"], Carry], Carry],
    carry: Carry,
) -> Carry:
    """``carry <- visit(point, value, carry)`` at each of the ``steps`` points [B, ...] that L-BFGS tries.

    Directions are those of `optax.scale_by_lbfgs` (Liu & Nocedal 1989). Lengths satisfy the weak Wolfe conditions and
    are found by doubling and bisection, which also ends on objectives with kinks (Lewis & Overton 2013, algorithm 2.6).
    Each step is one gradient of the whole batch: an example whose line search has ended starts its next one without
    waiting for the others.
    """
    solver = optax.scale_by_lbfgs()

    def begin(point: Array, value: Array, gradient: Array, memory: optax.OptState) -> Search:
        direction, memory = jax.vmap(solver.update)(gradient, memory, point)
        none = jnp.zeros_like(value)
        return Search(
            point, value, gradient, -jnp.nan_to_num(direction), memory,
            length=none + 1, least=none, most=none + jnp.inf, trials=jnp.ones(len(point), int),
        )  # fmt: skip

    def step(_: Array, carried: tuple[Search, Carry]) -> tuple[Search, Carry]:
        at, carry = carried
        point = at.point + per_example.expand(at.length, start) * at.direction
        value, gradient = evaluate(point)
        carry = visit(point, value, carry)
        slope, slope_there = (inner(g, at.direction) for g in (at.gradient, gradient))
        lower = value <= at.value + 1e-4 * at.length * slope
        ended = lower & (slope_there >= 0.9 * slope)

        least, most = jnp.where(lower, at.length, at.least), jnp.where(lower, at.most, at.length)
        length = jnp.where(jnp.isinf(most), 2 * at.length, (least + most) / 2)
        on = at._replace(length=length, least=least, most=most, trials=at.trials + 1)

        point, value, gradient = per_example.where(lower, (point, value, gradient), (at.point, at.value, at.gradient))
        # A step that ends without both conditions carries no information on curvature.
        memory = per_example.where(ended, at.memory, fresh)
        return per_example.where(ended | (at.trials >= TRIALS), begin(point, value, gradient, memory), on), carry

    def evaluate(point: Array) -> tuple[Array, Array]:
        value, gradient, _ = value_and_gradient(objective, point)
        return value, jnp.nan_to_num(gradient)

    fresh = jax.vmap(solver.init)(start)
    search = begin(start, *evaluate(start), fresh)
    return jax.lax.fori_loop(0, steps, step, (search, visit(start, search.value, carry)))[1]
