"""Loops whose examples stop one by one: those that are left go on in ever smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from robust_jax.attacks.ascent import where
from robust_jax.attacks.pgd import LogitsFn
from robust_jax.perturbations import Images

SMALLEST = 16

# (step, what stays [B, ...], state [B, ...]) -> the next state, and which examples go on.
Body = Callable[[Int[Array, ""], Any, Any], tuple[Any, Bool[Array, " b"]]]


def batch_sizes(logits_fn: LogitsFn, images: Images, parts: tuple[int, ...]) -> list[int]:
    """The whole batch and its parts (2: a half), of 16 examples at least: each size takes time to compile.

    The whole batch alone for a model that takes no other, as one with draws of each image's own.
    """
    count = len(images)
    fewer = [size for size in (-(-count // part) for part in parts) if size >= SMALLEST]
    try:
        for size in fewer:
            jax.eval_shape(logits_fn, images[:size])
    except (TypeError, ValueError):
        return [count]
    return [count, *fewer]


def while_active(body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int, sizes: list[int]) -> Any:
    """``state, goes_on = body(i, fixed, state)`` for i < steps, each example as long as it goes on.

    As soon as no more are active than the next smaller batch holds, these alone are computed: the arithmetic is that
    of the active examples, rounded up to a size, in one compiled program with a body for each size. Examples must not
    depend on each other.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``, what the body knows of an example.
      state: pytree of arrays ``[B, ...]``; an example's is that of the step after which it stopped.
      active: which examples begin.
      steps: at most so many.
      sizes: see `batch_sizes`.
    """
    first, *left = [*sizes[1:], 0]  # a batch is left for the next smaller one as soon as that holds the active
    step, (state, active) = _stage(body, fixed, (state, active), jnp.array(0), steps, first)
    for size, fewer in zip(sizes[1:], left, strict=True):
        chosen = jnp.argsort(~active, stable=True)[:size]
        part, rest = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], ((state, active), fixed))
        step, part = _stage(body, rest, part, step, steps, fewer)
        state, active = jax.tree.map(lambda leaf, new, at=chosen: leaf.at[at].set(new), (state, active), part)
    return state


def _stage(body: Body, fixed: Any, part: Any, step: Array, steps: int, fewer: int) -> tuple[Array, Any]:
    """Goes on until so few are active."""

    def once(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        step, (state, active) = carry
        new, goes_on = body(step, fixed, state)
        return step + 1, (where(active, new, state), active & goes_on)

    def going(carry: tuple[Array, Any]) -> Array:
        return (carry[0] < steps) & (carry[1][1].sum() > fewer)

    return jax.lax.while_loop(going, once, (step, part))
