"""Micro-batches: a batch is computed in equal parts, one after another, so that its activations need less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_jax import parallel
from robust_jax.objectives.inputs import Model


def split(tree: Any, count: int) -> Any:
    """Arrays ``[b, ...]`` as ``[count, b / count, ...]``."""
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), tree)


def joined(tree: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def mapped(function: Callable[[Any, Any], Any], batch: Any, count: int) -> Any:
    """``function(i, part)`` of ``count`` parts of a batch, the results ``[b / count, ...]`` joined to ``[b, ...]``.

    A single part is the batch itself, and i then None.
    """
    if count == 1:
        return function(None, batch)
    return joined(jax.lax.map(lambda part: function(*part), (jnp.arange(count), split(batch, count))))


def mean(function: Callable[[Any, Any], Any], batch: Any, count: int) -> Any:
    """The mean of ``function(i, part)`` over ``count`` parts of a batch, of which one is held at a time.

    Of a function that is a mean over examples it is the mean over the batch, up to rounding. Whole numbers, such as
    counts, are those of the last part. A single part is the batch itself, and i then None.
    """
    if count == 1:
        return function(None, batch)
    parts = split(batch, count)
    shapes = jax.eval_shape(function, 0, jax.tree.map(lambda x: x[0], parts))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(
            lambda sum_, new: sum_ + new if parallel.has_mean(new) else new, total, function(*part)
        ), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), (jnp.arange(count), parts))
    return jax.tree.map(lambda x: (x / count).astype(x.dtype) if parallel.has_mean(x) else x, total)


def in_parts(model: Model, count: int) -> Model:
    """A model that computes batches of images in ``count`` parts, forwards and backwards.

    The backward pass computes the forward pass of a part again, so that no more than one part's activations are kept.
    BatchNorm in train mode takes its statistics from each part. A batch that does not divide is computed at once.
    """

    def train(images: jax.Array) -> tuple[jax.Array, Any]:
        if len(images) % count:
            return model.train(images)
        logits, states = jax.lax.map(jax.checkpoint(model.train), split(images, count))
        return joined(logits), jax.tree.map(lambda x: x.mean(0) if parallel.has_mean(x) else x[-1], states)

    def evaluate(images: jax.Array) -> jax.Array:
        if len(images) % count:
            return model.eval(images)
        return joined(jax.lax.map(jax.checkpoint(model.eval), split(images, count)))

    return Model(train, evaluate, model.mean)
