"""A small convolutional network for 8x8 images such as scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.models import cpu_convolution, layers


class DigitsCNN(nn.Module):
    """Convolutions of 32, 32, pool, 64 channels, one hidden layer of 64 units; 94,314 parameters.

    No BatchNorm and no dropout: a training step is deterministic and examples are not coupled.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        del train
        layers.check_images(images, "digits_cnn", least=2)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        init: dict[str, Any] = dict(dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        conv = partial(layers.Conv3x3, conv_general_dilated=self.conv_general_dilated, **init)
        x = nn.relu(conv(32)(x))
        x = nn.relu(conv(32)(x))
        x = layers.max_pool(x)
        x = nn.relu(conv(64)(x))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(64, **init)(x))
        return nn.Dense(self.num_classes, dtype=layers.logits_dtype(self.dtype))(x)


PRESETS = {"digits_cnn": DigitsCNN}
