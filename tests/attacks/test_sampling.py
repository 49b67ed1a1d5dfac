from __future__ import annotations

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import ADDITIVE, KEY, SHAPE, THREATS, check_properties, check_result, net, sample, smooth
from robust_jax import losses
from robust_jax.attacks import ATTACKS, gaussian_noise, grid, random_search, uniform_noise
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.spaces import threat_models
from robust_jax.spaces.affine import affine
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear

pytestmark = pytest.mark.usefixtures("quick_compile")

AFFINE = ThreatModel("affine", "linf", (30, 3, 2))


@pytest.mark.parametrize(
    "attack, threat",
    [(random_search, ADDITIVE), (random_search, THREATS[-1]), (uniform_noise, ADDITIVE), (gaussian_noise, THREATS[-1])],
)
def test_properties(attack, threat):
    check_properties(attack, threat)


@pytest.mark.parametrize(
    "attack, threat",
    [
        (random_search, THREATS[3]),
        (uniform_noise, THREATS[1]),
        (gaussian_noise, THREATS[2]),
        (gaussian_noise, ADDITIVE),
    ],
)
def test_other_spaces(attack, threat):
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    check_result(model, jax.jit(attack)(model, images, labels, threat, key=KEY), images, threat, labels)


def test_properties_of_the_grid():
    labels, result = check_properties(partial(grid, points=(5, 3, 3)), AFFINE)
    assert result.success[:-1].any()


def test_grid_finds_the_planted_rotation_and_shift():
    images = smooth(9)
    planted = np.array([[-30, 3, 0], [12, -1.5, 2], [2, 0, 0], [30, 3, -2], [0, 1.5, 1], [-14, -3, -2]], np.float32)
    wanted = affine.apply(images, jnp.asarray(planted))

    def near(x):  # class 1 where the image is the planted one, to rounding
        gap = jnp.square(x - wanted).sum((1, 2, 3))
        return jnp.stack([gap, jnp.full(6, 1e-6)], -1)

    result = jax.jit(partial(grid, near))(images, jnp.zeros(6, int), AFFINE, key=KEY)
    assert result.success.all()
    np.testing.assert_allclose(result.delta, planted, atol=1e-4)


def test_grid_tries_all_points_and_keeps_the_best():
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    result = jax.jit(partial(grid, points=(5, 1, 4)))(model, images, labels, AFFINE, key=KEY)
    axes = np.linspace(-30, 30, 5), [0.0], np.linspace(-2, 2, 4)
    tried = [affine.apply(images, jnp.tile(jnp.asarray(p, jnp.float32), (6, 1))) for p in itertools.product(*axes)]
    margins = np.stack([losses.margin(model(x), labels) for x in (images, *tried)])
    np.testing.assert_allclose(losses.margin(model(result.images), labels), margins.max(0), atol=1e-4)


def test_grid_stays_in_other_balls_and_takes_other_perturbations():
    model, images = net(), sample()
    brightness = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: x + d[:, :, None, None])
    for threat, points in (
        (ThreatModel("affine", "l2", (30, 3, 3)), (3, 3, 3)),
        (ThreatModel(brightness, 2, 0.3), (7,)),
    ):
        labels = model(images).argmax(-1)
        result = jax.jit(partial(grid, points=points))(model, images, labels, threat, key=KEY)
        check_result(model, result, images, threat, labels)


def test_random_search_is_the_better_the_more_it_tries_and_targets():
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    values = []
    for samples in (1, 10, 300):
        run = jax.jit(partial(random_search, samples=samples))
        values.append(losses.margin(model(run(model, images, labels, AFFINE, key=KEY).images), labels))
    assert (values[0] <= values[1]).all() and (values[1] <= values[2]).all() and (values[0] < values[2]).any()
    # Two classes: towards the other is away from this one.
    rng = np.random.default_rng(0)
    two = Linear(jnp.asarray(rng.normal(size=(32, 2)), jnp.float32), jnp.zeros(2))
    labels = two(images).argmax(-1)
    away = random_search(two, images, labels, ADDITIVE, key=KEY)
    towards = random_search(two, images, 1 - labels, ADDITIVE, key=KEY, targeted=True)
    np.testing.assert_allclose(away.images, towards.images, atol=1e-6)
    check_result(two, towards, images, ADDITIVE, 1 - labels, targeted=True)


