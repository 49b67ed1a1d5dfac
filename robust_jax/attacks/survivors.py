"""Loops whose examples stop one by one: a step computes those that go on, some at a time."""

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

# CPUs are at their fastest with as many as these a device: more leave the cache. Others want large batches.
ON_CPU = 32

# (step, what stays [B, ...], state [B, ...]) -> the next state, and which examples go on.
Body = Callable[[Int[Array, ""], Any, Any], tuple[Any, Bool[Array, " b"]]]


def chunk_size(logits_fn: LogitsFn, images: Images) -> int:
    """So many examples `while_active` should compute at a time: 32 a device on CPUs, half the batch elsewhere.

    The whole batch for a model that takes no other, as one with draws of each image's own.
    """
    count, pieces = len(images), parallel.pieces(len(images))
    each = count // pieces
    size = min(each, ON_CPU if jax.default_backend() == "cpu" else -(-each // 2)) * pieces
    try:
        jax.eval_shape(logits_fn, images[:size])
    except (TypeError, ValueError):
        return count
    return size


def while_active(body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int, chunk: int) -> Any:
    """``state, goes_on = body(i, fixed, state)`` for i < steps, each example as long as it goes on.

    A step computes the active examples alone, ``chunk`` at a time: its arithmetic is theirs, rounded up to a chunk, in
    one compiled program with one body. Where a batch is laid out over devices each goes on with its own. Examples must
    not depend on each other.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``, what the body knows of an example.
      state: pytree of arrays ``[B, ...]``; an example's is that of the step after which it stopped.
      active: which examples begin.
      steps: at most so many.
      chunk: see `chunk_size`; with the whole batch examples keep their places.
    """
    pieces = parallel.pieces(len(active))
    each = chunk // pieces

    def rows(leaf: Array) -> Array:
        """``[devices, examples, numbers]``: with more axes XLA changes the layout of all for each chunk."""
        return leaf.reshape(pieces, len(leaf) // pieces, -1)

    def shaped(leaf: Array, like: Array) -> Array:
        return leaf.reshape(-1, *like.shape[1:])

    def some(step: Array, fixed: Any, state: Any, active: Array) -> tuple[Any, Array]:
        new, goes_on = body(step, fixed, state)
        return where(active, new, state), active & goes_on

    def together(step: Array, whole: tuple[Any, Array]) -> tuple[Any, Array]:
        return some(step, fixed, *whole)

    def in_chunks(step: Array, whole: tuple[Any, Array]) -> tuple[Any, Array]:
        # Of each device: those that go on, then the others, then numbers of none.
        order = jnp.argsort(~whole[1][..., 0], axis=1, stable=True)
        order = jnp.pad(order, ((0, 0), (0, -order.shape[1] % each)), constant_values=order.shape[1])

        def one_chunk(i: Array, whole: tuple[Any, Array]) -> tuple[Any, Array]:
            chosen = jax.lax.dynamic_slice_in_dim(order, i * each, each, axis=1)
            take = jax.vmap(lambda piece, at: piece.at[at].get(mode="clip"))
            put = jax.vmap(lambda piece, at, new: piece.at[at].set(new, mode="drop"))
            taken = jax.tree.map(
                lambda x, like: shaped(take(x, chosen), like), (constant, *whole), (fixed, state, active)
            )
            return jax.tree.map(lambda x, new: put(x, chosen, rows(new)), whole, some(step, *taken))

        return jax.lax.fori_loop(0, -(-whole[1].sum(1).max() // each), one_chunk, whole)

    constant, whole, one_step = jax.tree.map(rows, fixed), jax.tree.map(rows, (state, active)), in_chunks
    if chunk == len(active):
        whole, one_step = (state, active), together
    _, whole = jax.lax.while_loop(
        lambda c: (c[0] < steps) & c[1][1].any(), lambda c: (c[0] + 1, one_step(*c)), (jnp.array(0), whole)
    )
    return jax.tree.map(shaped, whole[0], state)
