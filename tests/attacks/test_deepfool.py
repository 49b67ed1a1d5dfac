from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax import losses
from robust_jax.attacks import ATTACKS, deepfool
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, initial, measured, times

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
attack = jax.jit(deepfool, static_argnames=("steps", "relaxation", "candidates", "targeted"))


def linear(classes, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(int(np.prod(SHAPE[1:])), classes))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(rng.normal(size=classes), jnp.float32))


def net(seed=0):
    return bind(Net(), initial(SHAPE, seed))


def sample(low, high, seed=1):
    x = np.random.default_rng(seed).uniform(low, high, size=SHAPE)
    return jnp.asarray(np.clip(x, 0, 1), jnp.float32)


def check_result(model, result, images, threat, labels, targeted=False):
    size, said = measured(threat, images, result.delta)
    assert (size <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    right = losses.predicted(model(result.images)) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)
    failed = ~np.asarray(result.success)
    np.testing.assert_array_equal(result.images[failed], images[failed])
    assert all(not leaf[failed].any() for leaf in jax.tree.leaves(result.delta))


def exact_distances(model, images, labels, order, beyond=0.0):
    """The distance to the nearest of the boundaries to other classes, in float64; ``order`` of the dual norm.

    Or to where the margin is ``beyond`` times the largest logit.
    """
    w, b = np.asarray(model.weights, np.float64), np.asarray(model.bias, np.float64)
    z = np.asarray(images, np.float64).reshape(len(images), -1) @ w + b
    return np.array([
        min((z[i, y] - z[i, k] + beyond * abs(z[i]).max()) / np.linalg.norm(w[:, k] - w[:, y], order)
            for k in range(w.shape[1]) if k != y)
        for i, y in enumerate(np.asarray(labels))
    ])  # fmt: skip


@pytest.mark.parametrize("norm, order", [("l2", 2), ("linf", 1), ("l1", np.inf)])
def test_finds_the_exact_distance_of_a_linear_model(norm, order):
    model, images = linear(5), sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = exact_distances(model, images, labels, order)
    # Where the box is not felt: one pixel takes the whole l1 step.
    felt = exact > 0.4 if norm == "l1" else np.full(len(exact), False)
    farther = exact_distances(model, images, labels, order, 1e-5)  # DeepFool goes beyond what a tie may be
    images, labels, exact, farther = images[~felt], labels[~felt], exact[~felt], farther[~felt]
    assert len(images) > 2
    for radius in (6.0, 100.0):  # the radius is a unit, the distance does not depend on it
        threat = ThreatModel("additive", norm, radius)
        result = attack(model, images, labels, threat, key=KEY)
        check_result(model, result, images, threat, labels)
        assert result.success.all()
        found = radius * np.asarray(threat_models.size(threat, result.delta))
        assert (found >= exact * 0.9999).all() and (found <= farther * 1.021).all(), found / exact


def test_few_steps_and_half_precision_are_enough():
    """Steps shrink what is left of the distance to a seventh, and then one tries 2% more."""
    model, images = linear(5), sample(0.45, 0.55)
    labels, threat = model(images).argmax(-1), ThreatModel("additive", "l2", 6.0)
    for steps, expected in ((2, False), (4, True)):
        assert (attack(model, images, labels, threat, key=KEY, steps=steps).success == expected).all()
    for dtype in (jnp.float16, jnp.bfloat16):
        halves = images.astype(dtype)
        right = model(halves).argmax(-1) == labels  # rounding an image may be enough
        result = deepfool(model, halves, labels, ThreatModel("additive", "l2", 6.0), key=KEY)
        assert result.success[right].all() and right.sum() > 3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_succeeds_in_the_ball_exactly_where_a_linear_model_can_be_fooled(norm):
    model, images = linear(4, seed=3), sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = exact_distances(model, images, labels, {"l2": 2, "linf": 1}[norm])
    radius = float(np.median(exact))
    result = attack(model, images, labels, ThreatModel("additive", norm, radius), key=KEY)
    check_result(model, result, images, ThreatModel("additive", norm, radius), labels)
    clear = np.abs(exact / radius - 1) > 0.001
    np.testing.assert_array_equal(np.asarray(result.success)[clear], (exact < radius)[clear])
    assert 0 < result.success.sum() < len(images)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_goes_round_the_pixels_that_the_box_holds(norm):
    model, images = linear(2), sample(-0.3, 1.3)
    assert ((images == 0) | (images == 1)).mean() > 0.25
    labels = model(images).argmax(-1)
    threat = ThreatModel("additive", norm, {"l1": 32.0, "l2": 6.0, "linf": 1.0}[norm])
    result = attack(model, images, labels, threat, key=KEY)
    check_result(model, result, images, threat, labels)
    assert result.success.all()


