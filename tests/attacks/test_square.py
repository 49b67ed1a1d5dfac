from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import ATTACKS, auto, black_box, square
from robust_jax.attacks.square import _bump, _move_bump, _shares, _tiles
from robust_jax.models import bind
from robust_jax.spaces import norms
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, digits_network, initial, times
from test_pgd import BOX_RADII, best_gain, check_result, ramp

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
# Small programs, run a few times: compile the cheapest way.
attack = jax.jit(square, static_argnames=("queries", "p_init", "loss", "targeted"))


def net(factor=1.0):
    variables = initial(SHAPE)
    variables["params"]["Dense_0"]["kernel"] *= factor
    return bind(Net(), variables)


def sample(count=6, seed=1):
    """A third of the values are exact 0s and 1s."""
    x = np.random.default_rng(seed).uniform(size=(count, *SHAPE[1:]))
    return jnp.asarray(np.clip(1.5 * x - 0.25, 0, 1), jnp.float32)


def confident(seed=0):
    """A linear model that no budget here fools, so that the search goes on to the end."""
    weights = np.random.default_rng(seed).normal(size=(int(np.prod(SHAPE[1:])), 2))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.array([500.0, 0.0]))


@pytest.mark.parametrize("norm, least", [("linf", 0.999), ("l2inf", 0.97), ("l2", 0.3), ("l1", 0.3)])
def test_nears_the_optimum_of_a_linear_model_in_the_box(norm, least):
    # White weights: bumps of at least 3 x 3 pixels cannot follow them, single pixels can.
    model, images, labels, radius = confident(), sample(), jnp.zeros(6, int), BOX_RADII[norm]
    threat = ThreatModel("additive", norm, radius)
    w = np.asarray(model.weights, np.float64)
    flat = np.asarray(images, np.float64).reshape(6, -1)
    best = np.array([best_gain(w[:, 1] - w[:, 0], x, norm, radius) for x in flat])
    result = attack(model, images, labels, threat, key=KEY, queries=1000)
    check_result(model, result, images, threat, labels)
    gain = np.asarray(result.delta, np.float64).reshape(6, -1) @ (w[:, 1] - w[:, 0])
    assert (gain >= least * best).all() and (gain <= 1.0001 * best).all(), gain / best


def test_fewer_queries_are_worse():
    model, images, labels, threat = confident(), sample(), jnp.zeros(6, int), ThreatModel("additive", "linf", 0.3)
    gain = lambda r: np.asarray(losses.margin(model(r.images), labels) - losses.margin(model(images), labels))  # noqa: E731
    found = [gain(attack(model, images, labels, threat, key=KEY, queries=n)) for n in (1, 30, 1000)]
    assert (np.diff(np.stack([f.mean() for f in found])) > 0).all()
    assert all((f >= 0).all() for f in found)


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2inf", 2)])
def test_nears_the_optimum_over_flows_of_a_plane(norm, dual):
    slopes, images = ramp()
    w = np.random.default_rng(0).normal(size=(6, 7))
    w[[0, -1]] = w[:, [0, -1]] = 0  # the border does not move freely
    model = Linear(jnp.asarray(np.stack([0 * w.ravel(), w.ravel()], 1), jnp.float32), jnp.array([500.0, 0.0]))
    labels, threat = jnp.zeros(3, int), ThreatModel("flow", norm, 0.9)
    result = attack(model, images, labels, threat, key=KEY, queries=1000)
    check_result(model, result, images, threat, labels)
    gain = (np.asarray(result.images - images, np.float64).reshape(3, -1)) @ w.ravel()
    best = 0.9 * abs(w).sum() * np.linalg.norm(slopes, dual, axis=1)
    assert (gain >= 0.95 * best).all() and (gain <= 1.0001 * best).all(), gain / best


THREATS = [
    ThreatModel("additive", "l2", 1.0),
    ThreatModel("affine", "linf", (40, 2, 2)),
    ThreatModel(("flow", "additive"), ("l1", "linf"), (4.0, 0.1)),
]


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.perturbation.name)
def test_any_space_batched_or_alone(threat):
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    result = attack(model, images, labels, threat, key=KEY, queries=150)
    check_result(model, result, images, threat, labels)
    assert result.success.any()
    if threat.perturbation.name == "additive":
        one = attack(model, images[5:], labels[5:], threat, key=example_keys(KEY, 6)[5:], queries=150)
        np.testing.assert_allclose(one.images[0], result.images[5], atol=1e-5)
        eager = square(model, images, labels, threat, key=KEY, queries=150)
        np.testing.assert_allclose(eager.images, result.images, atol=1e-5)
        # Gradients that vanish are none of its business.
        saturated = attack(net(1e4), images, labels, threat, key=KEY, queries=150)
        np.testing.assert_array_equal(saturated.success, result.success)
        # No room, no slope, and what is misclassified already.
        wrong = (labels + 1) % 3
        for m, y, radius in ((net(), labels, 0.0), (net(0.0), labels, 1.0), (net(), wrong, 1.0)):
            same = attack(m, images, y, ThreatModel("additive", "l2", radius), key=KEY, queries=150)
            np.testing.assert_array_equal(same.images, images)
            np.testing.assert_array_equal(same.success, m(images).argmax(-1) != y)


