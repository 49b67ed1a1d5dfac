"""Models whose optimal attacks are known, or that are quick, for the tests of attacks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.tree_util.register_pytree_node_class
class Linear:
    """logits = images @ weights + bias, a pytree."""

    def __init__(self, weights, bias):
        self.weights, self.bias = weights, bias

    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.weights + self.bias

    def tree_flatten(self):
        return (self.weights, self.bias), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class Net(nn.Module):
    """One hidden layer, smooth."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.classes)(nn.tanh(nn.Dense(16)(x.reshape(len(x), -1) * 4)))


def times(model, factor, count=6):
    """The model's logits times a number, or one for each image: of one type, so that all share a compilation."""
    return jax.tree_util.Partial(_times, model, jnp.broadcast_to(jnp.asarray(factor, jnp.float32), (count, 1)))


def _times(model, factor, images):
    return model(images) * factor
