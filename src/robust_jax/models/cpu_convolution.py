"""A convolution that is fast on XLA's CPU backend, with derivatives that are fast too.

XLA's CPU backend has fast kernels only for some ways to write a convolution. Measured with jax 0.10 on two cores
(`benchmarks/convolutions.py` measures it again):

1. A 3x3 kernel on a map smaller than itself, as the 2x2 maps of VGG, is a scalar loop: 100 times slower than patches
   times a matrix (1,076 ms instead of 13 for 64x2x2x512 -> 512 channels).
2. The gradient for the images that `jax.grad` writes misses the fast kernel inside a loop body, such as that of an
   attack: 3 to 5 times slower. Outside of loops XLA transposes the kernel explicitly; in a loop body the transpose
   stays folded into the convolution.
3. The gradient for the kernel is a convolution with a kernel as large as the map.
4. If the output is not larger than the input, another kernel is chosen, which runs on one core: up to twice slower on
   two.
5. The first layer, on images of few channels, and its transpose are 2 to 4 times slower than sums over the kernel's
   taps.

Therefore `conv_general_dilated` is, on CPU, a pair of bilinear primitives: a convolution of images with a kernel, and a
correlation of images with cotangents. The derivatives of each are made of these two, so every derivative of every
order, forward and reverse, has a form that is known to be fast: `_conv_impl` and `_correlate_impl` choose it by shape.
Strides become channels (`_phases`). On GPU and TPU, and for dilated or grouped convolutions, it is `jax.lax`'s.

A `custom_vjp` would not do: it has no forward mode, which the directional gradient penalty needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from robust_jax import parallel

Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")
_NHWC_AXES = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_ROWS = 600  # the most rows of a matrix of patches that stays in the cache
_FEW, _MANY = 4, 16  # numbers of channels: at most those of images, at least those of inner layers
_FEW_TAPS = 9  # the largest kernel whose sum over taps is written out


def conv_general_dilated(
    lhs: Float[Array, "b h w i"],
    rhs: Float[Array, "kh kw i o"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """`jax.lax.conv_general_dilated` in the form that is fast on this backend, equal to it up to rounding.

    It is meant for the argument `conv_general_dilated` of `flax.linen.Conv`.
    """
    dilation = {*(options.get("lhs_dilation") or (1,)), *(options.get("rhs_dilation") or (1,))}
    cpu_form = (
        parallel.on_cpu()
        and lhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and dilation == {1}
        and options.get("dimension_numbers") in (_NHWC, lax.ConvDimensionNumbers(*_NHWC_AXES))
        and options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
        and not options.get("preferred_element_type")
        # Inside shard_map(check_vma=True) only lax's own rules insert the sums over devices.
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


def _phases(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """Images and kernel whose convolution with stride 1 and no padding is that of the given ones with these strides.

    Each `s x s` block of pixels that a stride steps over becomes channels of one pixel. The kernel, filled up with
    zeros to whole blocks, is rearranged alike.
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
    """Whether the type of x says that it varies over a mapped axis; the attribute differs between versions of jax."""
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
    if few_taps and channels == 1:  # a sum of products, which XLA fuses into one loop
        taps = zip(_shifts(x, height, width, padding), kernel.reshape(-1, features), strict=True)
        return reduce(jnp.add, [window * tap for window, tap in taps])
    if few_taps and features <= _FEW <= channels:  # one product for all taps of a pixel, then shifts
        products = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        shifted = _shifts(products, height, width, padding)
        return reduce(jnp.add, [s[..., i * features : (i + 1) * features] for i, s in enumerate(shifted)])
    if x.shape[1] >= kh and x.shape[2] >= kw:
        # Rows of padding make the output larger than the input, see 4 above; what they add is dropped.
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
    if features < channels:  # patches copy the factor with fewer channels
        return _turned(_correlate_impl(g, x, padding=_turned_padding(padding, (kh, kw))))
    patch = kh * kw * channels

    def patches(x: Array) -> Array:
        return jnp.concatenate(_shifts(x, height, width, padding), axis=-1).reshape(-1, patch)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + part[1].reshape(-1, features).T @ patches(part[0]), None

    if channels < _MANY:  # small enough to copy at once
        kernel = patches(x).T @ g.reshape(-1, features)
    else:  # a sum over parts of the batch that fit in the cache
        together = max(n for n in range(1, len(g) + 1) if len(g) % n == 0 and (n == 1 or n * height * width <= _ROWS))
        x, g = (v.reshape(-1, together, *v.shape[1:]) for v in (x, g))
        kernel = lax.scan(add, jnp.zeros((features, patch), g.dtype), (x, g))[0].T
    return kernel.reshape(kh, kw, channels, features)


def _turned(kernel: Array) -> Array:
    """The kernel rotated by 180 degrees, with its channels exchanged: the kernel of the transpose."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _turned_padding(padding: Padding, kernel_size: Sequence[int]) -> Padding:
    (top, bottom), (left, right) = padding
    kh, kw = kernel_size[:2]
    return (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)


def _transpose_conv(g: Array, kernel: Array, padding: Padding) -> Array:
    # Without the barrier XLA folds the rotation into the convolution and misses the fast kernel, see 2 above.
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
