"""VGG-11, 13, 16 and 19 with BatchNorm for 32x32 images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.extensions import choose
from robust_jax.models import cpu_convolution, layers

# Convolutions of each of the five stages; every stage ends in a 2x2 pool.
STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """VGG as in github.com/kuangliu/pytorch-cifar: one dense layer after the pools.

    Each convolution is 3x3, zero-padded, with a bias, then BatchNorm and ReLU. For images larger than
    32x32 the map that remains is averaged. VGG-11 has 9,231,114 parameters for 10 classes.
    Running variances are of the biased batch variance; torch's are of the unbiased one, larger by
    n / (n - 1) for n = batch x height x width. `batch_norm_axis` names the mapped axis over which
    batch statistics are averaged (synchronised BatchNorm); None keeps them on each device.
    `activation` may be another of `layers.ACTIVATIONS` instead of ReLU.
    """

    num_classes: int
    depth: int = 11
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated
    batch_norm_axis: str | None = None
    activation: layers.Activation = "relu"

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        choose("depth", self.depth, STAGES)
        layers.check_images(images, f"vgg{self.depth}", least=32)
        activation = layers.activation(self.activation)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        for stage in STAGES[self.depth]:
            for features in stage:
                x = layers.Conv3x3(
                    features,
                    dtype=self.dtype,
                    kernel_init=layers.torch_uniform,
                    conv_general_dilated=self.conv_general_dilated,
                )(x)
                x = layers.BatchNorm(
                    use_running_average=not train,
                    dtype=self.dtype,
                    axis_name=self.batch_norm_axis,
                )(x)
                x = activation(x)
            x = layers.max_pool(x)
        full = layers.logits_dtype(self.dtype)
        x = x.astype(full).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=full, kernel_init=layers.torch_uniform)(x)


PRESETS = {f"vgg{depth}": partial(VGG, depth=depth) for depth in STAGES}