THREATS = [
    ThreatModel("additive", "linf", 0.3),
    ThreatModel("additive", "l1", 6.0),
    ThreatModel("flow", "l2inf", 1.0),
    ThreatModel("affine", "linf", (30, 3, 3)),
    ThreatModel(("flow", "additive"), ("l2", "linf"), (2.0, 0.1)),
]
threats = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.perturbation.name)


@threats
def test_any_space_batched_or_alone(threat):
    model, images = net(), sample(-0.2, 1.2)
    labels = model(images).argmax(-1)
    result = attack(model, images, labels, threat, key=KEY)
    check_result(model, result, images, threat, labels)
    assert result.success.any()
    size = np.asarray(threat_models.size(threat, result.delta))
    for i in (1, 4):
        # Other neighbours, whose number of steps is another, change no bit.
        others = (1 - images).at[i].set(images[i])
        among = attack(model, others, labels, threat, key=KEY)
        np.testing.assert_array_equal(among.images[i], result.images[i])
        # Matrix products of other shapes round differently, and signs of gradients near 0 are what they are.
        alone = attack(model, images[i : i + 1], labels[i : i + 1], threat, key=KEY)
        np.testing.assert_allclose(threat_models.size(threat, alone.delta)[0], size[i], rtol=0.02)
        assert alone.success[0] == result.success[i]


def test_shorter_steps_find_a_nearer_point_of_a_curved_boundary():
    model, images, threat = net(), sample(0.3, 0.7), ThreatModel("additive", "l2", 6.0)
    labels = model(images).argmax(-1)
    whole, part = (attack(model, images, labels, threat, key=KEY, relaxation=s) for s in (1.0, 0.5))
    assert whole.success.all() and part.success.all()
    sizes = [np.asarray(threat_models.size(threat, r.delta)) for r in (whole, part)]
    assert sizes[1].mean() < 0.98 * sizes[0].mean()  # both are tried 2% beyond


def test_jitted_or_not_is_the_same():
    model, images = net(), sample(-0.2, 1.2)
    threat = ThreatModel("additive", "l2", 0.5)
    eager, jitted = (f(model, images, LABELS, threat, key=KEY, steps=5) for f in (deepfool, attack))
    np.testing.assert_allclose(eager.images, jitted.images, atol=1e-5)
    np.testing.assert_array_equal(eager.success, jitted.success)


def test_what_is_misclassified_already_is_left_alone():
    model, images = net(), sample(-0.2, 1.2)
    labels = (model(images).argmax(-1) + 1) % 3
    result = attack(model, images, labels, ThreatModel("additive", "l2", 1.0), key=KEY)
    np.testing.assert_array_equal(result.images, images)
    assert result.success.all()


def test_targeted():
    model, images, threat = net(), sample(-0.2, 1.2), ThreatModel("additive", "l2", 3.0)
    target = (model(images).argmax(-1) + 1) % 3
    result = attack(model, images, target, threat, key=KEY, targeted=True)
    check_result(model, result, images, threat, target, targeted=True)
    assert result.success.all()
    # Two classes: towards the other class is away from this one.
    two, x = linear(2), sample(0.3, 0.7)
    labels = two(x).argmax(-1)
    towards = attack(two, x, 1 - labels, threat, key=KEY, targeted=True)
    away = attack(two, x, labels, threat, key=KEY)
    np.testing.assert_allclose(towards.images, away.images, atol=1e-5)
    assert towards.success.all()


