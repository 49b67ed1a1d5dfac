from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import perturbations
from robust_jax.perturbations import flow
from robust_jax.spaces import per_example
from robust_jax.spaces.perturbations import Perturbation, compose, pullback
from robust_jax.spaces.registry import get
from robust_jax.spaces.warping import differences, warp

pytestmark = pytest.mark.usefixtures("quick_compile")

contrast = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 2), images.dtype),
    apply=lambda images, delta: images * (1 + delta[:, 0, None, None, None]) + delta[:, 1, None, None, None],
    name="contrast",
)


def space_id(space):
    return "+".join(map(space_id, space)) if isinstance(space, tuple) else getattr(space, "name", space)


SPACES = ["additive", "flow", "affine", ("flow", "additive"), ("affine", contrast, "flow"), contrast]


def sample(shape=(3, 5, 6, 2), binary=False, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 2, shape) if binary else rng.uniform(size=shape)
    return jnp.asarray(images, jnp.float32), jnp.asarray(rng.normal(size=shape), jnp.float32)


def random_delta(space, images, scale=0.5):
    return perturbations.gaussian_delta(space, jax.random.split(jax.random.key(0), len(images)), images, scale)


@pytest.mark.parametrize("space", SPACES, ids=space_id)
def test_zero_changes_nothing_to_the_bit(space):
    space, (images, _) = get(space), sample()
    out = jax.jit(lambda x: space.apply(x, space.zeros(x)))(images)
    np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space", SPACES, ids=space_id)
def test_pullback_is_the_vjp_of_apply_at_zero(space, binary):
    space, (images, g) = get(space), sample(binary=binary)

    @jax.jit
    def both(images, g):
        by_vjp = jax.vjp(partial(space.apply, images), space.zeros(images))[1](g)[0]
        return pullback(space, images, g), by_vjp

    ours, by_vjp = both(images, g)
    # Sums of at most 60 float32 products of order 1 (affine: times 3 px).
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), ours, by_vjp)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(ours))


def test_flow_pullback_at_the_last_row_and_column_is_zero():
    images, g = sample()
    pulled = pullback(flow, images, g)
    np.testing.assert_array_equal(pulled[:, -1, :, 0], 0)
    np.testing.assert_array_equal(pulled[:, :, -1, 1], 0)
    assert (np.abs(pulled[:, :-1, :, 0]) > 0).all() and (np.abs(pulled[:, :, :-1, 1]) > 0).all()


