"""Rotations and shifts: the image sampled on the rotated, shifted grid."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax.spaces import per_example
from robust_jax.spaces.flow import pullback
from robust_jax.spaces.perturbations import Images, Perturbation
from robust_jax.spaces.warping import warp


def _affine_flow(delta: Float[Array, "b 3"], shape: tuple[int, ...]) -> Float[Array, "b h w 2"]:
    """The flow of a rotation about the image centre by delta[:, 0] degrees, then a shift (dy, dx) in pixels."""
    h, w = shape[1:3]
    delta = per_example.widened(delta)  # bfloat16 has no fractions of a pixel beyond column 128, and few before
    y = jnp.arange(h, dtype=delta.dtype)[:, None] - (h - 1) / 2
    x = jnp.arange(w, dtype=delta.dtype) - (w - 1) / 2
    angle, dy, dx = (d[:, None, None] for d in jnp.moveaxis(delta, -1, 0))
    angle = angle * (math.pi / 180)
    # 1 - cos as 2 sin², so that no digits are lost (and the flow is exactly 0) at small angles.
    sine, versine = jnp.sin(angle), 2 * jnp.sin(angle / 2) ** 2
    return jnp.stack([-versine * y + sine * x + dy, -versine * x - sine * y + dx], -1)


def _affine_pullback(images: Images, gradient: Images, difference: str) -> Array:
    zeros = jnp.zeros((len(images), 3), images.dtype)
    flow_vjp = jax.vjp(lambda delta: _affine_flow(delta, images.shape), zeros)[1]
    return flow_vjp(per_example.widened(pullback(images, gradient, difference)))[0]


def _affine(images: Images, delta: Array) -> Images:
    return warp(images, _affine_flow(delta, images.shape))


def _affine_slope(images: Images, delta: Array, gradient: Images, reach: Any) -> Array:
    """The direction that attacks follow: the derivative, at δ = 0 the mean of those in both directions.

    Its sign is that of ``f(δ) - f(-δ)`` for a small δ along an axis, so that it leads to the better end.
    """
    derivative = jax.vjp(partial(_affine, images), delta)[1](gradient)[0]
    at_zero = (delta == 0).all(-1, keepdims=True)
    return jnp.where(at_zero, _affine_pullback(images, gradient, "symmetric"), derivative)


affine = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 3), images.dtype),
    apply=_affine,
    name="affine",
    pullback_at_zero=partial(_affine_pullback, difference="forward"),
    slope=_affine_slope,
    unit="(°, px, px)",
    moves_pixels=True,
)
"""``T(x, δ)`` samples x on the grid rotated about its centre and shifted: δ ``[B, 3]`` (degrees, dy, dx in pixels).

At δ = 0, a kink, the gradient that penalties take is that by forward differences of the image, as for flows. A rotation
moves half of the pixels backwards, so that its entry is the derivative of neither direction; attacks take the mean of
the derivatives in both, by symmetric differences.
"""
