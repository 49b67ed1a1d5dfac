"""What all models share: the input checks, normalisation, convolution and pooling.

Convolutions on CPU. XLA's CPU backend has fast kernels for some ways to write a convolution only:
(1) a 3x3 kernel on a map smaller than itself is a scalar loop (100 times slower than patches times
a matrix); (2) the gradient that `jax.grad` writes for the images misses the fast kernel inside a
loop body (3 to 5 times slower); (3) the one for the kernel is a convolution with a kernel as large
as the map; (4) where the output is not larger than the input another kernel is taken, which
runs on one core (up to twice slower on two); (5) the first layer, of images of few channels, and
its transpose are 2 to 4 times slower than sums over taps. So `conv_general_dilated` here is, on
CPU, a pair of bilinear primitives whose derivatives are each other: a convolution and the
correlation of images with cotangents. Every derivative of every order, forward and reverse, is
then of a form known to be fast. Strides become channels. On GPU and TPU, and for dilated or
grouped convolutions, it is `jax.lax.conv_general_dilated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

# torch's default for Conv2d and Linear: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# flax keeps this share of the old running statistics; torch's momentum is 1 - 0.9.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu, "silu": nn.silu, "softplus": nn.softplus, "gelu": nn.gelu, "sigmoid": nn.sigmoid, "tanh": nn.tanh,
}  # fmt: skip

Padding = tuple[tuple[int, int], tuple[int, int]]

_ROWS = 600  # of a matrix of patches
_FEW, _MANY = 4, 16  # channels: as those of images, and as those of layers
_FEW_TAPS = 9  # of a kernel whose sum over taps is written out


def logits_dtype(dtype) -> jnp.dtype:
    """The dtype of a model's logits: float32, or float64 where that is the compute dtype."""
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
    """`(images - mean) / std`, one value or one a channel; computed in float32, then cast."""
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values for images of {channels} channels; give 1 or {channels}")
    full = logits_dtype(dtype)
    centred = images.astype(full) - jnp.asarray(mean, full)
    return (centred / jnp.asarray(std, full)).astype(dtype)


def activation(name: str) -> Callable[[Array], Array]:
    """The function of `ACTIVATIONS` with that name; all but relu have a second derivative.

    Raises:
        ValueError: for an unknown name, listing all there are.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def max_pool(x: Float[Array, "b h w c"], window: int = 2, stride: int = 2, cover: bool = False) -> Array:
    """The largest of each `window` x `window` square, `stride` apart, as `[B, H2, W2, C]`.

    `H2 = (H - window) // stride + 1`: last rows and columns that fill no window are dropped. With
    `cover` that quotient is rounded up and the last windows reach over the edge, so that every entry
    is in one, as in cuda-convnet. `window` is a multiple of `stride`.

    The same as `flax.linen.max_pool(x, (window, window), (stride, stride))`, also in that of equal
    entries the first in row order takes the whole gradient (`jnp.max` would share it out), as in
    torch. Written as comparisons of slices: flax's gradient, select-and-scatter, is slower and
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


# --- convolution -----------------------------------------------------------------------------


