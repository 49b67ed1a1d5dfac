"""The MLP against its formula, its dropout, and the derivative that gradient penalties take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import models

pytestmark = pytest.mark.usefixtures("quick_compile")


def small(**fields):
    model = models.create("mlp", num_classes=3, hidden=(6, 5), **fields)
    images = jax.random.uniform(jax.random.key(0), (4, 3, 2, 1))
    return model, model.init(jax.random.key(1), images), images


def test_formula():
    model, variables, images = small(mean=0.5, std=0.25)
    x = (np.asarray(images).reshape(4, 6) - 0.5) / 0.25
    layers = [variables["params"][f"Dense_{i}"] for i in range(3)]
    for layer in layers[:2]:
        x = 1 / (1 + np.exp(-(x @ layer["kernel"] + layer["bias"])))
    np.testing.assert_allclose(model.apply(variables, images), x @ layers[2]["kernel"] + layers[2]["bias"], rtol=1e-5)


def test_dropout_is_of_training_only():
    model, variables, images = small(dropout=0.5)
    train = lambda key: model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(key)})  # noqa: E731
    assert not jnp.allclose(train(0), train(1))
    np.testing.assert_array_equal(model.apply(variables, images), small()[0].apply(variables, images, train=True))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softplus"])
def test_gradient_penalty_has_the_derivative_of_differences(activation):
    with jax.enable_x64(True):
        model, variables, images = small(activation=activation, dtype="float64")
        variables, images = jax.tree.map(lambda v: v.astype(jnp.float64), (variables, images))

        @jax.jit
        def penalty(v):
            return (jax.grad(lambda x: model.apply(v, x)[:, 0].sum())(images) ** 2).sum()

        direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape), variables)
        moved = lambda t: penalty(jax.tree.map(lambda v, d: v + t * d, variables, direction))  # noqa: E731
        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        found = jax.tree.map(lambda g, d: (g * d).sum(), jax.jit(jax.grad(penalty))(variables), direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(found)), expected, rtol=1e-6)
