"""The maxout networks of Goodfellow et al. 2013 (arXiv:1302.4389), laid out as in pylearn2's configs.

A maxout unit is the largest of a few linear functions of its input, its pieces. These networks are
meant to be trained with `optimizer.max_norm` of a config, which bounds the norm of the weights of
each piece: by 1.9365 in most layers of the paper. They differ from the paper's in that

- there is one bound for all layers, while the paper's first convolution has 0.9 and its dense CIFAR-10
  layer 1.9;
- a filter has one bias, while in the paper's MNIST network it has one per position;
- dropout divides what it keeps by the fraction that it keeps, in the images too; the paper's does not;
- images are normalised by `mean` and `std`, while the paper's CIFAR-10 images have their contrast
  normalised and are ZCA-whitened.

Weights start uniform in +-`irange`, 0.005 as in the paper. From such small weights the convolutional networks
leave the uniform prediction slowly; a run of few epochs may need a larger `irange`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.models import cpu_convolution, layers


def maxout(x: Float[Array, "*b pieces_units"], pieces: int) -> Float[Array, "*b units"]:
    """`y_u = max_p x_(p * units + u)`; equal pieces share the gradient."""
    return x.reshape(*x.shape[:-1], pieces, -1).max(-2)


def uniform(irange: float) -> nn.initializers.Initializer:
    """Uniform in +-irange; flax's own `uniform` draws from [0, scale)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -irange, irange)


class MaxoutMLP(nn.Module):
    """Two hidden layers of 240 maxout units with 5 pieces: the paper's permutation-invariant MNIST network.

    1,233,610 parameters for 28x28x1 and 10 classes. `input_dropout` is the rate in the images,
    `dropout` that after each hidden layer.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    hidden: tuple[int, ...] = (240, 240)
    pieces: int = 5
    input_dropout: layers.Dropout = 0.2
    dropout: layers.Dropout = 0.5
    irange: float = 0.005

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, "maxout_mlp", least=1)
        init = uniform(self.irange)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = nn.Dropout(self.input_dropout, deterministic=not train)(x.reshape(len(x), -1))
        for units in self.hidden:
            x = maxout(nn.Dense(self.pieces * units, dtype=self.dtype, kernel_init=init)(x), self.pieces)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=layers.logits_dtype(self.dtype), kernel_init=init)(x)


class ConvMaxout(NamedTuple):
    """A convolutional maxout layer: zero padding, convolution, the largest piece, max pool of stride 2."""

    units: int
    pieces: int
    kernel: int
    padding: int
    pool: int


MNIST = (ConvMaxout(48, 2, 8, 0, 4), ConvMaxout(48, 2, 8, 3, 4), ConvMaxout(24, 4, 5, 3, 2))
CIFAR = (ConvMaxout(96, 2, 8, 4, 4), ConvMaxout(192, 2, 8, 3, 4), ConvMaxout(192, 2, 5, 3, 2))


class _Convolutions(nn.Module):
    """Dropout of the images, then the layers, each followed by dropout; the last map flattened."""

    layout: tuple[ConvMaxout, ...]
    dtype: DTypeLike
    conv_general_dilated: Callable
    input_dropout: layers.Dropout
    dropout: layers.Dropout
    irange: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b features"]:
        x = nn.Dropout(self.input_dropout, deterministic=not train)(x)
        for layer in self.layout:
            x = nn.Conv(
                layer.pieces * layer.units,
                (layer.kernel, layer.kernel),
                padding=layer.padding,
                dtype=self.dtype,
                kernel_init=uniform(self.irange),
                conv_general_dilated=self.conv_general_dilated,
            )(x)
            x = layers.max_pool(maxout(x, layer.pieces), layer.pool, 2, cover=True)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x.reshape(len(x), -1)


class MaxoutCNN(nn.Module):
    """Convolutions of 48, 48, 24 maxout units with 2, 2, 4 pieces, then logits: the paper's MNIST network.

    Kernels 8, 8, 5 with padding 0, 3, 3 and overlapping pools 4, 4, 2 of stride 2: the maps of a
    28x28 image are 10x10, 4x4 and 3x3. 418,714 parameters for 28x28x1 and 10 classes.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated
    input_dropout: layers.Dropout = 0.2
    dropout: layers.Dropout = 0.5
    irange: float = 0.005

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, "maxout_cnn", least=18)
        init = uniform(self.irange)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        convolutions = _Convolutions(
            MNIST, self.dtype, self.conv_general_dilated, self.input_dropout, self.dropout, self.irange
        )
        x = convolutions(x, train)
        return nn.Dense(self.num_classes, dtype=layers.logits_dtype(self.dtype), kernel_init=init)(x)


class MaxoutCIFAR(nn.Module):
    """Convolutions of 96, 192, 192 maxout units with 2 pieces, 500 units with 5: the paper's CIFAR-10 network.

    Kernels 8, 8, 5 with padding 4, 3, 3 and overlapping pools 4, 4, 2 of stride 2: the maps of a
    32x32 image are 16x16, 7x7 and 5x5. 16,247,830 parameters for 32x32x3 and 10 classes.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated
    input_dropout: layers.Dropout = 0.2
    dropout: layers.Dropout = 0.5
    irange: float = 0.005

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, "maxout_cifar", least=10)
        init = uniform(self.irange)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        convolutions = _Convolutions(
            CIFAR, self.dtype, self.conv_general_dilated, self.input_dropout, self.dropout, self.irange
        )
        x = convolutions(x, train)
        x = maxout(nn.Dense(5 * 500, dtype=self.dtype, kernel_init=init)(x), 5)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=layers.logits_dtype(self.dtype), kernel_init=init)(x)


PRESETS = {"maxout_mlp": MaxoutMLP, "maxout_cnn": MaxoutCNN, "maxout_cifar": MaxoutCIFAR}
