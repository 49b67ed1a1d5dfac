from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.spaces import norms, threat_models
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.registry import get
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3, 5, 2)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 4)
THREATS = [
    ThreatModel("additive", "linf", 8 / 255),
    ThreatModel("additive", "l1", 3.0),
    ThreatModel("additive", 1.5, 3),
    ThreatModel("flow", "l2", 0.5),
    ThreatModel("flow", "l2inf", 0.155),
    ThreatModel("flow", "l21", 2.0),
    ThreatModel("affine", "linf", (30, 3, 3)),
    ThreatModel("affine", "l2", (30, 3, 0.5)),
    ThreatModel(("flow", "additive"), ("linf", "l2"), (0.3, 1.0)),
    ThreatModel(("affine", "additive"), "linf", ((30, 3, 3), 0.1)),
]
threats = pytest.mark.parametrize("threat", THREATS, ids=lambda t: f"{t.perturbation.name}-{t.norm}")


def normal_delta(threat, seed=0):
    """A δ well outside the ball."""
    rng = np.random.default_rng(seed)
    zeros = threat.perturbation.zeros(IMAGES)
    return jax.tree.map(lambda z: jnp.asarray(100 * rng.normal(size=z.shape), jnp.float32), zeros)


def inner(a, b):
    return sum((x * y).reshape(len(x), -1).sum(-1) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def endless(delta):
    return jax.tree.map(lambda d: jnp.full_like(d, jnp.inf), delta)


def parts(threat, *deltas):
    if threat.perturbation.parts:
        return list(zip(threat.norm, threat.radius, *deltas, strict=True))
    return [(threat.norm, threat.radius, *deltas)]


@threats
def test_size_is_the_norm_of_delta_over_radius(threat):
    delta = normal_delta(threat)
    expected = [norms.norm(d / jnp.asarray(r), n) for n, r, d in parts(threat, delta)]
    np.testing.assert_allclose(threat_models.size(threat, delta), np.max(expected, 0), rtol=1e-5)
    np.testing.assert_array_equal(threat_models.size(threat, threat.perturbation.zeros(IMAGES)), 0)


@threats
def test_projection_ends_in_the_ball_and_steepest_attains_the_gain(threat):
    outside, gradient = normal_delta(threat), normal_delta(threat, 1)
    np.testing.assert_allclose(threat_models.size(threat, threat_models.project(threat, outside)), 1, rtol=1e-5)
    best = threat_models.steepest(threat, gradient)
    assert (threat_models.size(threat, best) <= 1 + 1e-5).all()
    gain = threat_models.gain(threat, gradient)
    np.testing.assert_allclose(inner(gradient, best), gain, rtol=1e-5)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 4)
        point = threat_models.random_delta(threat, keys, IMAGES)
        assert (threat_models.size(threat, point) <= 1 + 1e-5).all()
        assert (inner(gradient, point) <= gain).all()
        corner = threat_models.steepest(threat, normal_delta(threat, seed + 2))
        assert (inner(gradient, corner) <= gain * (1 + 1e-5)).all()


@threats
def test_move_is_a_projected_step_in_the_units_of_the_radius(threat):
    zeros, gradient = threat.perturbation.zeros(IMAGES), normal_delta(threat, 1)
    quarter = jax.tree.map(lambda r: r / 4, threat.radius)
    moved = threat_models.move(threat, zeros, gradient, quarter, endless(zeros))
    expected = jax.tree.map(lambda s: s / 4, threat_models.steepest(threat, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), moved, expected)
    for _ in range(6):
        moved = threat_models.move(threat, moved, gradient, quarter, endless(zeros))
    np.testing.assert_allclose(threat_models.size(threat, moved), 1, rtol=1e-5)
    np.testing.assert_allclose(inner(gradient, moved), threat_models.gain(threat, gradient), rtol=1e-4)