def test_fewer_candidates_are_those_of_the_largest_logits():
    # Class 1 has the second logit but changes with the label's; class 2 is lower, and a third of the way.
    weights = np.zeros((32, 3))
    weights[0], weights[1] = (1.0, 0.9, 0.0), (0.0, 0.0, 1.0)
    model = Linear(jnp.asarray(weights, jnp.float32), jnp.asarray([0.1, 0.1, 0.0]))
    images = jnp.full(SHAPE, 0.5)
    threat = ThreatModel("additive", "linf", 1.0)
    run = partial(attack, model, images, jnp.zeros(6, int), threat, key=KEY, relaxation=1.0)
    for candidates, distance in ((1, 0.5), (2, 0.05), (50, 0.05)):
        result = run(candidates=candidates)
        check_result(model, result, images, threat, jnp.zeros(6, int))
        np.testing.assert_allclose(threat_models.size(threat, result.delta), distance, rtol=0.021)


def test_radius_zero_and_constant_models_give_the_clean_image_back():
    images = sample(-0.2, 1.2)
    constant = times(net(), 0.0)
    for model, threat in (
        (constant, ThreatModel("additive", "l2", 1.0)),
        (constant, ThreatModel("affine", "linf", (30, 3, 3))),
        (times(net(), 1.0), ThreatModel("additive", "l2", 0.0)),
    ):
        result = attack(model, images, LABELS, threat, key=KEY, steps=9)
        np.testing.assert_array_equal(result.images, images)
        np.testing.assert_array_equal(result.success, model(images).argmax(-1) != LABELS)


def test_a_tie_is_left():
    model = Linear(jnp.asarray(np.eye(32)[:, :2], jnp.float32), jnp.zeros(2))
    images, threat = jnp.zeros(SHAPE), ThreatModel("additive", "l2", 0.5)
    result = attack(model, images, jnp.zeros(6, int), threat, key=KEY)
    assert result.success.all() and (threat_models.size(threat, result.delta) < 1e-3).all()


def test_a_model_that_gives_nan_never_gives_nan_images():
    base, images = net(), sample(-0.2, 1.2)
    labels, threat = base(images).argmax(-1), ThreatModel("additive", "l2", 2.0)
    models = [times(base, factor) for factor in (1.0, jnp.ones((6, 1)).at[2].set(jnp.nan), jnp.inf)]
    results = [attack(m, images, labels, threat, key=KEY, steps=9) for m in models]
    for model, result in zip(models, results, strict=True):
        assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
        check_result(model, result, images, threat, labels)
    rest = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(results[1].images[rest], results[0].images[rest], atol=1e-5)


def test_an_evaluation_takes_it():
    assert ATTACKS["deepfool"] is rj.attacks.deepfool
    model, images = net(), sample(-0.2, 1.2)
    attacks = {"deepfool": Attack(deepfool, ThreatModel("additive", "linf", 0.2), {"steps": 5}, (0.5, 1, 2))}
    labels = np.asarray(model(images).argmax(-1))
    measured = robustness(model, [{"image": images, "label": labels}], attacks, key=KEY)
    outcome = measured.attacks["deepfool"]
    assert outcome.size.max() <= 1.0001 and outcome.excess.max() < 1e-6
    rates = [outcome.curve[m].mean() for m in (0.5, 1.0, 2.0)]
    assert rates[-1] > 0 and (np.diff(rates) >= 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps=0"),
        (dict(candidates=0), "candidates=0"),
        (dict(overshoot=-0.1), "overshoot=-0.1"),
        (dict(relaxation=1.5), "relaxation=1.5"),
        (dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (dict(labels=jnp.full(6, 2)), "2 classes"),
    ],
)
def test_errors(options, message):
    given = dict(images=sample(0, 1), labels=jnp.zeros(6, int), threat=ThreatModel("additive", "linf", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        deepfool(linear(2), **(given | options))
