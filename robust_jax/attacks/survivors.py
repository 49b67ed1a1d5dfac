"""Loops whose examples stop one by one: those that go on are computed, some at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from robust_jax import norms, parallel

# At a time on a device. CPUs lose a twentieth with so few, and more where the last are fewer than the places; others
# want to be filled.
ON_CPU, ELSEWHERE = 16, 256

# (how many steps each has done [B], what stays [B, ...], state [B, ...]) -> the next state, and which examples go on.
Body = Callable[[Int[Array, " b"], Any, Any], tuple[Any, Bool[Array, " b"]]]


def while_active(body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int) -> Any:
    """``state, goes_on = body(steps done, fixed, state)``, each example as long as it goes on and at most so often.

    Active examples are computed some at a time (`ON_CPU` or `ELSEWHERE` a device), those first that have done the
    fewest steps: examples need not be at the same step, so that all places are taken as long as there are enough to
    take them, in one compiled program with one body. Where a batch is laid out over devices each goes on with its own.
    Examples must not depend on each other. A body that takes no other number of examples, as that of a model with draws
    of each image's own, gets them all, in their places.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``, what the body knows of an example.
      state: pytree of arrays ``[B, ...]``; an example's is that of the step after which it stopped.
      active: which examples begin.
      steps: at most so many.
    """
    count, pieces = len(active), parallel.pieces(len(active))
    each = count // pieces
    size = min(each, ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE)
    carry = (jnp.zeros(count, jnp.int32), state, active & (steps > 0))

    def advance(fixed: Any, carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        done, state, active = carry
        new, goes_on = body(done, fixed, state)
        return done + 1, norms.where(active, new, state), active & goes_on & (done + 1 < steps)

    def loop(one: Callable[[Any], Any], carry: Any) -> Any:
        return jax.lax.while_loop(lambda carry: carry[2].any(), one, carry)[1]

    if size == each or not _takes(body, fixed, state, pieces * size):
        return loop(partial(advance, fixed), carry)

    def rows(leaf: Array) -> Array:
        """``[devices, examples, numbers]``: with more axes XLA changes the layout of all for each chunk."""
        return leaf.reshape(pieces, len(leaf) // pieces, -1)

    def shaped(leaf: Array, like: Array) -> Array:
        return leaf.reshape(-1, *like.shape[1:])

    fixed_rows = jax.tree.map(rows, fixed)

    def full_chunks(carry_rows: Any) -> Any:
        """As many as can be filled, at least one; who is left comes first in the next."""
        done, _, going = carry_rows
        order = jnp.argsort(jnp.where(going, done, steps)[..., 0], axis=1)

        def one_chunk(i: Array, carry_rows: Any) -> Any:
            chosen = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
            take = jax.vmap(lambda piece, at: piece[at])
            put = jax.vmap(lambda piece, at, new: piece.at[at].set(new, unique_indices=True))
            taken = jax.tree.map(
                lambda x, like: shaped(take(x, chosen), like), (fixed_rows, carry_rows), (fixed, carry)
            )
            return jax.tree.map(lambda x, new: put(x, chosen, rows(new)), carry_rows, advance(*taken))

        return jax.lax.fori_loop(0, jnp.maximum(going.sum(1).min() // size, 1), one_chunk, carry_rows)

    return jax.tree.map(shaped, loop(full_chunks, jax.tree.map(rows, carry)), state)


def _takes(body: Body, fixed: Any, state: Any, count: int) -> bool:
    """Whether a body computes so many examples."""
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), (fixed, state))
    try:
        found = jax.eval_shape(body, jax.ShapeDtypeStruct((count,), jnp.int32), *given)
    except Exception:  # whatever it is, what is wrong with the whole batch too is raised there
        return False
    return [x.shape for x in jax.tree.leaves(found)] == [*(x.shape for x in jax.tree.leaves(given[1])), (count,)]
