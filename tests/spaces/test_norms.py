from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from robust_jax.options import arguments
from robust_jax.spaces import norms
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")
ALL = ["l1", "l2", "linf", 1.5, 3, "l2inf", "l21"]
EXACT_PROJECTION = ["l1", "l2", "linf", "l2inf", "l21"]
SHAPE = (6, 4, 3, 2)

value = jax.jit(norms.norm, static_argnums=(1, 2))
project = jax.jit(norms.project, static_argnums=1)
steepest = jax.jit(norms.steepest, static_argnums=1)
gradient_of_sum = jax.jit(jax.grad(lambda x, norm, power=1: norms.norm(x, norm, power).sum()), static_argnums=(1, 2))


def reference(x, norm):
    """Norms of [B, ..., V] in float64 numpy."""
    x = np.asarray(x, np.float64)
    if norm in ("l2inf", "l21"):
        lengths = np.sqrt((x.reshape(len(x), -1, x.shape[-1]) ** 2).sum(-1))
        return lengths.max(-1) if norm == "l2inf" else lengths.sum(-1)
    order = {"l1": 1, "l2": 2, "linf": np.inf}.get(norm, norm)
    return np.array([np.linalg.norm(v, order) for v in x.reshape(len(x), -1)])


def sample(seed=0, scale=1.0, shape=SHAPE):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("power", [1, 2, 0.5])
def test_value(norm, power):
    x = sample()
    np.testing.assert_allclose(value(x, norm, power), reference(x, norm) ** power, rtol=1e-5)


@pytest.mark.parametrize("name, p", [("l1", 1), ("l1", 1.0), ("l2", 2), ("linf", math.inf), ("linf", float("inf")),
                                     ("l2", np.float32(2)), ("l1", np.int64(1))])  # fmt: skip
def test_names_are_numbers(name, p):
    assert norms.exponent(name) == norms.exponent(p)
    assert norms.exponent(norms.dual(name)) == norms.exponent(norms.dual(p))
    np.testing.assert_allclose(value(sample(), p), value(sample(), name))
    assert norms.checked(p) == norms.checked(name) == name
    assert ThreatModel("additive", p, 0.1) == ThreatModel("additive", name, 0.1)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("norm", ALL)