def test_only_flows_that_share_a_budget_among_few_pixels_have_a_stride():
    stride = get("flow").stride
    for threat in THREATS:
        strides = threat_models.strides(threat, threat.perturbation.zeros(IMAGES))
        few = threat.perturbation.name == "flow" and threat.norm == "l21"
        jax.tree.map(lambda s, few=few: np.testing.assert_array_equal(s, stride if few else np.inf), strides)
    threat = ThreatModel(("flow", "additive"), ("l1", "l1"), (9.0, 1.0))
    zeros = threat.perturbation.zeros(IMAGES)
    flow, additive = threat_models.strides(threat, zeros)
    assert (flow == stride).all() and np.isinf(additive).all()
    moved = threat_models.move(threat, zeros, normal_delta(threat), (1.0, 0.5), endless(zeros), (flow, additive))
    assert [int((leaf != 0).sum()) for leaf in moved] == [4 * len(IMAGES), len(IMAGES)]


def test_a_stride_without_headroom_bounds_every_step():
    threat = ThreatModel("flow", "l21", 2.0)
    zeros = threat.perturbation.zeros(IMAGES)
    strides = threat_models.strides(threat, zeros)
    moved = threat_models.move(threat, zeros, normal_delta(threat), 1.0, stride=strides)
    np.testing.assert_array_equal(
        moved, threat_models.move(threat, zeros, normal_delta(threat), 1.0, endless(zeros), strides)
    )
    lengths = np.linalg.norm(moved, axis=-1).reshape(len(IMAGES), -1)
    assert (lengths <= get("flow").stride * (1 + 1e-6)).all() and ((lengths > 0).sum(-1) == 4).all()


@threats
def test_random_deltas_are_per_example_and_not_degenerate(threat):
    delta = threat_models.random_delta(threat, KEYS, IMAGES)
    part = threat_models.random_delta(threat, KEYS[1:3], IMAGES[1:3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:3], b), delta, part)
    for leaf, zero in zip(jax.tree.leaves(delta), jax.tree.leaves(threat.perturbation.zeros(IMAGES)), strict=True):
        assert leaf.shape == zero.shape and leaf.dtype == zero.dtype
        assert (np.abs(leaf).reshape(4, -1).max(-1) > 0).all() and len(np.unique(leaf[:, ..., 0])) > 3
    assert all(jnp.abs(d / jnp.asarray(radius)).max() > 0.01 for _, radius, d in parts(threat, delta))


def test_parts_of_a_composition_are_drawn_independently():
    threat = ThreatModel(("additive", "additive"), "linf", (1.0, 1.0))
    first, second = threat_models.random_delta(threat, KEYS, IMAGES)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.4


POINTS = [
    *[ThreatModel("additive", norm, 0.0) for norm in ("l1", "l2", "linf", 3, "l2inf")],
    ThreatModel("affine", "linf", (30, 0, 0)),
]


@pytest.mark.parametrize("threat", POINTS, ids=lambda t: f"{t.perturbation.name}-{t.norm}")
def test_radius_zero_is_a_ball_of_one_point(threat):
    gradient = normal_delta(threat)
    free = np.broadcast_to(np.asarray(threat.radius) > 0, gradient.shape)
    for delta in (
        threat_models.project(threat, gradient),
        threat_models.steepest(threat, gradient),
        threat_models.random_delta(threat, KEYS, IMAGES),
        threat_models.move(threat, jnp.zeros_like(gradient), gradient, 0.1, endless(gradient)),
    ):
        np.testing.assert_array_equal(delta[~free], 0)
        assert np.isfinite(delta).all()
        assert (threat_models.size(threat, delta) <= 1 + 1e-6).all()
    assert (threat_models.size(threat, gradient) == np.inf).all()
    assert np.isfinite(threat_models.gain(threat, gradient)).all()


def test_radius_is_traced_so_one_compilation_serves_all_radii():
    traces = 0

    @jax.jit
    def project(threat, delta):
        nonlocal traces
        traces += 1
        return threat_models.project(threat_models.scaled(threat, 2.0), delta)

    delta = jnp.full(IMAGES.shape, 5.0)
    for radius in (0.1, 0.2, 0.0):
        out = project(ThreatModel("additive", "linf", radius), delta)
        np.testing.assert_allclose(out, 2 * radius, rtol=1e-6)
    assert traces == 1

    # Compositions are made anew each time, and equal all the same.
    deltas = (jnp.ones((4, 3, 5, 2)), delta)
    for radius in (0.1, 0.2):
        out = project(ThreatModel(("flow", "additive"), "linf", (radius, 0.3)), deltas)
        np.testing.assert_allclose(out[0], 2 * radius, rtol=1e-6)
    assert traces == 2


