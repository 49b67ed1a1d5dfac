"""The MNIST network of MadryLab's challenge as TRADES lays it out (its `SmallCNN`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.models import cpu_convolution, layers


class SmallCNN(nn.Module):
    """Convolutions 32, 32, pool, 64, 64, pool, all 3x3 without padding; dense 200, 200, classes.

    As in TRADES (github.com/yaodongyu/TRADES, models/small_cnn.py) convolutions start
    Kaiming-normal (fan-in) and the last layer at zero, so that an untrained network gives uniform
    probabilities.
    312,202 parameters for 28x28x1 and 10 classes. `dropout` is the rate between the two hidden
    layers: 0.5 in TRADES, 0 by default here. `activation` may be another of
    `layers.ACTIVATIONS` instead of ReLU.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated
    dropout: layers.Dropout = 0.0
    activation: layers.Activation = "relu"

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, "small_cnn", least=16)
        activation = layers.activation(self.activation)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        for features in (32, 64):
            for _ in range(2):
                x = layers.Conv3x3(
                    features,
                    padding="VALID",
                    dtype=self.dtype,
                    kernel_init=nn.initializers.he_normal(),
                    conv_general_dilated=self.conv_general_dilated,
                )(x)
                x = activation(x)
            x = layers.max_pool(x)
        x = x.reshape(len(x), -1)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=layers.torch_uniform)
        x = activation(dense(200)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = activation(dense(200)(x))
        return nn.Dense(
            self.num_classes,
            dtype=layers.logits_dtype(self.dtype),
            kernel_init=nn.initializers.zeros_init(),
        )(x)


PRESETS = {"small_cnn": SmallCNN}
