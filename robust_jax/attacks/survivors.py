"""Loops whose examples stop one by one: those that are left go on in ever smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from robust_jax import parallel
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
    count, pieces = len(images), parallel.pieces(len(images))
    fewer = [size for part in parts if (size := -(-count // pieces // part) * pieces) >= SMALLEST]
    try:
        for size in fewer:
            jax.eval_shape(logits_fn, images[:size])
    except (TypeError, ValueError):
        return [count]
    return [count, *fewer]


def while_active(body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int, sizes: list[int]) -> Any:
    """``state, goes_on = body(i, fixed, state)`` for i < steps, each example as long as it goes on.

    As soon as no more are active than the next smaller batch holds, these alone are computed: the arithmetic is that
    of the active examples, rounded up to a size, in one compiled program with a body for each size. Where a batch is
    laid out over devices each goes on with its own. Examples must not depend on each other.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``, what the body knows of an example.
      state: pytree of arrays ``[B, ...]``; an example's is that of the step after which it stopped.
      active: which examples begin.
      steps: at most so many.
      sizes: see `batch_sizes`.
    """
    pieces = parallel.pieces(len(active))

    def split(leaf: Array) -> Array:
        return leaf.reshape(pieces, -1, *leaf.shape[1:])

    def stage(fixed: Any, part: Any, step: Array, fewer: int) -> tuple[Array, Any]:
        def once(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            step, (state, active) = carry
            new, goes_on = body(step, fixed, state)
            return step + 1, (where(active, new, state), active & goes_on)

        def going(carry: tuple[Array, Any]) -> Array:
            return (carry[0] < steps) & (split(carry[1][1]).sum(1).max() > fewer // pieces)

        return jax.lax.while_loop(going, once, (step, part))

    first, *left = [*sizes[1:], 0]  # a batch is left for the next smaller one as soon as that holds the active
    step, whole = stage(fixed, (state, active), jnp.array(0), first)
    for size, fewer in zip(sizes[1:], left, strict=True):
        chosen = jnp.argsort(~split(whole[1]), axis=1, stable=True)[:, : size // pieces]

        def take(leaf: Array, chosen: Array = chosen) -> Array:
            return jax.vmap(lambda piece, at: piece[at])(split(leaf), chosen).reshape(-1, *leaf.shape[1:])

        def put(leaf: Array, new: Array, chosen: Array = chosen) -> Array:
            placed = jax.vmap(lambda piece, at, rows: piece.at[at].set(rows))(split(leaf), chosen, split(new))
            return placed.reshape(leaf.shape)

        step, part = stage(jax.tree.map(take, fixed), jax.tree.map(take, whole), step, fewer)
        whole = jax.tree.map(put, whole, part)
    return whole[0]