def test_symmetric_flow_pullback_is_the_mean_of_both_sides():
    images, g = sample(binary=True)
    down, across = differences(images, "symmetric")
    expected = jnp.stack([(g * down).sum(-1), (g * across).sum(-1)], -1)
    np.testing.assert_allclose(pullback(get("flow_symmetric"), images, g), expected, atol=1e-6)
    # Mirroring the image mirrors it and turns its sign, as no one-sided derivative does.
    mirrored = pullback(get("flow_symmetric"), images[:, ::-1], g[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(mirrored * jnp.array([-1, 1]), expected, atol=1e-6)
    _, delta = sample((3, 5, 6, 2), seed=2)
    np.testing.assert_array_equal(get("flow_symmetric").apply(images, delta), warp(images, delta))


@pytest.mark.parametrize("degrees, turns", [(90, 1), (180, 2), (-90, -1), (360, 0)])
def test_affine_turns_a_square_image_as_rot90(degrees, turns):
    images, _ = sample((2, 7, 7, 2))
    delta = jnp.tile(jnp.array([degrees, 0.0, 0.0]), (2, 1))
    out = get("affine").apply(images, delta)
    # Coordinates of at most 3 px times cos 90° = 4e-8 in float32.
    np.testing.assert_allclose(out, np.rot90(images, turns, (1, 2)), atol=3e-6)


def test_affine_shift_is_a_warp_by_a_constant():
    images, _ = sample()
    delta = jnp.array([[0, 1.25, -0.5], [0, -2, 3], [0, 0.1, 0]])
    flow = jnp.broadcast_to(delta[:, None, None, 1:], (3, 5, 6, 2))
    np.testing.assert_array_equal(get("affine").apply(images, delta), warp(images, flow))


def test_affine_rotation_by_a_rotation_matrix():
    images, _ = sample()
    angle = np.radians(20.0)
    y, x = np.meshgrid(np.arange(5) - 2, np.arange(6) - 2.5, indexing="ij")
    at = np.stack([np.cos(angle) * y + np.sin(angle) * x, -np.sin(angle) * y + np.cos(angle) * x], -1)
    flow = jnp.asarray(at - np.stack([y, x], -1) + [0.3, -0.2], jnp.float32)
    delta = jnp.tile(jnp.array([20.0, 0.3, -0.2]), (3, 1))
    out = get("affine").apply(images, delta)
    np.testing.assert_allclose(out, warp(images, jnp.tile(flow, (3, 1, 1, 1))), atol=3e-6)


def test_at_zero_attacks_turn_and_shift_towards_the_end_of_the_larger_rise():
    affine, step = get("affine"), 1e-3 * jnp.array([10.0, 1.0, 1.0])
    images, g = sample((200, 9, 8, 1))
    zero = affine.zeros(images)
    slope = jax.grad(lambda d: (g * perturbations.apply_with_slope(affine, images, d)).sum())(zero)

    def rises(delta):
        return ((affine.apply(images, delta) - images) * g).sum((1, 2, 3))

    for axis in range(3):
        forth, back = (rises(zero.at[:, axis].add(sign * step[axis])) for sign in (1, -1))
        # 72 products of order 1: float32 rounds their sum by 1e-5, and a turn of at most 1e-3 px has squares of 1e-6.
        np.testing.assert_allclose(2 * step[axis] * slope[:, axis], forth - back, atol=1e-4)
        assert (abs(forth - back) > 2e-4).mean() > 0.8
    away = zero + 0.3
    ours = jax.grad(lambda d: (g * perturbations.apply_with_slope(affine, images, d)).sum())(away)
    np.testing.assert_allclose(ours, jax.grad(lambda d: (g * affine.apply(images, d)).sum())(away), rtol=1e-5)


def test_composition_applies_its_parts_in_order():
    images, _ = sample()
    space = get(("flow", "additive"))
    delta = random_delta(space, images)
    np.testing.assert_array_equal(space.apply(images, delta), warp(images, delta[0]) + delta[1])
    other = get(("additive", "flow"))
    np.testing.assert_array_equal(other.apply(images, delta[::-1]), warp(images + delta[1], delta[0]))
    assert space.name == "flow+additive"


def test_equal_compositions_are_equal_and_nested_ones_are_flat():
    assert get(("flow", "additive")) == get(["flow", "additive"]) != get(("additive", "flow"))
    assert hash(get(("flow", "additive"))) == hash(get(("flow", "additive")))
    nested = compose(compose(flow, perturbations.affine), perturbations.additive)
    assert nested == get(("flow", "affine", "additive"))


def test_additive_never_clips_but_confine_does():
    images = jnp.array([0.0, 0.2, 0.6, 1.0]).reshape(1, 2, 2, 1)
    delta = jnp.array([-0.5, 0.5, 0.5, 0.25]).reshape(1, 2, 2, 1)
    additive = get("additive")
    np.testing.assert_array_equal(additive.apply(images, delta), images + delta)
    confined = additive.confine(images, delta)
    np.testing.assert_allclose(confined.ravel(), [0, 0.5, 0.4, 0], atol=1e-7)
    # A tiny change survives to the bit: it is not the difference of two images.
    tiny = jnp.full_like(images, 1e-9).at[0, 1, 1].set(0)
    np.testing.assert_array_equal(additive.confine(images, tiny), tiny)


def test_confine_shrinks_every_part_even_where_an_earlier_one_left_the_box():
    images, _ = sample()
    space = get((contrast, "additive"))
    delta = random_delta(space, images, (1.0, 0.1))
    confined = space.confine(images, delta)
    np.testing.assert_array_equal(confined[0], delta[0])
    assert (np.abs(confined[1]) <= np.abs(delta[1])).all()
    inside = contrast.apply(images, delta[0])
    assert ((inside < 0) | (inside > 1)).any(), "the case this test is about"
    within = (inside >= 0) & (inside <= 1)
    out = space.apply(images, confined)[within]
    assert (out >= -1e-6).all() and (out <= 1 + 1e-6).all()


def test_headroom_is_the_way_to_the_box():
    images = jnp.array([0.0, 0.2, 0.6, 1.0]).reshape(1, 2, 2, 1)
    delta = jnp.array([0.1, -0.2, 0.1, 0.0]).reshape(1, 2, 2, 1)
    up = perturbations.headroom(get("additive"), images, delta, jnp.ones_like(delta))
    down = perturbations.headroom(get("additive"), images, delta, -jnp.ones_like(delta))
    np.testing.assert_allclose(up.ravel(), [0.9, 1, 0.3, 0], atol=1e-7)
    np.testing.assert_allclose(down.ravel(), [0.1, 0, 0.7, 1], atol=1e-7)
    # After a flow, the room is that of the displaced image.
    space = get(("flow", "additive"))
    both = (jnp.zeros((1, 2, 2, 2)).at[..., 1].set(1), delta)
    rooms = perturbations.headroom(space, images, both, jax.tree.map(jnp.ones_like, both))
    assert np.isinf(rooms[0]).all()
    np.testing.assert_allclose(rooms[1].ravel(), [0.7, 1, 0, 0], atol=1e-7)
    # Brightness beyond the box: no room further out, and none counted backwards.
    bright = (jnp.array([[0.0, 0.5]]), delta)
    rooms = perturbations.headroom(get((contrast, "additive")), images, bright, jax.tree.map(jnp.ones_like, bright))
    np.testing.assert_allclose(rooms[1].ravel(), [0.4, 0.5, 0, 0], atol=1e-7)


def test_gaussian_delta_has_the_given_deviation_and_ignores_the_batch():
    images = jnp.zeros((200, 4, 4, 1))
    keys = jax.random.split(jax.random.key(0), 200)
    delta = perturbations.gaussian_delta(get("affine"), keys, images, (30.0, 3.0, 1.0))
    np.testing.assert_allclose(delta.std(0), [30, 3, 1], rtol=0.2)
    np.testing.assert_allclose(delta.mean(0) / jnp.array([30, 3, 1]), 0, atol=0.25)
    space = get(("flow", "additive"))
    both = perturbations.gaussian_delta(space, keys, images, (0.1, 2.0))
    np.testing.assert_allclose([leaf.std() for leaf in both], [0.1, 2], rtol=0.05)
    assert abs(np.corrcoef(both[0][..., 0].ravel(), both[1].ravel())[0, 1]) < 0.1
    part = perturbations.gaussian_delta(space, keys[50:60], images[50:60], (0.1, 2.0))
    jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda leaf: leaf[50:60], both))


