"""Bilinear sampling of images at displaced pixel positions: the one sampler of the library.

A flow is in pixels, ``(dy, dx)`` per output pixel: the output at pixel p is the image at p + flow[p].
Coordinates are clamped to the border, so every output value is a mean of input values.
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from robust_jax.options import Range
from robust_jax.options.signatures import checks_arguments

Sides = Annotated[Any, Range(least=1, tuples=True)]


def _cell(position: Array, size: int) -> tuple[Array, Array, Array]:
    """Lower and upper neighbour of each position on one axis, and the weight of the upper one."""
    # where, not clip: a coordinate exactly on the border keeps its full derivative (clip gives 1/2).
    position = jnp.where(position < 0, 0.0, position)
    position = jnp.where(position > size - 1, float(size - 1), position)
    low = jax.lax.stop_gradient(jnp.floor(position))
    index = low.astype(jnp.int32)
    return index, jnp.minimum(index + 1, size - 1), position - low


@checks_arguments
def warp(
    images: Float[Array, "b h w c"], flow: Float[Array, "b h w 2"] | Int[Array, "b h w 2"]
) -> Float[Array, "b h w c"]:
    """Samples ``images`` bilinearly at pixel position + flow.

    ``out[b, i, j] = images[b](i + flow[b, i, j, 0], j + flow[b, i, j, 1])``, coordinates clamped to
    ``[0, h - 1] x [0, w - 1]``. The identity at flow 0, an exact shift at integers; values never leave
    the range of the image.

    On a grid line the sampler has a kink; the derivative in ``flow`` there is the forward difference
    (0 in the last row and column). It is differentiable in ``images`` too.

    Args:
      images: any float type; the result has the same.
      flow: displacement (dy, dx) in pixels.

    Raises:
      ValueError: the shapes do not fit together.
    """
    b, h, w, c = images.shape
    # bfloat16 has no fractions of a pixel beyond column 128, and few before; int8 has no column beyond 127.
    flow = flow.astype(jnp.promote_types(flow.dtype, jnp.float32))
    rows = jnp.arange(h, dtype=flow.dtype)[:, None]
    columns = jnp.arange(w, dtype=flow.dtype)
    top, bottom, down = _cell(rows + flow[..., 0], h)
    left, right, across = _cell(columns + flow[..., 1], w)
    flat = images.reshape(b, h * w, c)

    def tap(y: Array, x: Array) -> Array:
        index = (y * w + x).reshape(b, h * w, 1)
        return jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds").reshape(b, h, w, c)

    down, across = down[..., None].astype(images.dtype), across[..., None].astype(images.dtype)
    upper = tap(top, left) * (1 - across) + tap(top, right) * across
    lower = tap(bottom, left) * (1 - across) + tap(bottom, right) * across
    return upper * (1 - down) + lower * down


def differences(images: Float[Array, "b h w c"], difference: str = "forward") -> tuple[Array, Array]:
    """The derivative of ``warp(images, flow)`` in (dy, dx) at flow 0, without a gather.

    ``forward``: ``x[i + 1] - x[i]``, 0 in the last row and column: what autodiff of `warp` gives.
    ``symmetric``: the mean of the derivatives from both sides (each 0 beyond the border).
    """
    b, h, w, c = images.shape
    down = jnp.concatenate([images[:, 1:] - images[:, :-1], jnp.zeros((b, 1, w, c), images.dtype)], 1)
    across = jnp.concatenate([images[:, :, 1:] - images[:, :, :-1], jnp.zeros((b, h, 1, c), images.dtype)], 2)
    if difference == "forward":
        return down, across
    before_down = jnp.concatenate([jnp.zeros((b, 1, w, c), images.dtype), down[:, :-1]], 1)
    before_across = jnp.concatenate([jnp.zeros((b, h, 1, c), images.dtype), across[:, :, :-1]], 2)
    return (down + before_down) / 2, (across + before_across) / 2


@checks_arguments
def normalized_to_pixels(flow: Float[Array, "... 2"] | float, size: Sides) -> Float[Array, "... 2"] | float:
    """Converts a flow in normalised units (the image spans [-1, 1]) into pixels: times (size - 1) / 2.

    0.01 is 0.155 pixels in a 32-pixel image. ``size`` is the image side, or (height, width) for a flow array.
    """
    if isinstance(size, tuple):
        if len(size) != 2:
            raise ValueError(f"normalized_to_pixels: size={size} must be one number, or (height, width).")
        return jnp.asarray(flow) * (jnp.asarray(size) - 1) / 2
    return flow * (size - 1) / 2
