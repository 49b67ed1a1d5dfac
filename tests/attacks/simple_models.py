"""Models whose optimal attacks are known, or that are quick, for the tests of attacks."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_jax.spaces import threat_models


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


# Operation by operation these two would compile some twenty small programs for every shape and space.
@partial(jax.jit, static_argnames="shape")
def initial(shape, seed=0):
    """The variables of a `Net` of three classes for images of some shape."""
    return Net().init(jax.random.key(seed), jnp.zeros((1, *shape[1:])))


@jax.jit
def measured(threat, images, delta):
    """The size of δ and the images that it makes."""
    return threat_models.size(threat, delta), jnp.clip(threat.perturbation.apply(images, delta), 0, 1)


def times(model, factor, count=6):
    """The model's logits times a number, or one for each image: of one type, so that all share a compilation."""
    return jax.tree_util.Partial(_times, model, jnp.broadcast_to(jnp.asarray(factor, jnp.float32), (count, 1)))


def _times(model, factor, images):
    return model(images) * factor
