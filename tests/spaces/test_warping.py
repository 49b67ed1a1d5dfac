from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.ndimage import map_coordinates

from robust_jax.spaces import warping
from robust_jax.spaces.warping import differences, normalized_to_pixels

pytestmark = pytest.mark.usefixtures("quick_compile")

warp = jax.jit(warping.warp)


def scipy_warp(images, flow):
    """The same sampling by scipy, in float64."""
    b, h, w, c = images.shape
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
    at = np.moveaxis(grid + np.asarray(flow, np.float64), -1, 1)
    out = [
        map_coordinates(np.asarray(images[i, ..., k], np.float64), at[i], order=1, mode="nearest")
        for i in range(b)
        for k in range(c)
    ]
    return np.moveaxis(np.reshape(out, (b, c, h, w)), 1, -1)


def images_and_flow(shape=(3, 5, 7, 2), scale=1.0, seed=0, binary=False):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=shape)
    images = np.round(images) if binary else images
    flow = scale * rng.normal(size=(*shape[:3], 2))
    return jnp.asarray(images, jnp.float32), jnp.asarray(flow, jnp.float32)


@pytest.mark.parametrize("scale", [0.01, 0.3, 2.0, 30.0, 1e4, 1e9])
@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (2, 1, 6, 1), (1, 4, 1, 3), (1, 1, 1, 1)])
def test_matches_scipy_at_random_flows(scale, shape):
    images, flow = images_and_flow(shape, scale)
    # A position p + f is rounded to float32: 7 * 2^-24 px, times two neighbours' difference of at most 1.
    np.testing.assert_allclose(warp(images, flow), scipy_warp(images, flow), atol=3e-6)


def test_far_outside_is_the_nearest_border_pixel():
    images, _ = images_and_flow()
    out = warp(images, jnp.full((3, 5, 7, 2), 1e30).at[..., 1].set(-1e30))
    np.testing.assert_array_equal(out, jnp.broadcast_to(images[:, -1:, :1], images.shape))
    out = warp(images, jnp.full((3, 5, 7, 2), -jnp.inf).at[..., 1].set(jnp.inf))
    np.testing.assert_array_equal(out, jnp.broadcast_to(images[:, :1, -1:], images.shape))


@pytest.mark.parametrize("binary", [False, True])
def test_is_the_identity_at_zero_to_the_bit(binary):
    images, flow = images_and_flow(binary=binary)
    np.testing.assert_array_equal(warp(images, flow * 0), images)
    np.testing.assert_array_equal(warping.warp(images, flow * 0), images)


@pytest.mark.parametrize("dy, dx", [(1, 0), (0, -2), (-3, 4), (10, -10)])
def test_is_a_shift_at_integers_to_the_bit(dy, dx):
    images, _ = images_and_flow()
    flow = jnp.broadcast_to(jnp.array([dy, dx], jnp.float32), (3, 5, 7, 2))
    rows, columns = np.clip(np.arange(5) + dy, 0, 4), np.clip(np.arange(7) + dx, 0, 6)
    np.testing.assert_array_equal(warp(images, flow), images[:, rows][:, :, columns])


@pytest.mark.parametrize("scale", [0.2, 3.0])
@pytest.mark.parametrize("binary", [False, True])
def test_never_leaves_the_range_of_the_image(scale, binary):
    images, flow = images_and_flow((8, 16, 16, 3), scale, binary=binary)
    out = np.asarray(warp(images, flow))
    low, high = np.asarray(images.min((1, 2))), np.asarray(images.max((1, 2)))
    # Weights a and 1 - a sum to 1 up to half an ulp, twice.
    ulp = 2 * np.finfo(np.float32).eps
    assert (out >= low[:, None, None] * (1 - ulp)).all() and (out <= high[:, None, None] * (1 + ulp)).all()
    constant = jnp.full_like(images, 0.7)
    np.testing.assert_allclose(warp(constant, flow), 0.7, rtol=ulp)