def test_random_search_comes_near_the_optimum_of_a_linear_model_in_few_dimensions():
    brightness = Perturbation(lambda x: jnp.zeros((len(x), 2)), lambda x, d: x + d[:, None, None])
    model = Linear(jnp.asarray(np.random.default_rng(0).normal(size=(32, 2)), jnp.float32), jnp.zeros(2))
    images, threat = sample(0.4, 0.6), ThreatModel(brightness, "l2", 0.2)
    labels = model(images).argmax(-1)
    result = jax.jit(partial(random_search, samples=400))(model, images, labels, threat, key=KEY)
    w = np.asarray(model.weights).reshape(16, 2, 2).sum(0)
    best = 0.2 * np.linalg.norm([w[:, 1 - y] - w[:, y] for y in np.asarray(labels)], axis=1)
    gain = losses.margin(model(result.images), labels) - losses.margin(model(images), labels)
    assert (gain >= 0.9 * best).all() and (gain <= 1.0001 * best).all(), gain / best


def test_gaussian_noise_has_the_sigma_that_its_docstring_says():
    images = jnp.full((4, 28, 28, 1), 0.5)
    logits_fn = lambda x: x.mean((1, 2)) * jnp.array([1.0, 0.5])  # noqa: E731
    labels, sigma = jnp.zeros(4, int), 0.1
    threat = ThreatModel("additive", "l2", sigma * math.sqrt(784))
    delta = np.asarray(gaussian_noise(logits_fn, images, labels, threat, key=KEY).delta)
    np.testing.assert_allclose(delta.std((1, 2, 3)), sigma, rtol=0.002)
    np.testing.assert_allclose((np.abs(delta) < sigma).mean(), 0.6827, atol=0.02)
    np.testing.assert_allclose(threat_models.size(threat, delta), 1, rtol=1e-5)
    linf = ThreatModel("additive", "linf", 0.3)
    delta = np.asarray(gaussian_noise(logits_fn, images, labels, linf, key=KEY).delta)
    np.testing.assert_allclose(np.abs(delta).max((1, 2, 3)), 0.3, rtol=1e-5)
    np.testing.assert_allclose(delta.std((1, 2, 3)), 0.3 / 3.3, rtol=0.2)
    uniform = np.asarray(uniform_noise(logits_fn, images, labels, linf, key=KEY).delta)
    np.testing.assert_allclose(uniform.std((1, 2, 3)), 0.3 / math.sqrt(3), rtol=0.05)


def test_noise_of_a_linear_model_breaks_as_often_as_the_normal_distribution_says():
    # A margin m falls below 0 with probability Φ(-m / (σ ‖w‖)), if noise does not leave the box.
    n = 4000
    w = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
    model = Linear(jnp.stack([w, 0 * w], 1), jnp.asarray([0.02 * float(jnp.linalg.norm(w)) - 0.5 * float(w.sum()), 0]))
    images, labels = jnp.full((n, 8, 8, 1), 0.5), jnp.zeros(n, int)
    attacks = {"noise": Attack(gaussian_noise, ThreatModel("additive", "l2", 0.02 * 8), curve=(0.5, 1, 2))}
    measured = robustness(model, [{"image": images, "label": labels}], attacks, key=KEY).attacks["noise"]
    for multiple, expected in ((0.5, 0.0228), (1.0, 0.1587), (2.0, 0.3085)):
        # Four standard deviations of the count, and the shift from the fixed length (0.003 at two sigmas).
        assert abs(measured.curve[multiple].mean() - expected) < 4 * math.sqrt(expected / n) + 0.003
    assert measured.size.max() <= 1.0001 and measured.excess.max() < 1e-6


@pytest.mark.parametrize(
    "attack, options, message",
    [
        (grid, dict(threat=ADDITIVE), r"additive is of shape \(4, 4, 2\).*random_search"),
        (grid, dict(threat=ThreatModel(("affine", "flow"), "linf", (1, 1))), r"\(3,\) and \(4, 4, 2\)"),
        (grid, dict(points=(5, 5)), r"points=\(5, 5\)"),
        (grid, dict(points=(5, 0, 5)), r"points=\(5, 0, 5\)"),
        (random_search, dict(samples=0), "samples=0"),
        (gaussian_noise, dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (uniform_noise, dict(labels=jnp.full(6, 3)), "3 classes"),
    ],
)
def test_errors(attack, options, message):
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=AFFINE, key=KEY)
    with pytest.raises(ValueError, match=message):
        attack(net(), **(given | options))


def test_an_evaluation_takes_them():
    assert {"grid", "random_search", "gaussian_noise", "uniform_noise"} <= set(ATTACKS)
