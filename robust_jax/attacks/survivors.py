"""Loops whose examples stop one by one: a step computes those that go on, some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from robust_jax import norms, parallel

# At a time on a device. CPUs are at their fastest with few, more leave the cache; others want to be filled.
ON_CPU, ELSEWHERE = 32, 128

# (step, what stays [B, ...], state [B, ...]) -> the next state, and which examples go on.
Body = Callable[[Int[Array, ""], Any, Any], tuple[Any, Bool[Array, " b"]]]


def while_active(
    body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int, chunk: int | None = None
) -> Any:
    """``state, goes_on = body(i, fixed, state)`` for i < steps, each example as long as it goes on.

    A step computes the active examples alone, some at a time: its arithmetic is theirs, rounded up to a chunk, in one
    compiled program with one body. Where a batch is laid out over devices each goes on with its own. Examples must not
    depend on each other. A body that takes no other number of examples, as that of a model with draws of each image's
    own, gets them all, in their places.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``, what the body knows of an example.
      state: pytree of arrays ``[B, ...]``; an example's is that of the step after which it stopped.
      active: which examples begin.
      steps: at most so many.
      chunk: so many examples at a time, at most, on all devices; by default 32 a device on CPUs and 128 elsewhere.
    """
    count, pieces = len(active), parallel.pieces(len(active))
    each = count // pieces
    most = (ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE) if chunk is None else chunk // pieces
    size = -(-each // max(-(-each // most), 1))  # equal chunks

    def advance(step: Array, fixed: Any, state: Any, active: Array) -> tuple[Any, Array]:
        new, goes_on = body(step, fixed, state)
        return norms.where(active, new, state), active & goes_on

    def loop(one_step: Callable[[Array, tuple[Any, Array]], tuple[Any, Array]], carry: tuple[Any, Array]) -> Any:
        def going(carry: tuple[Array, tuple[Any, Array]]) -> Array:
            return (carry[0] < steps) & carry[1][1].any()

        return jax.lax.while_loop(going, lambda c: (c[0] + 1, one_step(*c)), (jnp.array(0), carry))[1][0]

    if size == each or not _takes(body, fixed, state, pieces * size):
        return loop(lambda step, carry: advance(step, fixed, *carry), (state, active))

    def rows(leaf: Array) -> Array:
        """``[devices, examples, numbers]``: with more axes XLA changes the layout of all for each chunk."""
        return leaf.reshape(pieces, len(leaf) // pieces, -1)

    def shaped(leaf: Array, like: Array) -> Array:
        return leaf.reshape(-1, *like.shape[1:])

    fixed_rows = jax.tree.map(rows, fixed)

    def in_chunks(step: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        # Of each device: those that go on, then the others, then numbers of none.
        order = jnp.argsort(~carry[1][..., 0], axis=1, stable=True)
        none = jnp.broadcast_to(jnp.arange(each, -(-each // size) * size), (pieces, -each % size))
        order = jnp.concatenate([order, none], axis=1)

        def one_chunk(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            chosen = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
            take = jax.vmap(lambda piece, at: piece.at[at].get(mode="clip"))
            put = jax.vmap(lambda piece, at, new: piece.at[at].set(new, mode="drop", unique_indices=True))
            taken = jax.tree.map(
                lambda x, like: shaped(take(x, chosen), like), (fixed_rows, *carry), (fixed, state, active)
            )
            return jax.tree.map(lambda x, new: put(x, chosen, rows(new)), carry, advance(step, *taken))

        return jax.lax.fori_loop(0, -(-carry[1].sum(1).max() // size), one_chunk, carry)

    return jax.tree.map(shaped, loop(in_chunks, jax.tree.map(rows, (state, active))), state)


def _takes(body: Body, fixed: Any, state: Any, count: int) -> bool:
    """Whether a body computes so many examples."""
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), (fixed, state))
    try:
        found = jax.eval_shape(body, jnp.array(0), *given)
    except Exception:  # whatever it is, what is wrong with the whole batch too is raised there
        return False
    return [x.shape for x in jax.tree.leaves(found)] == [*(x.shape for x in jax.tree.leaves(given[1])), (count,)]