def test_example_keys():
    keys = per_example.example_keys(jax.random.key(0), 5)
    data = jax.random.key_data(keys)
    assert len(np.unique(data, axis=0)) == 5
    np.testing.assert_array_equal(jax.random.key_data(per_example.example_keys(keys, 5)), data)
    with pytest.raises(ValueError, match="5 keys for 4"):
        per_example.example_keys(keys, 4)
    with pytest.raises(ValueError, match=r"jax\.random\.key"):
        per_example.example_keys(jax.random.PRNGKey(0), 2)


@pytest.mark.parametrize("unknown", ["flw", 3, None, (), ("flow", "nothing")])
def test_an_unknown_perturbation_is_an_error_that_lists_them(unknown):
    with pytest.raises(ValueError, match="additive.*affine.*flow"):
        get(unknown)


def test_what_attacks_follow_over_flows_looks_to_both_sides_of_a_grid_line():
    # A bright pixel, to be darkened: its neighbours on the row are darker, the left one most.
    images = jnp.full((1, 3, 5, 1), 0.2).at[0, 1, 2, 0].set(1.0).at[0, 1, 3, 0].set(0.6)
    wanted = jnp.zeros_like(images).at[0, 1, 2, 0].set(-1.0)

    @jax.jit
    def pulled(position, reach, wanted):
        delta = jnp.zeros((1, 3, 5, 2)).at[0, 1, 2, 1].set(position)
        return jax.vjp(lambda d: perturbations.apply_with_slope(flow, images, d, reach), delta)[1](wanted)[0]

    def slope(position, reach):
        found = pulled(position, reach, wanted)
        assert not found.at[0, 1, 2].set(0).any()
        return float(found[0, 1, 2, 1])

    # At 0.3 it is 0.88; at 0.5 it would be 0.8, at -0.5 0.6.
    assert slope(0.3, 0.5) == pytest.approx(-0.28 / 0.8, rel=1e-5)
    # At -0.5 nothing is better; with more reach one pixel away is.
    assert slope(-0.5, 0.5) == 0 and slope(-0.5, 1.0) == pytest.approx(-0.8, rel=1e-5)
    # With a shared budget: the steeper side of the nearest line, and where that is the best point, back to it.
    for position in (0.0, 0.3, -0.3):
        assert slope(position, None) == pytest.approx(-0.8, rel=1e-5)
    wanted = -wanted
    assert slope(0.3, None) == pytest.approx(-0.4, rel=1e-5) and slope(0.0, None) == slope(0.0, 0.5) == 0
    # Where a step takes one pixel, what it gains: at -0.25 it is 0.8 and at 0.25 0.9; at 0.05 0.98 and at 0.55 0.78.
    stride = perturbations.Stride(0.25)
    assert slope(0.0, stride) == 0 and slope(0.3, stride) == pytest.approx(-0.4, rel=1e-5)
    wanted = -wanted
    assert slope(0.0, stride) == pytest.approx(-0.8, rel=1e-5)
    assert slope(0.3, stride) == pytest.approx(0.4, rel=1e-5)
    # In images it is what it was, and so is a perturbation without a slope.
    delta = jnp.full((1, 3, 5, 2), 0.3)
    for space in (flow, replace(flow, slope=None)):
        run = partial(perturbations.apply_with_slope, space)
        theirs = jax.vjp(lambda x: flow.apply(x, delta), images)[1](wanted)[0]
        np.testing.assert_allclose(jax.vjp(lambda x, r=run: r(x, delta), images)[1](wanted)[0], theirs, rtol=1e-6)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_half_precision_turns_an_image_by_what_delta_says(half):
    images, _ = sample((1, 64, 64, 1))
    delta = jnp.asarray([[30.0, 3.0, -2.0]])  # exact in either
    affine = get("affine")
    np.testing.assert_array_equal(affine.apply(images, delta.astype(half)), affine.apply(images, delta))
    assert affine.pullback_at_zero(images.astype(half), images.astype(half)).dtype == half
