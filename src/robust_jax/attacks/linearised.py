"""The decision boundaries that attacks step towards, linearised: differences of logits and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from robust_jax.attacks.result import rounding
from robust_jax.spaces.perturbations import Delta


def rows(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], rivals: Int[Array, "b n"], targeted: bool
) -> Float[Array, "n b k"]:
    """The differences of logits that should become positive, as rows of signs.

    Those of each rival and the label; targeted the one of the label, which is the target, and the largest other.
    """
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if targeted:
        current = jnp.where(own > 0, -jnp.inf, logits).argmax(-1)
        return (own - jax.nn.one_hot(current, logits.shape[-1], dtype=own.dtype))[None]
    return jax.nn.one_hot(rivals.T, logits.shape[-1], dtype=own.dtype) - own


def boundaries(
    logits: Float[Array, "b k"], pull: Callable[[Array], tuple[Delta]], signs: Float[Array, "n b k"]
) -> tuple[Delta, Float[Array, "n b"]]:
    """The gradient in δ of each difference, and what it lacks to be positive.

    Args:
      logits: at δ.
      pull: the transposed derivative of the logits in δ, as `jax.vjp` gives it.
      signs: see `rows`.
    """
    gradients = jax.tree.map(jnp.nan_to_num, jax.vmap(lambda row: pull(row)[0])(signs))
    # A little past the boundary: at a tie the label may still be the first of the largest logits.
    return gradients, 2 * rounding(logits) - (signs * logits).sum(-1)