def conv_general_dilated(
    lhs: Float[Array, "b h w i"],
    rhs: Float[Array, "kh kw i o"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """`jax.lax.conv_general_dilated` in the form that is fast on this backend (see the module).

    For the argument `conv_general_dilated` of `flax.linen.Conv`; equal to lax's up to rounding.
    """
    dilation = {*(options.get("lhs_dilation") or (1,)), *(options.get("rhs_dilation") or (1,))}
    cpu_form = (
        jax.default_backend() == "cpu"
        and lhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and dilation == {1}
        and options.get("dimension_numbers") in (_NHWC, lax.ConvDimensionNumbers(*_NHWC_AXES))
        and options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
        and not options.get("preferred_element_type")
        # Inside shard_map(check_vma=True) lax's own rules insert the sums over devices.
        and not (_varies(lhs) or _varies(rhs))
    )
    if not cpu_form:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    if set(window_strides) != {1}:
        lhs, rhs = _phases(lhs, rhs, window_strides, padding)
        padding = ((0, 0), (0, 0))
    (top, bottom), (left, right) = padding
    return _conv(lhs, rhs, ((int(top), int(bottom)), (int(left), int(right))))


Conv3x3 = partial(nn.Conv, kernel_size=(3, 3))

_NHWC = ("NHWC", "HWIO", "NHWC")
_NHWC_AXES = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def _phases(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """Images and kernel whose convolution, of stride 1 and without padding, is theirs of these strides.

    The `s x s` pixels that a stride passes at once become channels, and those of the kernel, filled up with zeros.
    """
    ends, cells = [], []
    for size, k, s, (before, after) in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True):
        steps, reach = (size + before + after - k) // s, -(-k // s) * s
        ends.append((before, steps * s + reach - size - before, 0))
        cells.append((reach - k, reach // s))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    kernel = jnp.pad(kernel, ((0, cells[0][0]), (0, cells[1][0]), (0, 0), (0, 0)))
    (down, across), (b, h, w, c), o = strides, x.shape, kernel.shape[-1]
    x = x.reshape(b, h // down, down, w // across, across, c).transpose(0, 1, 3, 2, 4, 5)
    kernel = kernel.reshape(cells[0][1], down, cells[1][1], across, c, o).transpose(0, 2, 1, 3, 4, 5)
    return x.reshape(*x.shape[:3], -1), kernel.reshape(*kernel.shape[:2], -1, o)


def _varies(x: Array) -> bool:
    """Whether x is typed as varying over a mapped axis; jax has renamed where this is said."""
    aval = jax.typeof(x)
    return bool(getattr(aval, "vma", None) or getattr(getattr(aval, "mat", None), "varying", None))


def _conv(x: Array, kernel: Array, padding: Padding) -> Array:
    """`y[b, h, w] = sum_ij x[b, h + i - p, w + j - p] @ kernel[i, j]`."""
    return _conv_p.bind(x, kernel, padding=padding)


def _correlate(x: Array, g: Array, padding: Padding) -> Array:
    """`k[i, j] = sum_bhw x[b, h + i - p, w + j - p] (outer) g[b, h, w]`: the kernel's cotangent."""
    return _correlate_p.bind(x, g, padding=padding)


def _shifts(x: Array, height: int, width: int, padding: Padding) -> list[Array]:
    """The windows `[B, height, width, C]` of the padded images at every offset, in row order."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    offsets = [(i, j) for i in range(x.shape[1] - height + 1) for j in range(x.shape[2] - width + 1)]
    return [x[:, i : i + height, j : j + width] for i, j in offsets]


def _padded(x: Array, padding: Padding) -> tuple[int, int]:
    return x.shape[1] + sum(padding[0]), x.shape[2] + sum(padding[1])


def _conv_impl(x: Array, kernel: Array, *, padding: Padding) -> Array:
    kh, kw, channels, features = kernel.shape
    height, width = (n - k + 1 for n, k in zip(_padded(x, padding), (kh, kw), strict=True))
    few_taps = kh * kw <= _FEW_TAPS
    if few_taps and channels == 1:  # a sum of products, which XLA makes one loop
        taps = zip(_shifts(x, height, width, padding), kernel.reshape(-1, features), strict=True)
        return reduce(jnp.add, [window * tap for window, tap in taps])
    if few_taps and features <= _FEW <= channels:  # all taps of a pixel are one product; then shifted and summed
        products = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        shifted = _shifts(products, height, width, padding)
        return reduce(jnp.add, [s[..., i * features : (i + 1) * features] for i, s in enumerate(shifted)])
    if x.shape[1] >= kh and x.shape[2] >= kw:
        # Rows of padding until the map grows; their output is dropped.
        spare = max(x.shape[1] + 1 - height, 0) if channels >= _MANY else 0
        (top, bottom), sides = padding
        out = lax.conv_general_dilated(x, kernel, (1, 1), ((top, bottom + spare), sides), dimension_numbers=_NHWC)
        return out[:, :height]
    patches = jnp.concatenate(_shifts(x, height, width, padding), axis=-1)
    return patches @ kernel.reshape(kh * kw * channels, features)


def _correlate_impl(x: Array, g: Array, *, padding: Padding) -> Array:
    height, width, features = g.shape[1:]
    kh, kw = (n - m + 1 for n, m in zip(_padded(x, padding), (height, width), strict=True))
    channels = x.shape[-1]
    if features < channels:  # the copies are of the factor with fewer channels
        return _turned(_correlate_impl(g, x, padding=_turned_padding(padding, (kh, kw))))
    patch = kh * kw * channels

    def patches(x: Array) -> Array:
        return jnp.concatenate(_shifts(x, height, width, padding), axis=-1).reshape(-1, patch)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + part[1].reshape(-1, features).T @ patches(part[0]), None

    if channels < 16:  # little enough to copy at once
        kernel = patches(x).T @ g.reshape(-1, features)
    else:  # a sum over parts of the batch that stay in the cache
        together = max(n for n in range(1, len(g) + 1) if len(g) % n == 0 and (n == 1 or n * height * width <= _ROWS))
        x, g = (v.reshape(-1, together, *v.shape[1:]) for v in (x, g))
        kernel = lax.scan(add, jnp.zeros((features, patch), g.dtype), (x, g))[0].T
    return kernel.reshape(kh, kw, channels, features)


def _turned(kernel: Array) -> Array:
    """The kernel turned by 180 degrees, with its channels exchanged: that of the transpose."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _turned_padding(padding: Padding, kernel_size: Sequence[int]) -> Padding:
    (top, bottom), (left, right) = padding
    kh, kw = kernel_size[:2]
    return (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)


def _transpose_conv(g: Array, kernel: Array, padding: Padding) -> Array:
    # Without the barrier XLA folds the turning into the convolution and misses the fast kernel.
    turned = lax.optimization_barrier(_turned(kernel))
    return _conv(g, turned, _turned_padding(padding, kernel.shape))


def _bilinear_primitive(name: str, impl: Callable[..., Array], lhs: Callable, rhs: Callable):
    """A primitive computed by `impl`, with rules for the cotangents of its two arguments."""
    primitive = Primitive(name)

    def abstract(x, y, **params):
        out = jax.eval_shape(partial(impl, **params), x, y)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batch(args, axes, **params):
        if axes[1] is None and primitive is _conv_p:  # one kernel: a larger batch
            x = jnp.moveaxis(args[0], axes[0], 0)
            out = primitive.bind(x.reshape(-1, *x.shape[2:]), args[1], **params)
            return out.reshape(*x.shape[:2], *out.shape[1:]), 0
        return jax.vmap(partial(impl, **params), axes)(*args), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(impl, static_argnames="padding"))
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.defbilinear(primitive, lhs, rhs)
    return primitive


_conv_p = _bilinear_primitive(
    "robust_jax_conv",
    _conv_impl,
    lambda g, x, kernel, *, padding: _transpose_conv(g, kernel, padding),
    lambda g, x, kernel, *, padding: _correlate(x, g, padding),
)
_correlate_p = _bilinear_primitive(
    "robust_jax_correlate",
    _correlate_impl,
    lambda kernel, x, g, *, padding: _transpose_conv(g, kernel, padding),
    lambda kernel, x, g, *, padding: _conv(x, kernel, padding),
)
