"""Models whose optimal attacks are known, or that are quick, for the tests of attacks."""

from __future__ import annotations

from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from robust_jax import losses
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


@lru_cache
def digits_network():
    """A ReLU network trained by FGSM on the digits, and 100 images that it classifies correctly, with their labels."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32).reshape(-1, 8, 8, 1), jnp.asarray(labels)
    rng, optimizer = np.random.default_rng(0), optax.adam(5e-3)
    first = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in ((64, 64), (64, 10))]
    batches = rng.integers(1000, size=(600, 50))

    def loss(weights, x, y):
        return losses.cross_entropy(_relu_network(weights, x), y).mean()

    def step(carry, at):
        weights, state = carry
        x, y = images[at], labels[at]
        x = jnp.clip(x + 0.2 * jnp.sign(jax.grad(loss, 1)(weights, x, y)), 0, 1)
        updates, state = optimizer.update(jax.grad(loss)(weights, x, y), state)
        return (optax.apply_updates(weights, updates), state), None

    weights = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), batches)[0][0])(first)
    model = jax.tree_util.Partial(_relu_network, weights)
    right = np.flatnonzero(np.asarray(model(images[1000:])).argmax(-1) == labels[1000:])[:100] + 1000
    return model, images[right], labels[right]


def _relu_network(weights, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ weights[0]) @ weights[1]
