"""Flows: every pixel of the result is sampled at a displaced position, ``T(x, δ) = warp(x, δ)``, δ in pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from robust_jax.spaces.perturbations import Images, Perturbation, Stride
from robust_jax.spaces.warping import differences, warp


def pullback(images: Images, gradient: Images, difference: str) -> Array:
    """``<gradient, ∂x>``: the flow gradient at δ = 0 is the image gradient times the differences of the image."""
    down, across = differences(images, difference)
    return jnp.stack([(gradient * down).sum(-1), (gradient * across).sum(-1)], -1)


def _flow_slope(images: Images, delta: Array, gradient: Images, reach: Any) -> Array:
    """The direction that attacks follow over flows, see `Perturbation.slope`.

    Along each axis T is linear between grid lines and has a kink on them. The derivative describes the piece that a
    pixel is on, although the loss may rise faster beyond the next grid line: a pixel on a thin stroke, say, gains by
    moving either way.
    """
    rewards = partial(_rewards, images, delta, gradient)
    if reach is None:
        return _to_better_side(rewards, delta, jnp.round(delta), 1)
    if isinstance(reach, Stride):
        return _to_better_side(rewards, delta, delta, reach.way)
    return _to_best_line(rewards, delta, reach)


def _rewards(images: Images, delta: Array, gradient: Images, *positions: Array) -> Array:
    """``<gradient, T>`` per pixel with one axis of δ at these positions, ``[len(positions), B, H, W, axis]``."""
    alone = jnp.eye(2, dtype=bool).reshape(2, 1, 1, 1, 1, 2)
    moved = jnp.where(alone, jnp.stack(positions), delta)
    at_once = jax.vmap(jax.vmap(lambda flow: (gradient * warp(images, flow)).sum(-1)))
    return jnp.moveaxis(at_once(moved), 0, -1)


def _to_better_side(rewards: Callable[..., Array], delta: Array, middle: Array, way: Array | int) -> Array:
    """The slope from the middle to the better end of a step of this length in either direction.

    Where both ends are worse, it is the derivative between the middle and δ, and 0 if they are the same.
    """
    here, up, down = rewards(middle, middle + way, middle - way)
    up, down = up - here, down - here
    neither = jnp.where(delta > middle, up, jnp.where(delta < middle, -down, 0))
    slope = jnp.where(jnp.maximum(up, down) > 0, jnp.where(up >= down, up, -down), neither)
    return slope / jnp.where(way > 0, way, 1)


def _to_best_line(rewards: Callable[..., Array], delta: Array, reach: Array) -> Array:
    """The slope along the chord to the best of the next two grid lines on either side, at most the reach away.

    0 where all of them are worse.
    """
    above, below = jnp.floor(delta) + 1, jnp.ceil(delta) - 1
    targets = [jnp.clip(line, -reach, reach) for line in (above, below, above + 1, below - 1)]
    here, *there = rewards(delta, *targets)
    gains, ways = jnp.stack(there) - here, jnp.stack(targets) - delta
    rates = gains / jnp.where(jnp.abs(ways) > 1e-6, ways, jnp.inf)
    best = gains.argmax(0, keepdims=True)
    return jnp.where(gains.max(0) > 0, jnp.take_along_axis(rates, best, 0)[0], 0)


def _flow_zeros(images: Images) -> Array:
    return jnp.zeros((*images.shape[:3], 2), images.dtype)


flow = Perturbation(
    _flow_zeros, warp, "flow", partial(pullback, difference="forward"), slope=_flow_slope, stride=0.25, unit="px",
    moves_pixels=True,
)  # fmt: skip
"""``T(x, δ) = warp(x, δ)``, δ ``[B, H, W, 2]`` (dy, dx) in pixels. Penalties take forward differences at δ = 0; attacks
look at both sides of the grid lines, see `Perturbation.slope`; in l1 and l21 a step moves a pixel by up to 0.25 px."""


flow_symmetric = replace(flow, name="flow_symmetric", pullback_at_zero=partial(pullback, difference="symmetric"))
"""`flow` whose gradient at δ = 0 is the mean of the two one-sided derivatives."""