def test_it_is_a_pytree_that_vmaps_and_maps():
    threat = ThreatModel(("affine", "additive"), "linf", ((30, 3, 3), 0.1))
    doubled = jax.tree.map(lambda r: 2 * r, threat)
    np.testing.assert_allclose(doubled.radius[0], [60, 6, 6])
    assert doubled.radius[1] == pytest.approx(0.2) and doubled.norm == threat.norm
    sizes = jax.vmap(lambda r: threat_models.size(ThreatModel("additive", "linf", r), IMAGES))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(sizes[0], 2 * sizes[1], rtol=1e-6)


def test_scaled():
    threat = threat_models.scaled(ThreatModel("affine", "l2", (30, 3, 3)), 0.5)
    np.testing.assert_allclose(threat.radius, [15, 1.5, 1.5])
    assert threat.norm == "l2" and threat.perturbation is get("affine")


def test_a_perturbation_of_ones_own():
    brightness = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: x + d[:, :, None, None], "brightness")
    threat = ThreatModel(brightness, "linf", 0.2)
    out = threat_models.steepest(threat, jnp.array([[3.0], [-1.0]]))
    np.testing.assert_allclose(out, [[0.2], [-0.2]])


@pytest.mark.parametrize(
    "args, message",
    [
        (("flw", "linf", 0.1), "flw.*additive"),
        (("flow", "l9", 0.1), "l9.*l1"),
        (("flow", 0.5, 0.1), "0.5.*p >= 1"),
        (("flow", "linf", -0.1), "-0.1.*>= 0"),
        (("flow", "linf", float("nan")), "nan"),
        (("flow", "linf", float("inf")), "inf"),
        (("flow", "linf", "8/255"), "8/255"),
        (("flow", "linf", None), "None"),
        (("flow", "linf", "0.1"), "0.1"),
        (("affine", "linf", (30, -1, 1)), "-1"),
        ((("flow", "additive"), "linf", 0.1), "tuple"),
        ((("flow", "additive"), "linf", (0.1, 0.1, 0.1)), "2 perturbations"),
        ((("flow", "additive"), ("linf",), (0.1, 0.1)), "2 perturbations"),
        ((("flow", "additive"), ("linf", "l7"), (0.1, 0.1)), "l7"),
        ((("flow", "additive"), "linf", (0.1, -0.1)), "-0.1"),
    ],
)
def test_errors_name_what_came_and_the_way_out(args, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(*args)


@pytest.mark.parametrize(
    "threat, images",
    [
        (ThreatModel("additive", "linf", (0.1, 0.1, 0.1)), (2, 4, 4, 1)),  # would broadcast to three channels
        (ThreatModel("flow", "linf", (0.1, 0.1, 0.1)), (2, 4, 4, 3)),
        (ThreatModel(("additive", "affine"), "l2", (0.1, (1.0, 1.0))), (2, 4, 4, 3)),
    ],
    ids=["channels", "flow", "a part"],
)
def test_a_radius_that_does_not_fit_the_delta_is_an_error_everywhere(threat, images):
    zeros = jax.eval_shape(threat.perturbation.zeros, jax.ShapeDtypeStruct(images, jnp.float32))
    for f in (threat_models.size, threat_models.gain, threat_models.project, threat_models.steepest):
        with pytest.raises(ValueError, match=r"radius=.*has shape.*but δ has"):
            jax.eval_shape(lambda d, f=f: f(threat, d), zeros)


@pytest.mark.parametrize(
    "space, norm, words",
    [("flow", "linf", "px per axis"), ("flow", "l2inf", "px"), ("flow", "l2", "px"), ("additive", "linf", "")],
)
def test_the_unit_says_what_linf_bounds(space, norm, words):
    assert threat_models.unit(ThreatModel(space, norm, 0.155)) == words


def test_threat_models_are_equal_if_all_their_numbers_are():
    one, same, other = (ThreatModel("affine", "linf", (10.0, 1.0, shift)) for shift in (1.0, 1.0, 2.0))
    assert one == same and hash(one) == hash(same) and one != other and one != "affine"
    assert ThreatModel("flow", "linf", 1.0) != ThreatModel("flow", "l2", 1.0)
    assert ThreatModel(("flow", "additive"), "linf", (1.0, 0.1)) == ThreatModel(("flow", "additive"), "linf", (1, 0.1))
