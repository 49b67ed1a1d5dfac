"""Small networks on the digits, trained in a second or two each, on which defences are planted.

Every model is a pytree, so that attacks compile once for all models of one structure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits

from robust_jax import losses

DIGITS = load_digits()
IMAGES = jnp.asarray(DIGITS.images[..., None] / 16, jnp.float32)
LABELS = jnp.asarray(DIGITS.target, jnp.int32)
TRAIN = 1497
FEW, THEIRS = IMAGES[TRAIN : TRAIN + 64], LABELS[TRAIN : TRAIN + 64]
KEY = jax.random.key(0)

Model = Callable[[Array], Array]
Activation = Callable[[Array], Array]
Loss = Callable[[Model, Array, Array, Array], Array]  # (model, images, labels, key) -> a number


def layers(sizes: Sequence[int], seed: int = 0) -> list[tuple[Array, Array]]:
    """Random weights and zero biases (He et al. 2015)."""
    rng = np.random.default_rng(seed)
    return [
        (jnp.asarray(rng.normal(size=shape) * (2 / shape[0]) ** 0.5, jnp.float32), jnp.zeros(shape[1]))
        for shape in zip(sizes, sizes[1:], strict=False)
    ]


def chain(activation: Activation, weights: Sequence[tuple[Array, Array]], images: Array) -> Array:
    """The logits of a multilayer perceptron."""
    h = images.reshape(len(images), -1)
    for w, b in weights[:-1]:
        h = activation(h @ w + b)
    w, b = weights[-1]
    return h @ w + b


def mean_cross_entropy(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """Standard training."""
    return losses.cross_entropy(model(images), labels).mean()


def fitted(
    function: Callable[[Any, Array], Array],
    weights: Any,
    loss: Loss = mean_cross_entropy,
    data: tuple[Array, Array] = (IMAGES[:TRAIN], LABELS[:TRAIN]),
    steps: int = 300,
) -> Model:
    """``images -> function(weights, images)`` with the weights that Adam finds in some hundred steps."""
    images, labels = data
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(weights: Any, state: Any, index: Array, key: Array) -> tuple[Any, Any]:
        def total(w: Any) -> Array:
            return loss(functools.partial(function, w), images[index], labels[index], key)

        updates, state = optimizer.update(jax.grad(total)(weights), state)
        return optax.apply_updates(weights, updates), state

    state, rng = optimizer.init(weights), np.random.default_rng(0)
    for i in range(steps):
        key = jax.random.fold_in(KEY, i)
        weights, state = step(weights, state, rng.integers(0, len(images), 64), key)
    return jax.tree_util.Partial(function, weights)


@functools.cache
def perceptron(
    activation: Activation = jax.nn.relu, sizes: tuple[int, ...] = (64, 64, 64, 10), loss: Loss = mean_cross_entropy,
    seed: int = 0, steps: int = 300,
) -> Model:  # fmt: skip
    """A trained multilayer perceptron, the same object for the same arguments."""
    return fitted(functools.partial(chain, activation), layers(sizes, seed), loss, steps=steps)
