"""L-BFGS of a batch of problems at once, each with its own line search; one gradient of the batch a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from robust_jax import norms
from robust_jax.gradients import value_and_gradient
from robust_jax.perturbations import inner

Carry = TypeVar("Carry")

TRIALS = 10
"""Step lengths tried along a direction."""


class Search(NamedTuple):
    """A line search of each example.

    Attributes:
      point: where it starts, with the objective's value and gradient there.
      direction: of the line.
      memory: of `optax.scale_by_lbfgs`.
      length: of the step to be tried next, in units of the direction.
      least, most: between which lengths the search is.
      trials: made so far.
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

    Directions are those of `optax.scale_by_lbfgs` (Liu & Nocedal 1989). Lengths obey the weak Wolfe conditions and are
    found by doubling and halving, which ends on objectives with kinks too (Lewis & Overton 2013, algorithm 2.6). Each
    step is one gradient for the whole batch: an example whose search has ended starts the next one meanwhile.
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
        point = at.point + norms.expand(at.length, start) * at.direction
        value, gradient = evaluate(point)
        carry = visit(point, value, carry)
        slope, slope_there = (inner(g, at.direction) for g in (at.gradient, gradient))
        lower = value <= at.value + 1e-4 * at.length * slope
        ended = lower & (slope_there >= 0.9 * slope)

        least, most = jnp.where(lower, at.length, at.least), jnp.where(lower, at.most, at.length)
        length = jnp.where(jnp.isinf(most), 2 * at.length, (least + most) / 2)
        on = at._replace(length=length, least=least, most=most, trials=at.trials + 1)

        point, value, gradient = norms.where(lower, (point, value, gradient), (at.point, at.value, at.gradient))
        # A step that ends without both conditions tells no curvature.
        memory = norms.where(ended, at.memory, fresh)
        return norms.where(ended | (at.trials >= TRIALS), begin(point, value, gradient, memory), on), carry

    def evaluate(point: Array) -> tuple[Array, Array]:
        value, gradient, _ = value_and_gradient(objective, point)
        return value, jnp.nan_to_num(gradient)

    fresh = jax.vmap(solver.init)(start)
    search = begin(start, *evaluate(start), fresh)
    return jax.lax.fori_loop(0, steps, step, (search, visit(start, search.value, carry)))[1]
