"""Maxout units and networks against NumPy's maximum over the pieces, and the layouts of the paper's configs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robust_jax import models
from robust_jax.models.maxout import MNIST, maxout

pytestmark = pytest.mark.usefixtures("quick_compile")


def random_variables(model, images, scale=0.2):
    """Weights large enough that different units choose different pieces."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_maxout_is_the_maximum_over_the_pieces(pieces):
    x = np.random.default_rng(0).normal(size=(2, 3, 4 * pieces)).astype(np.float32)
    expected = np.stack([x[..., unit::4].max(-1) for unit in range(4)], -1)
    np.testing.assert_array_equal(maxout(jnp.asarray(x), pieces), expected)


def test_maxout_gradient_goes_to_the_largest_piece():
    x = jnp.array([[1.0, 5.0, 3.0, 2.0]])  # two units: pieces 1, 3 and 5, 2
    np.testing.assert_array_equal(jax.grad(lambda x: (maxout(x, 2) * jnp.array([10, 20])).sum())(x), [[0, 20, 10, 0]])
    np.testing.assert_array_equal(jax.grad(lambda x: maxout(x, 2).sum())(jnp.ones((1, 4))), np.full((1, 4), 0.5))


def test_mlp_formula():
    model = models.create("maxout_mlp", num_classes=3, hidden=(4, 2), pieces=3)
    images = jax.random.uniform(jax.random.key(0), (5, 3, 3, 1))
    variables = random_variables(model, images, 1.0)
    x = np.asarray(images).reshape(5, 9)
    dense = [jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(3)]
    for layer, units in zip(dense[:2], (4, 2), strict=True):
        kernel, bias = layer["kernel"].reshape(-1, 3, units), layer["bias"].reshape(3, units)
        x = np.max([x @ kernel[:, p] + bias[p] for p in range(3)], axis=0)
    expected = x @ dense[2]["kernel"] + dense[2]["bias"]
    np.testing.assert_allclose(model.apply(variables, images), expected, rtol=1e-4, atol=1e-5)


def test_cnn_formula():
    """Convolution, pieces and pool of each layer, with lax's convolution and flax's pool, edges covered."""
    model = models.create("maxout_cnn", num_classes=10)
    images = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
    variables = random_variables(model, images, 0.05)
    convolutions = variables["params"]["_Convolutions_0"]
    x, maps = images, []
    for i, layer in enumerate(MNIST):
        conv = convolutions[f"Conv_{i}"]
        padding = [(layer.padding, layer.padding)] * 2
        x = lax.conv_general_dilated(x, conv["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x + conv["bias"]
        x = jnp.stack(jnp.split(x, layer.pieces, -1)).max(0)
        beyond = (x.shape[1] - layer.pool) % 2
        x = nn.max_pool(x, (layer.pool, layer.pool), (2, 2), [(0, beyond)] * 2)
        maps.append(x.shape[1:])
    assert maps == [(10, 10, 48), (4, 4, 48), (3, 3, 24)]
    head = variables["params"]["Dense_0"]
    expected = x.reshape(2, -1) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), expected, rtol=1e-4, atol=1e-4)


def test_cifar_layout():
    """The maps that pylearn2's `partial_sum` 33 and 15 tell: 33 before the first pool, 15 before the second."""
    model = models.create("maxout_cifar", num_classes=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    kernels = [shapes["_Convolutions_0"][f"Conv_{i}"]["kernel"].shape for i in range(3)]
    assert kernels == [(8, 8, 3, 192), (8, 8, 96, 384), (5, 5, 192, 384)]
    assert [shapes[f"Dense_{i}"]["kernel"].shape for i in range(2)] == [(5 * 5 * 192, 2500), (500, 10)]


def test_initial_weights():
    model = models.create("maxout_mlp", num_classes=10)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    larger = models.create("maxout_mlp", num_classes=10, hidden=(4,), irange=0.5)
    assert jnp.abs(larger.init(jax.random.key(0), jnp.zeros((1, 9, 9, 1)))["params"]["Dense_0"]["kernel"]).max() > 0.49
    for layer in params.values():
        assert 0.0049 < jnp.abs(layer["kernel"]).max() <= 0.005 and not layer["bias"].any()
        assert layer["kernel"].std() == pytest.approx(0.005 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("name", "size"), [("maxout_mlp", 4), ("maxout_cnn", 18)])
def test_dropout_is_of_training_only(name, size):
    images = jax.random.uniform(jax.random.key(0), (2, size, size, 1))
    model = models.create(name, num_classes=10)
    assert (model.input_dropout, model.dropout) == (0.2, 0.5)
    variables = random_variables(model, images)
    train = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key}))
    assert not jnp.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
    without = models.create(name, num_classes=10, input_dropout=0.0, dropout=0.0)
    a, b = jax.jit(model.apply)(variables, images), jax.jit(lambda v: without.apply(v, images, train=True))(variables)
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("maxout_mlp", (5, 5, 1)), ("maxout_cnn", (18, 18, 1))])
def test_gradient_penalty_is_finite_and_not_zero(name, shape):
    """From the initial weights on, on images with equal pixels, where pieces are equal too."""
    model = models.create(name, num_classes=10)
    images = jnp.concatenate([jax.random.uniform(jax.random.key(0), (1, *shape)), jnp.zeros((1, *shape))])
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def penalty(v):
        gradient = jax.grad(lambda x: model.apply(v, x)[:, 0].sum())(images)
        return jnp.sum(jnp.square(gradient / jnp.abs(lax.stop_gradient(gradient)).max()))

    gradients = jax.tree.leaves_with_path(jax.jit(jax.grad(penalty))(variables))
    for path, gradient in gradients:
        assert jnp.isfinite(gradient).all(), path
        assert gradient.any() == ("kernel" in str(path)), path  # piecewise linear: no gradient in the biases


def test_maxout_mlp_learns():
    """Not only the right shape: a few steps, from larger weights, fit 40 random images."""
    images = jax.random.uniform(jax.random.key(0), (40, 8, 8, 1))
    labels = jnp.arange(40) % 10
    model = models.create(
        "maxout_mlp", num_classes=10, hidden=(40, 40), mean=0.5, input_dropout=0.0, dropout=0.0, irange=0.1
    )

    def loss(v):
        logits = jax.nn.log_softmax(model.apply(v, images))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    @jax.jit
    def step(v, m):
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, jax.grad(loss)(v))
        return jax.tree.map(lambda p, m: p - 0.1 * m, v, m), m

    v = model.init(jax.random.key(0), images)
    m = jax.tree.map(jnp.zeros_like, v)
    start = loss(v)
    for _ in range(100):
        v, m = step(v, m)
    assert loss(v) < 0.7 * start
