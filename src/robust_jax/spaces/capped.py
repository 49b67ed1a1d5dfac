"""How far each coordinate moves if none may pass its limit: in turn (`fill`), or all at once (`spread`).

Both are exact and without sorting, which takes XLA on a CPU longer than a pass through a small network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax.spaces import per_example


def fill(scores: Float[Array, "b n"], limits: Float[Array, "b n"], total: Float[Array, "b 1"]) -> Float[Array, "b n"]:
    """Lengths in ``[0, limits]`` of the given sum, or all limits if it is more: coordinates of larger score first.

    Of equal scores the first is filled first. The score at which the sum is reached is found by bisection of the
    integers that have the bits of the scores: they are in the same order.

    Args:
      scores: at least 0; NaN counts as 0.
      limits: finite, at least 0.
      total: at least 0.
    """
    bits = jnp.finfo(scores.dtype).bits
    ranks = jax.lax.bitcast_convert_type(jnp.where(scores > 0, scores, 0), f"int{bits}")

    def above(rank: Array) -> Array:
        return jnp.where(ranks > rank, limits, 0).sum(-1, keepdims=True)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # what is above low is too much, what is above high is not
        middle = low + (high - low) // 2
        enough = above(middle) <= total
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    highest = ranks.max(-1, keepdims=True)
    _, last = jax.lax.fori_loop(0, bits, halve, (jnp.full_like(highest, -1), highest))
    equal = jnp.where(ranks == last, limits, 0)
    rest = total - above(last) - (jnp.cumsum(equal, -1) - equal)
    return jnp.where(ranks > last, limits, jnp.clip(rest, 0, equal))


def spread(
    slopes: Float[Array, "b n"], limits: Float[Array, "b n"], speeds: Float[Array, "b n"], gain: Float[Array, "b 1"]
) -> Float[Array, "b n"]:
    """Lengths ``min(t speeds, limits)`` at the first t whose product with the slopes is the gain, or all limits.

    The product rises with t, ever less steeply. Newton's method from t = 0 therefore never passes the solution, and is
    there once no more coordinate meets its limit (for the projection on a simplex: Michelot 1986).

    Args:
      slopes: at least 0.
      limits: at least 0; infinite where there is none.
      speeds: at least 0; what has none stays at 0.
      gain: at least 0.
    """
    ends = per_example.quotient(limits, speeds, jnp.inf)
    rates, most = slopes * speeds, jnp.where(jnp.isinf(ends), 0, slopes * limits)

    def ahead(times: Array) -> Array:
        full = ends <= times
        rate = jnp.where(full, 0, rates).sum(-1, keepdims=True)
        lacking = gain - jnp.where(full, most, 0).sum(-1, keepdims=True)
        return jnp.maximum(times, per_example.quotient(lacking, rate, jnp.inf))

    start = jnp.zeros_like(gain)
    pair = jax.lax.while_loop(lambda p: (p[1] > p[0]).any(), lambda p: (p[1], ahead(p[1])), (start, ahead(start)))
    return jnp.where(speeds > 0, jnp.minimum(jnp.where(speeds > 0, pair[1], 0) * speeds, limits), 0)
