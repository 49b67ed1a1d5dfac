"""Helpers for arrays ``[B, ...]`` whose first axis counts examples, and for pytrees of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax.spaces.perturbations import Delta, Images


def inner(one: Delta, other: Delta) -> Float[Array, " b"]:
    """``<one, other>`` per example, of two δ or of a δ and a gradient in δ; summed over the parts of a composition."""
    products = jax.tree.map(lambda a, b: (a * b).reshape(len(a), -1).sum(-1), one, other)
    return jnp.stack(jax.tree.leaves(products)).sum(0)


def check_key(key: Any, count: int | None) -> None:
    """Raises ValueError unless ``key`` is one typed key, or unless ``count`` is None one per example ``[count]``."""
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be made by jax.random.key(seed), or split from one; got {key!r}.")
    if key.ndim and count is None:
        raise ValueError(f"key must be one key, made by jax.random.key(seed); got {key.dtype} {key.shape}.")
    if key.ndim and key.shape != (count,):
        held = len(key) if key.ndim == 1 else key.shape
        raise ValueError(f"key holds {held} keys for {count} images: pass one key, or one per image.")


def example_keys(key: Key[Array, "..."], count: int) -> Key[Array, " b"]:
    """One key per example: keys ``[B]`` are returned, a single key is folded with each example's index.

    Raises:
      ValueError: no typed key, or another number of keys than of examples.
    """
    check_key(key, count)
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def fold_keys(keys: Key[Array, " b"], data: int | Int[Array, "..."]) -> Key[Array, " b"]:
    """Each example's key folded with a number: one for all, or one per example ``[B]``."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(data, keys.shape))


def expand(x: Array, like: Array) -> Array:
    """``[B]`` as ``[B, 1, ...]``, to multiply each example of an array ``[B, ...]``; floats get its precision."""
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(like.dtype, jnp.floating):
        x = x.astype(like.dtype)
    return x.reshape(-1, *[1] * (like.ndim - 1))


def times(factor: Float[Array, " b"], tree: Any) -> Any:
    """Arrays ``[B, ...]``, such as a δ, times each example's factor."""
    return jax.tree.map(lambda leaf: leaf * expand(factor, leaf), tree)


def quotient(a: Array, b: Array, otherwise: float = 0.0) -> Array:
    """``a / b`` where b is positive, elsewhere ``otherwise``, also in the derivative."""
    positive = b > 0
    return jnp.where(positive, a / jnp.where(positive, b, 1), otherwise)


def widened(x: Array) -> Array:
    """Half precision as float32; other arrays are returned unchanged."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def where(mask: Bool[Array, " b"], a: Any, b: Any) -> Any:
    """``a`` for the examples where the mask holds, ``b`` elsewhere; both are pytrees of arrays ``[B, ...]``."""
    return jax.tree.map(lambda x, y: jnp.where(expand(mask, x), x, y), a, b)


def value_and_gradient(
    loss_fn: Callable[[Images], Any], images: Images, has_aux: bool = False
) -> tuple[Float[Array, " b"], Images, Any]:
    """Losses ``[B]``, the gradient of their sum with respect to the images, and aux, in one pass.

    Aux is the second output of ``loss_fn`` if ``has_aux``, else None.

    Raises:
      ValueError: a loss that is not one number per image.
    """

    def total(x: Images) -> tuple[Array, tuple[Array, Any]]:
        loss, aux = loss_fn(x) if has_aux else (loss_fn(x), None)
        if loss.shape != images.shape[:1]:
            raise ValueError(
                f"loss_fn must return one loss per image, [{len(images)}], not their mean; it returned {loss.shape}."
            )
        return loss.sum(), (loss, aux)

    gradient, (loss, aux) = jax.grad(total, has_aux=True)(images)
    return loss, gradient, aux