def test_examples_do_not_mix():
    images, flow = images_and_flow()
    alone = [warp(images[i : i + 1], flow[i : i + 1])[0] for i in range(3)]
    # Programs for other shapes may differ by a rounding.
    np.testing.assert_allclose(warp(images, flow), jnp.stack(alone), rtol=1e-6)


def test_derivative_in_images_and_in_flow_away_from_the_kinks():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        images = jnp.asarray(rng.uniform(size=(2, 3, 4, 2)))
        # Whole steps, some of them outside, plus a fraction far from 0 and 1.
        flow = jnp.asarray(rng.integers(-3, 3, (2, 3, 4, 2)) + rng.uniform(0.2, 0.8, (2, 3, 4, 2)))
        check_grads(warp, (images, flow), order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)
        # Bilinear: the mixed second derivative is not 0.
        check_grads(jax.jit(jax.grad(lambda x, f: (warp(x, f) ** 2).sum(), (0, 1))), (images, flow),
                    order=1, modes=["rev"], rtol=1e-5, atol=1e-5)  # fmt: skip


def test_float64_flow_agrees_with_scipy_to_rounding():
    with jax.enable_x64(True):
        images, flow = images_and_flow()
        images, flow = images.astype(jnp.float64), flow.astype(jnp.float64)
        assert warp(images, flow).dtype == jnp.float64
        np.testing.assert_allclose(warp(images, flow), scipy_warp(images, flow), atol=1e-14)


def test_derivative_in_flow_at_zero_is_the_forward_difference():
    images, flow = images_and_flow(binary=True)
    derivatives = [
        jax.jvp(lambda f: warp(images, f), (flow * 0,), (jnp.zeros_like(flow).at[..., axis].set(1),))[1]
        for axis in range(2)
    ]
    x = np.asarray(images)
    down = np.concatenate([np.diff(x, axis=1), 0 * x[:, :1]], 1)
    across = np.concatenate([np.diff(x, axis=2), 0 * x[:, :, :1]], 2)
    np.testing.assert_array_equal(derivatives[0], down)
    np.testing.assert_array_equal(derivatives[1], across)
    np.testing.assert_array_equal(differences(images)[0], down)
    np.testing.assert_array_equal(differences(images)[1], across)


def test_symmetric_differences_are_the_mean_of_both_sided_derivatives():
    images, flow = images_and_flow(binary=True)
    for axis in range(2):
        # The sampler is linear within a pixel: half a pixel's difference is the one-sided derivative.
        unit = jnp.zeros_like(flow).at[..., axis].set(0.5)
        forward = (warp(images, unit) - images) / 0.5
        backward = (images - warp(images, -unit)) / 0.5
        np.testing.assert_allclose(differences(images, "symmetric")[axis], (forward + backward) / 2, atol=1e-6)


def test_normalized_to_pixels():
    assert normalized_to_pixels(0.01, 32) == pytest.approx(0.155, rel=1e-12)
    flow = jnp.ones((1, 3, 5, 2))
    np.testing.assert_allclose(normalized_to_pixels(flow, (3, 5)), jnp.broadcast_to(jnp.array([1.0, 2.0]), flow.shape))


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 5, 7, 3), (2, 5, 7, 2), (3, 7, 5, 2)])
def test_wrong_shapes_are_an_error(shape):
    with pytest.raises(ValueError, match=r"flow must be floats \[B, H, W, 2\]"):
        warping.warp(jnp.zeros((3, 5, 7, 2)), jnp.zeros(shape))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_flows_in_half_precision_move_every_column(dtype):
    images, _ = images_and_flow((1, 2, 160, 1))
    flow = jnp.full((1, 2, 160, 2), 0.155, dtype)
    # Positions such as 128.155 have no bits for their fraction in half precision.
    np.testing.assert_array_equal(warp(images, flow), warp(images, flow.astype(jnp.float32)))


def test_a_flow_of_small_whole_numbers_reaches_every_column():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 2, 200, 1)), jnp.float32)
    flow = jnp.full((1, 2, 200, 2), 5, jnp.int8)
    np.testing.assert_array_equal(warp(images, flow), warp(images, flow.astype(jnp.int32)))
