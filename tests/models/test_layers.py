"""The layers against lax's and flax's own: values and derivatives of both orders and modes."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from robust_jax.models import cpu_convolution, layers

pytestmark = pytest.mark.usefixtures("quick_compile")

NHWC = ("NHWC", "HWIO", "NHWC")
# height, width, channels, features, padding; the 2x2 map is smaller than the kernel, the last two are large
SHAPES = [
    (7, 6, 4, 3, "VALID"),
    (5, 6, 16, 17, ((1, 1), (2, 0))),
    (2, 2, 5, 4, "SAME"),
    (19, 20, 16, 17, "VALID"),
    (18, 19, 17, 16, "SAME"),
    (8, 9, 1, 6, ((1, 1), (2, 0))),
    (7, 8, 5, 3, "SAME"),
]


def arrays(shape, dtype=jnp.float32):
    h, w, i, o, padding = shape
    keys = jax.random.split(jax.random.key(0))
    x, dx = jax.random.normal(keys[0], (2, 3, h, w, i), dtype)
    k, dk = jax.random.normal(keys[1], (2, 3, 3, i, o), dtype)
    return x, k, dx, dk, padding


def forms(padding):
    make = lambda conv: partial(  # noqa: E731
        conv, window_strides=(1, 1), padding=padding, dimension_numbers=NHWC
    )
    return make(cpu_convolution.conv_general_dilated), make(lax.conv_general_dilated)


def assert_close(ours, theirs, tolerance=1e-4):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_equals_lax(shape):
    with jax.enable_x64(True):
        x, k, dx, dk, padding = arrays(shape, jnp.float64)

        def everything(conv):
            def energy(x, k):
                return jnp.sum(jnp.sin(conv(x, k)))

            def penalty(x, k):  # differentiated below: reverse over reverse
                gx, gk = jax.grad(energy, argnums=(0, 1))(x, k)
                return jnp.sum(jnp.tanh(gx)) + jnp.sum(gk**2)

            gradient = jax.grad(penalty, argnums=(0, 1))
            in_a_loop = lax.fori_loop(0, 2, lambda _, z: z + 0.1 * jax.grad(energy)(z, k), x)
            return (
                jax.jvp(conv, (x, k), (dx, dk)),
                gradient(x, k),
                jax.jvp(jax.grad(energy, argnums=(0, 1)), (x, k), (dx, dk)),  # forward over reverse
                in_a_loop,
            )

        ours, theirs = (jax.jit(partial(everything, conv))() for conv in forms(padding))
        assert_close(ours, theirs, 1e-9)


def test_convolution_on_cpu_is_not_just_lax():
    if jax.default_backend() != "cpu":
        pytest.skip("other backends use lax's")
    x, k, *_, padding = arrays(SHAPES[0])
    assert "robust_jax_conv" in str(jax.make_jaxpr(forms(padding)[0])(x, k))


@pytest.mark.parametrize("axes", [(2, None), (0, 4)], ids=str)
def test_convolution_under_vmap(axes):
    x, k, *_, padding = arrays(SHAPES[0])
    x = x if axes[0] is None else jnp.stack([x, -2 * x], axes[0])
    k = k if axes[1] is None else jnp.stack([k, k + 1], axes[1])

    def run(conv):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), argnums=(0, 1))
        return jax.jit(lambda: (jax.vmap(conv, axes)(x, k), jax.vmap(gradient, axes)(x, k)))()

    ours, theirs = map(run, forms(padding))
    assert_close(ours, theirs)


@pytest.mark.parametrize("check_vma", [True, False])
def test_convolution_in_shard_map(check_vma):
    x, k, *_, padding = arrays(SHAPES[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    spec = PartitionSpec("batch")

    def run(conv):
        def body(x, k):
            return jax.grad(lambda k: jnp.sum(jnp.sin(conv(x, k))))(k)[None]

        shard = jax.shard_map(body, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=check_vma)
        return shard(x, k)

    assert_close(*map(run, forms(padding)))


def test_convolution_under_pmap():
    x, k, *_, padding = arrays(SHAPES[0])

    def run(conv):
        gradient = jax.grad(lambda k, x: jnp.sum(jnp.sin(conv(x, k))))
        step = jax.pmap(lambda k, x: lax.psum(gradient(k, x), "b"), axis_name="b", in_axes=(None, 0))
        return step(k, x[None])

    assert_close(*map(run, forms(padding)))


@pytest.mark.parametrize(
    "options",
    [
        dict(strides=2),
        dict(strides=2, kernel_size=(1, 1)),
        dict(strides=(3, 2), padding=((2, 0), (0, 3))),
        dict(kernel_dilation=2),
        dict(feature_group_count=2),
        dict(kernel_size=(2, 4)),
        dict(dtype=jnp.bfloat16),
    ],
    ids=str,
)
def test_flax_convolution_with_any_option(options):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 4))
    options = dict(kernel_size=(3, 3)) | options
    ours = nn.Conv(6, **options, conv_general_dilated=cpu_convolution.conv_general_dilated)
    theirs = nn.Conv(6, **options)
    variables = theirs.init(jax.random.key(1), x)

    def both(model):
        def energy(v, x):
            return jnp.sum(model.apply(v, x).astype(jnp.float32) ** 2)

        return model.apply(variables, x), jax.grad(energy, argnums=(0, 1))(variables, x)

    tolerance = 0.03 if "dtype" in options else 1e-4
    results = (jax.tree.leaves(jax.jit(both, static_argnums=0)(model)) for model in (ours, theirs))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


# height and width, window, stride, cover, and the padding of flax that is the same
POOLS = [
    ((5, 7), 2, 2, False, (0, 0)),
    ((5, 7), 2, 2, True, (1, 1)),
    ((9, 8), 4, 2, False, (0, 0)),
    ((9, 8), 4, 2, True, (1, 0)),
    ((4, 5), 3, 1, True, (0, 0)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pool_equals_flax(pool):
    size, window, stride, cover, padding = pool
    distinct, dx = jax.random.normal(jax.random.key(0), (2, 2, *size, 3))

    def ours(x):
        return layers.max_pool(x, window, stride, cover)

    def flaxs(x):
        return nn.max_pool(x, (window, window), (stride, stride), [(0, p) for p in padding])

    weights = jax.random.normal(jax.random.key(1), flaxs(distinct).shape)

    def run(pool, x):
        gradient = jax.grad(lambda x: jnp.sum(weights * pool(x) ** 2))
        penalty = jax.grad(lambda x: jnp.sum(jnp.sin(gradient(x))))
        return pool(x), gradient(x), penalty(x), jax.jvp(pool, (x,), (dx,))

    # An entry of several windows sums their gradients in another order.
    same = (
        np.testing.assert_array_equal if window == stride else partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    )
    our_run, flaxs_run = jax.jit(partial(run, ours)), jax.jit(partial(run, flaxs))
    jax.tree.map(same, our_run(distinct), flaxs_run(distinct))
    ties = jnp.floor(distinct * 2) / 2
    values, gradient, _, (_, tangent) = our_run(ties)
    jax.tree.map(same, (values, gradient), flaxs_run(ties)[:2])
    # Forward mode takes the same one of equal entries as reverse mode; flax's, from jax 0.12 on, sometimes another.
    np.testing.assert_allclose(jnp.vdot(2 * weights * values, tangent), jnp.vdot(gradient, dx), rtol=1e-4)


def test_max_pool_refuses_a_window_that_is_no_multiple_of_the_stride():
    with pytest.raises(ValueError, match="window 3 and stride 2"):
        layers.max_pool(jnp.zeros((1, 6, 6, 1)), 3, 2)


def test_max_pool_passes_nan_on():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    for at in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        pooled = layers.max_pool(x.at[0, *at, 0].set(jnp.nan))
        np.testing.assert_array_equal(np.isnan(pooled).ravel(), [True, False, False, False])


def test_activations():
    x = jnp.array([-1.5, 0.0, 2.0])
    expected = {
        "relu": np.maximum(x, 0), "silu": x / (1 + np.exp(-x)), "softplus": np.log1p(np.exp(x)),
        "sigmoid": 1 / (1 + np.exp(-x)), "tanh": np.tanh(x),
        "gelu": [-0.1002, 0.0, 1.9545],  # x Phi(x), to the three digits that the tanh approximation has
    }  # fmt: skip
    assert set(expected) == set(layers.ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(layers.activation(name)(x), values, rtol=1e-5 if name != "gelu" else 5e-3)
    with pytest.raises(ValueError, match="activation='swish' is unknown: choose one of .*relu"):
        layers.activation("swish")


def test_normalize():
    images = jax.random.uniform(jax.random.key(0), (2, 3, 3, 3))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = np.stack([(np.asarray(images)[..., c] - mean[c]) / std[c] for c in range(3)], -1)
    np.testing.assert_allclose(layers.normalize(images, mean, std, jnp.float32), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="std has 2 values for images of 3 channels"):
        layers.normalize(images, mean, (0.1, 0.2), jnp.float32)