@pytest.mark.parametrize("space", ["additive", "flow"])
def test_no_query_tries_what_was_tried(space):
    """Grey images, where half of all signs are those that a small square has already."""
    seen = []

    def predict(images):
        seen.append(images[0])
        return np.tile(np.float32([1, 0]), (len(images), 1))

    images = sample()[:1, :, :, :1]
    run = attack(black_box(predict, 2), images, jnp.zeros(1, int), ThreatModel(space, "linf", 0.5), key=KEY, queries=40)
    jax.block_until_ready(run)
    start, *tried = seen[-40:]  # where all are equally good the search stays at its start
    assert len(tried) == 39 and all((image != start).any() for image in tried)


def test_targeted():
    model, images = net(), sample()
    target, threat = (model(images).argmax(-1) + 1) % 3, ThreatModel("additive", "linf", 0.4)
    result = attack(model, images, target, threat, key=KEY, queries=150, targeted=True)
    check_result(model, result, images, threat, target, targeted=True)
    assert result.success.sum() >= 3


def test_a_model_that_gives_nan_never_gives_nan_images():
    base, images, threat = net(), sample(), ThreatModel("additive", "linf", 0.2)
    labels = base(images).argmax(-1)
    spoilt = times(base, jnp.array([1, 1, jnp.nan, jnp.inf, 1, 1])[:, None])
    result = attack(spoilt, images, labels, threat, key=KEY, queries=20)
    assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
    check_result(spoilt, result, images, threat, labels)


def test_schedule_and_bump_are_the_papers():
    shares = _shares(10000, 0.8, 10000)
    np.testing.assert_allclose(shares[[0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]],
                               0.8 / 2.0 ** np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]))  # fmt: skip
    np.testing.assert_array_equal(_shares(5000, 0.8, 5000), shares[::2])
    bump = np.asarray(_bump(*np.indices((5, 5)), np.ones((5, 5), bool), jnp.asarray(5), 5, 2.0))
    heights = np.array([1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1, 1 / 9 + 1 / 4, 1 / 9])
    np.testing.assert_allclose(bump[1] / bump[1, 2], heights / heights[2], rtol=1e-6)
    assert (bump[:2] > 0).all() and (bump[2:] < 0).all() and np.abs(bump).argmax() == 7
    # Both halves have the same norm; in l1 heights fall faster, as in Croce & Hein 2021.
    np.testing.assert_allclose([(bump[:2] ** 2).sum(), (bump[2:] ** 2).sum()], 0.5, rtol=1e-5)
    steep = np.asarray(_bump(*np.indices((5, 5)), np.ones((5, 5), bool), jnp.asarray(5), 5, 1.0))
    np.testing.assert_allclose([steep[:2].sum(), -steep[2:].sum()], 0.5, rtol=1e-5)
    np.testing.assert_allclose(steep[1, 1] / steep[1, 2], (1 / 16 + 1 / 81) / (1 + 1 / 16 + 1 / 81), rtol=1e-5)


def test_the_schedule_is_that_of_any_number_of_queries():
    np.testing.assert_array_equal(_shares(50, 0.8, 10000), 0.8 / 2.0 ** np.array([0] * 11 + [1] * 39))
    last = auto.parts("standard", ThreatModel("additive", "l2", 1.0), 10, 5, 50)[-1]
    assert last.keywords == dict(queries=50, schedule=10_000)


@pytest.mark.parametrize("norm, channels", [(1.0, 1), (2.0, 1), ("l21", 2)])
def test_mass_moves_between_squares(norm, channels):
    """What one square gives up the other gets, with what the ball has left; all else stays."""
    unit = _tiles(jax.random.key(0), (10, 10, channels), norm)
    unit = 0.9 * unit / norms.norm(unit[None], norm)
    for seed in range(5):
        moved = _move_bump(jax.random.key(seed), unit, jnp.asarray(3), norm)
        np.testing.assert_allclose(norms.norm(moved[None], norm), 1.0, rtol=1e-5)
        changed = np.asarray(moved != unit).any(-1)
        assert 9 <= changed.sum() <= 18 and changed.any(1).sum() <= 6 and changed.any(0).sum() <= 6


def test_l1_breaks_what_squares_of_even_mass_do_not():
    # 78% are left here, 85% with the bumps of l2 and a start of norm 1.
    model, images, labels = digits_network()
    result = attack(model, images, labels, ThreatModel("additive", "l1", 1.0), key=KEY, queries=500)
    assert 0.5 < 1 - result.success.mean() <= 0.815


def test_l21_breaks_what_random_points_of_the_ball_do_not():
    # 50% are left here; 99% if δ moves towards random points, whose vectors are all short.
    model, images, labels = digits_network()
    result = attack(model, images, labels, ThreatModel("flow", "l21", 4.0), key=KEY, queries=300)
    assert 0.3 < 1 - result.success.mean() <= 0.6


def test_the_start_tiles_the_middle():
    tiles = np.asarray(_tiles(jax.random.key(0), (28, 28, 2), 1.0))
    assert not tiles[0].any() and not tiles[:, 0].any() and not tiles[26:].any() and not tiles[:, 26:].any()
    inner = np.abs(tiles[1:26, 1:26]).reshape(5, 5, 5, 5, 2).sum((1, 3))
    np.testing.assert_allclose(inner, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(queries=0), "queries=0"),
        (dict(p_init=0.0), "p_init=0.0"),
        (dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (dict(labels=jnp.full(6, 2)), "2 classes"),
    ],
)
def test_errors(options, message):
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=ThreatModel("additive", "linf", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        square(confident(), **(given | options))


def test_where_they_are_entered():
    assert ATTACKS["square"] is square
