"""A loop in which each example stops at its own step, and only the examples that go on are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from robust_jax import parallel
from robust_jax.spaces import per_example

# (steps done [B], constants [B, ...], state [B, ...]) -> the next state, and which examples continue.
Body = Callable[[Int[Array, " b"], Any, Any], tuple[Any, Bool[Array, " b"]]]


def while_active(body: Body, fixed: Any, state: Any, active: Bool[Array, " b"], steps: int) -> Any:
    """Repeats ``state, continues = body(steps_done, fixed, state)``, each example until it stops.

    The body is compiled once, for a chunk of `parallel.examples_at_a_time` examples per device. Each call of it gets
    the active examples that have done the fewest steps. Examples of a chunk may be at different steps, so that chunks
    stay full until fewer active examples are left than a chunk holds. If a batch is laid out over devices, each device
    continues with its own examples.

    Examples must not depend on each other. A body that accepts only the whole batch, such as that of a model with
    random draws per image, gets the whole batch at each step.

    Args:
      body: one step of some examples.
      fixed: pytree of arrays ``[B, ...]``: the constants of each example.
      state: pytree of arrays ``[B, ...]``. In the result each example has its state after the step at which it stopped.
      active: the examples that start.
      steps: the largest number of steps per example.
    """
    count, pieces = len(active), parallel.pieces(len(active))
    each = count // pieces
    size = min(each, parallel.examples_at_a_time())
    carry = (jnp.zeros(count, jnp.int32), state, active & (steps > 0))

    def advance(fixed: Any, carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        done, state, active = carry
        new, goes_on = body(done, fixed, state)
        return done + 1, per_example.where(active, new, state), active & goes_on & (done + 1 < steps)

    def loop(one: Callable[[Any], Any], carry: Any) -> Any:
        return jax.lax.while_loop(lambda carry: carry[2].any(), one, carry)[1]

    if size == each or not _accepts(body, fixed, state, pieces * size):
        return loop(partial(advance, fixed), carry)

    def rows(leaf: Array) -> Array:
        """``[devices, examples, numbers]``: with more axes XLA would change the layout of the whole for each chunk."""
        return leaf.reshape(pieces, len(leaf) // pieces, -1)

    def shaped(leaf: Array, like: Array) -> Array:
        return leaf.reshape(-1, *like.shape[1:])

    fixed_rows = jax.tree.map(rows, fixed)

    def full_chunks(carry_rows: Any) -> Any:
        """As many chunks as active examples fill, at least one; the others come first next time."""
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


def _accepts(body: Body, fixed: Any, state: Any, count: int) -> bool:
    """Whether a body computes this number of examples."""
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), (fixed, state))
    try:
        found = jax.eval_shape(body, jax.ShapeDtypeStruct((count,), jnp.int32), *given)
    except Exception:  # if the body is wrong for any number of examples, the whole batch raises the error
        return False
    return [x.shape for x in jax.tree.leaves(found)] == [*(x.shape for x in jax.tree.leaves(given[1])), (count,)]
