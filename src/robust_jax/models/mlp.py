"""A fully connected network, by default of sigmoid units."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.models import layers


class MLP(nn.Module):
    """Fully connected layers of `hidden` units, each with the activation, then a linear layer of logits.

    A smooth network for gradient penalties, which need the second derivative that ReLUs lack: sigmoid
    units as in Lyu, Huang & Liang 2015 (arXiv:1511.06385); the widths are this library's choice.
    Weights start Glorot-uniform. 648,010 parameters for 28x28x1 and 10 classes. `activation` is one
    of `layers.ACTIVATIONS`; `dropout` is the rate after each hidden layer.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    hidden: tuple[int, ...] = (500, 500)
    activation: layers.Activation = "sigmoid"
    dropout: layers.Dropout = 0.0

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, "mlp", least=1)
        activation = layers.activation(self.activation)
        dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = x.reshape(len(x), -1)
        for units in self.hidden:
            x = activation(dense(units, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.num_classes, dtype=layers.logits_dtype(self.dtype))(x)


PRESETS = {"mlp": MLP}