def test_tiny_and_huge_vectors(norm, scale):
    x = sample(scale=scale)
    np.testing.assert_allclose(value(x, norm), reference(x, norm), rtol=1e-5)
    gradient = gradient_of_sum(x, norm)
    # Every norm is homogeneous: <x, grad> is the norm (Euler).
    np.testing.assert_allclose((gradient * x).sum((1, 2, 3)), reference(x, norm), rtol=1e-4)
    gained = (steepest(x, norm) * x).sum((1, 2, 3))
    np.testing.assert_allclose(gained, reference(x, norms.dual(norm)), rtol=1e-4)
    projected = project(x, norm)
    if scale < 1:
        np.testing.assert_array_equal(projected, x)
    else:
        np.testing.assert_allclose(reference(projected, norm), 1, rtol=1e-5)


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("power", [1, 2])
def test_zero_vector_has_value_and_gradient_zero(norm, power):
    x = sample().at[2].set(0)
    gradient = np.asarray(gradient_of_sum(x, norm, power))
    assert value(x, norm, power)[2] == 0 and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[2], 0)
    assert (np.abs(gradient[[0, 1, 3, 4, 5]]).max((1, 2, 3)) > 0).all()
    np.testing.assert_array_equal(steepest(x, norm)[2], 0)
    np.testing.assert_array_equal(project(x, norm)[2], 0)


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("power", [1, 2])
def test_gradient_by_float64_differences(norm, power):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 2, 2, 2))
        x[0, 0, 0] = 0  # zero entries of a nonzero example: central differences give 0 at the kink too

        def f(x):
            return float(value(jnp.asarray(x), norm, power).sum())

        gradient = np.asarray(gradient_of_sum(jnp.asarray(x), norm, power))
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = 1e-6
            # Central differences: truncation 1e-12, rounding 1e-16 / 1e-6.
            assert gradient[index] == pytest.approx((f(x + step) - f(x - step)) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("norm", ALL)
def test_dual_is_an_involution_with_1_over_p_plus_1_over_q_equal_1(norm):
    dual = norms.dual(norm)
    assert norms.dual(dual) == pytest.approx(norm) if not isinstance(norm, str) else norms.dual(dual) == norm
    p, q = norms.exponent(norm), norms.exponent(dual)
    if p is not None:
        assert 1 / p + 1 / q == pytest.approx(1)
    assert isinstance(dual, str) == isinstance(norm, str)


@pytest.mark.parametrize("norm", ALL)
def test_hoelder_and_the_steepest_direction_attains_it(norm):
    g, x = sample(0), sample(1)
    dual = norms.dual(norm)
    product = np.abs((g * x).sum((1, 2, 3)))
    assert (product <= value(g, dual) * value(x, norm) * (1 + 1e-6)).all()
    direction = steepest(g, norm)
    np.testing.assert_allclose(reference(direction, norm), 1, rtol=1e-5)
    np.testing.assert_allclose((g * direction).sum((1, 2, 3)), reference(g, dual), rtol=1e-5)


def test_steepest_l1_takes_one_of_equal_coordinates():
    direction = steepest(jnp.array([[1.0, -2.0, 2.0]]), "l1")
    np.testing.assert_array_equal(direction, [[0, -1, 0]])


def test_steepest_with_room():
    g = jnp.array([[1.0, -3.0, 2.0, 0.5, 0.0]])
    # Greedy, largest first, is the linear programme's optimum.
    room = jnp.array([[0.5, 0.3, 0.0, 9.0, 9.0]])
    np.testing.assert_allclose(steepest(g, "l1", room), [[0.5, -0.3, 0, 0.2, 0]], atol=1e-6)
    np.testing.assert_array_equal(steepest(g, "l1", jnp.full((1, 5), jnp.inf)), steepest(g, "l1"))
    np.testing.assert_array_equal(steepest(g, "l1", jnp.zeros((1, 5))), 0)
    for norm in ("l2", "linf", 3):
        free = steepest(g.at[0, 2].set(0), norm)
        np.testing.assert_array_equal(steepest(g, norm, room), free)


def test_steepest_with_a_stride_goes_on_to_the_next_best():
    g = jnp.array([[[3.0, 4.0], [0.0, 2.0], [0.6, 0.8], [0.0, 0.0]]])
    stride = jnp.full_like(g, 0.4)
    np.testing.assert_allclose(
        steepest(g, "l21", None, stride), [[[0.24, 0.32], [0, 0.4], [0.12, 0.16], [0, 0]]], rtol=1e-6
    )
    np.testing.assert_allclose(steepest(g, "l1", None, stride), [[[0.4, 0.4], [0, 0.2], [0, 0], [0, 0]]], rtol=1e-6)
    for norm in ("l21", "l1"):
        np.testing.assert_array_equal(steepest(g, norm, None, jnp.full_like(g, jnp.inf)), steepest(g, norm))
    for norm in ("l2", "linf", "l2inf", 3):
        np.testing.assert_array_equal(steepest(g, norm, None, stride), steepest(g, norm))


def independent_projection(x, norm):
    """The nearest point of the unit ball in float64: closed form, or the threshold found by bisection."""
    x = np.asarray(x, np.float64)
    lengths = np.abs(x) if norm in ("l1", "linf") else np.sqrt((x**2).sum(-1, keepdims=True))
    if norm == "l2":
        lengths = np.sqrt((x**2).sum())
    if norm in ("linf", "l2inf", "l2"):
        return x * np.minimum(1, 1 / np.maximum(lengths, 1e-300))
    if lengths.sum() <= 1:
        return x
    low, high = 0.0, lengths.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(lengths - middle, 0).sum() > 1 else (low, middle)
    return x * np.maximum(lengths - high, 0) / np.maximum(lengths, 1e-300)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("norm", EXACT_PROJECTION)
def test_projection_is_the_nearest_point(norm, scale):
    x = sample(scale=scale)
    expected = np.stack([independent_projection(v, norm) for v in x])
    # float32 sums of 24 numbers up to 150, then differences of order 1.
    np.testing.assert_allclose(project(x, norm), expected, atol=2e-6)


@pytest.mark.parametrize("norm", EXACT_PROJECTION)
def test_projection_against_a_general_solver(norm):
    x = np.asarray(sample(3, shape=(1, 1, 2, 2)), np.float64)
    constraint = dict(type="ineq", fun=lambda y: 1 - reference(y.reshape(x.shape), norm)[0])
    if norm == "l1":  # smooth constraints for the solver: every sign pattern
        signs = np.array(list(np.ndindex(2, 2, 2, 2))) * 2 - 1
        constraint = dict(type="ineq", fun=lambda y: 1 - signs @ y)
    if norm == "linf":
        constraint = dict(type="ineq", fun=lambda y: np.concatenate([1 - y, 1 + y]))
    start = 0.5 * x.ravel() / reference(x, norm)[0]
    found = minimize(
        lambda y: ((y - x.ravel()) ** 2).sum(), start, method="SLSQP",
        constraints=[constraint], options=dict(ftol=1e-14, maxiter=500),
    ).x  # fmt: skip
    # SLSQP stops within sqrt(ftol) of the minimiser where a constraint has a kink.
    np.testing.assert_allclose(project(jnp.asarray(x, jnp.float32), norm).ravel(), found, atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("norm", ALL)
def test_projection_is_inside_and_idempotent_and_leaves_the_inside_alone(norm, scale):
    x = sample(scale=scale)
    once = project(x, norm)
    assert (reference(once, norm) <= 1 + 1e-6).all()
    np.testing.assert_allclose(project(once, norm), once, atol=1e-6)
    inside = reference(x, norm) <= 1
    np.testing.assert_array_equal(once[inside], x[inside])


def test_l1_projection_keeps_the_digits_of_huge_vectors():
    x = jnp.array([[1e25, -1.0, 3.0], [1e4, 1e4 - 0.5, -1e4], [5e24, -5e24, 0.0]])
    expected = [[1, 0, 0], [0.5, 0, -0.5], [0.5, -0.5, 0]]
    np.testing.assert_allclose(project(x, "l1"), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ALL)
def test_random_points_fill_the_ball(norm):
    shape = (3, 2)
    keys = jax.random.split(jax.random.key(0), 2000)
    points = np.asarray(jax.jit(jax.vmap(lambda k: norms.random_point(k, shape, norm)))(keys))
    sizes = reference(points, norm)
    assert points.shape == (2000, *shape) and sizes.max() <= 1 + 1e-6
    # Centred, and every coordinate spreads equally: 2000 draws have a standard error below .012.
    assert np.abs(points.mean(0)).max() < 0.06
    spread = points.std(0)
    assert spread.min() > 0.1 and spread.max() < 1.15 * spread.min()
    if norm != "l21":
        # Uniform in volume: the size to the power of the dimension is uniform (l2inf: each vector's is).
        uniform = sizes**6
        assert abs(uniform.mean() - 0.5) < 0.03 and abs(uniform.std() - 12**-0.5) < 0.02


@pytest.mark.parametrize("p", [3.0, 100.0, 1e4])
def test_random_points_of_large_norms_do_not_underflow(p):
    keys = jax.random.split(jax.random.key(0), 4000)
    points = np.asarray(jax.jit(jax.vmap(lambda k: norms.random_point(k, (5,), p)))(keys))
    largest = np.abs(points).max(-1)  # its powers would underflow too
    size = largest * np.linalg.norm(points / largest[:, None], p, axis=-1)
    assert (points != 0).all() and size.max() <= 1 + 1e-5
    # size^5 is uniform: 4000 draws have a standard error of .0046.
    assert abs((size**5).mean() - 0.5) < 0.02


def test_examples_do_not_mix():
    x = sample(scale=3)
    for norm in ("l1", 1.5, "l2inf"):
        for f in (value, project, steepest):
            alone = jnp.concatenate([f(x[i : i + 1], norm) for i in range(len(x))])
            np.testing.assert_allclose(f(x, norm), alone, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["L2", "l3", 0.5, 0, -1, True, None, float("nan")])
def test_what_is_no_norm_is_an_error_that_lists_them(wrong):
    for f in (norms.exponent, norms.dual, lambda n: norms.norm(jnp.ones((1, 2)), n)):
        with pytest.raises(ValueError, match="l1.*l2.*linf"):
            f(wrong)


@pytest.mark.parametrize("norm", ["l2inf", "linf", 1.5])
def test_an_option_for_a_norm_keeps_it(norm):
    """A term of one's own with ``norm: rj.norms.Norm`` is given what the config has."""

    def mine(*, norm: norms.Norm = "l2"):
        return norm

    assert mine(**arguments(mine, {"norm": norm})) == norm


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("power", [1, 2, 0.5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_finite_norm(norm, power, bad):
    x = jnp.zeros((2, 4, 3, 2)).at[0, 1, 2, 0].set(bad)
    found = np.asarray(value(x, norm, power))
    assert not np.isfinite(found[0]) and found[1] == 0  # 0 would be a point of no slope, inside any ball
    assert np.isinf(found[0]) == np.isinf(bad)


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("scale", [1.0, 3e-4, 3e-6])
def test_half_precision_is_widened(norm, scale):
    half = sample(scale=scale).astype(jnp.float16)
    single = half.astype(jnp.float32)
    for power in (1, 2):
        found = value(half, norm, power)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, value(single, norm, power))
    toward = steepest(half, norm)
    assert toward.dtype == jnp.float16
    np.testing.assert_allclose(toward, steepest(single, norm), atol=2**-11)  # coordinates up to 1, rounded once
    inside = project(sample(scale=4).astype(jnp.float16), norm)
    assert inside.dtype == jnp.float16 and value(inside, norm, 1).max() <= 1 + 2**-8
