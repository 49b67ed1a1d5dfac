"""What all models share: the input checks, normalisation, activations, 3x3 convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax.extensions import choose
from robust_jax.options import Convert, Range

Conv3x3 = partial(nn.Conv, kernel_size=(3, 3))

# torch's default for Conv2d and Linear: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# flax's momentum is the weight of the old running statistics; torch's is that of the new ones, 1 - 0.9.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu, "silu": nn.silu, "softplus": nn.softplus, "gelu": nn.gelu, "sigmoid": nn.sigmoid, "tanh": nn.tanh,
}  # fmt: skip


def logits_dtype(dtype) -> jnp.dtype:
    """The dtype of a model's logits: float32, or float64 if that is the dtype of its computations."""
    return jnp.promote_types(dtype, jnp.float32)


def check_images(images: Array, name: str, least: int) -> None:
    """Raises ValueError unless `images` is `[B, H, W, C]` with H, W >= `least`."""
    if images.ndim != 4:
        raise ValueError(
            f"{name} takes a batch of images [batch, height, width, channels], "
            f"got an array of shape {images.shape}" + ("; for one image write image[None]" if images.ndim == 3 else "")
        )
    if min(images.shape[1:3]) < least:
        raise ValueError(
            f"{name} needs images of at least {least}x{least} pixels, "
            f"got {images.shape[1]}x{images.shape[2]}; enlarge them or choose a smaller network"
        )


def normalize(
    images: Float[Array, "b h w c"], mean: Sequence[float], std: Sequence[float], dtype
) -> Float[Array, "b h w c"]:
    """`(images - mean) / std`, with one value or one per channel; computed in float32, then cast."""
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values for images of {channels} channels; give 1 or {channels}")
    full = logits_dtype(dtype)
    centred = images.astype(full) - jnp.asarray(mean, full)
    return (centred / jnp.asarray(std, full)).astype(dtype)


def activation(name: str) -> Callable[[Array], Array]:
    """The function in `ACTIVATIONS` with that name; all but relu have a second derivative.

    Raises:
        ValueError: an unknown name, listing all valid ones.
    """
    choose("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


Activation = Annotated[str, Convert(activation)]
"""A field for the name of an activation."""
Dropout = Annotated[float, Range(least=0, below=1)]
"""A field for the rate of dropout."""


def max_pool(x: Float[Array, "b h w c"], window: int = 2, stride: int = 2, cover: bool = False) -> Array:
    """The largest entry of each `window` x `window` square, squares `stride` apart, as `[B, H2, W2, C]`.

    `H2 = (H - window) // stride + 1`: last rows and columns that fill no window are dropped. With
    `cover` the quotient is rounded up and the last windows reach over the edge, so that every entry
    is in a window, as in cuda-convnet. `window` is a multiple of `stride`.

    Equal to `flax.linen.max_pool(x, (window, window), (stride, stride))`, including its gradient at ties:
    the first of equal entries in row order takes all of it, as in torch (`jnp.max` would share it out).
    It is written as comparisons of slices because flax's gradient, select-and-scatter, is slower and
    takes more memory.
    """
    overlap, rest = divmod(window, stride)
    if rest:
        raise ValueError(f"a pool of window {window} and stride {stride}: the window must be a multiple of the stride")
    for axis in (2, 1):
        spare = x.shape[axis] - window
        count = (-(-spare // stride) if cover else spare // stride) + 1
        beyond = max((count - 1) * stride - spare, 0)
        if beyond:
            x = jnp.pad(x, [(0, beyond if i == axis else 0) for i in range(4)], constant_values=-jnp.inf)
        # The largest of each `stride` entries, then of each `overlap` of those: fewer comparisons.
        x = reduce(_larger, [_every(x, axis, i, count + overlap - 1, stride) for i in range(stride)])
        x = reduce(_larger, [_every(x, axis, i, count, 1) for i in range(overlap)])
    return x


def _larger(a: Array, b: Array) -> Array:
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _every(x: Array, axis: int, start: int, count: int, step: int) -> Array:
    return x[(slice(None),) * axis + (slice(start, start + count * step, step),)]
