"""What every attack that seeks the smallest perturbation across the boundary keeps to."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import ATTACKS
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, initial, measured, times
from test_deepfool import exact_distances, linear, sample

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
NORMS = {"carlini_wagner": "l2", "ddn": "l2", "ead": "l1"}
SETTINGS = {
    "carlini_wagner": dict(steps=100, binary_search_steps=5),
    "ddn": {},
    "ead": dict(steps=100, binary_search_steps=5),
}
JITTED = {
    name: jax.jit(partial(ATTACKS[name], **SETTINGS[name]), static_argnames=("targeted", "steps")) for name in NORMS
}
L2 = [name for name, norm in NORMS.items() if norm == "l2"]
each = pytest.mark.parametrize("name", NORMS)
NET = bind(Net(), initial(SHAPE))
IMAGES = jnp.asarray(np.clip(np.random.default_rng(1).uniform(-0.2, 1.2, SHAPE), 0, 1), jnp.float32)
LABELS = NET(IMAGES).argmax(-1)


def net(factor=1.0):
    return times(NET, factor)


def threat_of(name, radius=32.0):
    return ThreatModel("additive", NORMS[name], radius)


def run(name, model=None, images=IMAGES, labels=LABELS, threat=None, **options):
    model, threat = net() if model is None else model, threat_of(name) if threat is None else threat
    return JITTED[name](model, images, labels, threat, key=KEY, **options)


def check_result(model, result, threat, images=IMAGES, labels=LABELS, targeted=False):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.images, result.delta)))
    size, said = measured(threat, images, result.delta)
    assert (size <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    right = losses.predicted(model(result.images)) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)
    failed = ~np.asarray(result.success)
    np.testing.assert_array_equal(result.images[failed], images[failed])
    assert all(not leaf[failed].any() for leaf in jax.tree.leaves(result.delta))


def distances_in_the_box(model, images, labels, norm):
    """The distance to the nearest class within [0, 1], in float64: the best coordinates first, or δ = clip(t g)."""
    w, b = np.asarray(model.weights, np.float64), np.asarray(model.bias, np.float64)

    def one(x, label, other):
        g = w[:, other] - w[:, label]
        gap = b[label] - b[other] - x @ g
        room = np.where(g > 0, 1 - x, x)
        if np.abs(g) @ room < gap:
            return np.inf
        if norm == "l1":
            order = np.argsort(-np.abs(g))
            gained, spent = (np.r_[0, np.cumsum(v[order])] for v in (np.abs(g) * room, room))
            return np.interp(gap, gained, spent)
        low, high = 0.0, 1e6
        for _ in range(100):
            t = (low + high) / 2
            low, high = (low, t) if g @ np.clip(t * g, -x, 1 - x) > gap else (t, high)
        return np.linalg.norm(np.clip(low * g, -x, 1 - x))

    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    classes = range(w.shape[1])
    return np.array([
        min(one(x, y, k) for k in classes if k != y) for x, y in zip(flat, np.asarray(labels), strict=True)
    ])  # fmt: skip


@each
@pytest.mark.parametrize("box", [False, True])
def test_finds_the_exact_distance_of_a_linear_model(name, box):
    model, images = linear(5), sample(-0.3, 1.3) if box else sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = distances_in_the_box(model, images, labels, NORMS[name])
    free = exact_distances(model, images, labels, {"l1": np.inf, "l2": 2}[NORMS[name]])
    if box:  # which is felt
        assert (exact > 1.01 * free).any()
    else:
        np.testing.assert_allclose(exact, free, rtol=1e-6)
    for radius in (32.0, 100.0):
        threat = threat_of(name, radius)
        result = run(name, model, images, labels, threat)
        assert result.success.all()
        ratio = radius * np.asarray(threat_models.size(threat, result.delta)) / exact
        assert (ratio >= 0.9999).all() and (ratio <= (1.1 if name == "ead" else 1.01)).all(), ratio


@each
def test_the_nearest_class_is_not_always_that_of_the_largest_logit(name):
    # Class 1 has the second logit but changes with the label's; class 2 is lower, and a third of the way.
    weights = np.random.default_rng(0).normal(size=(32, 5))
    weights[:, 0], weights[:, 1], weights[:, 3:] = 0, 0.01 * weights[:, 1], 0.01 * weights[:, 3:]
    model = Linear(jnp.asarray(weights, jnp.float32), jnp.zeros(5))
    images, labels = jnp.full(SHAPE, 0.5), jnp.zeros(6, int)
    model.bias = jnp.asarray([0.0, -0.1, -0.2, -9.0, -9.0]) - 0.5 * model.weights.sum(0)
    exact = distances_in_the_box(model, images, labels, NORMS[name])
    result = run(name, model, images, labels, threat_of(name, 32.0))
    np.testing.assert_allclose(32 * threat_models.size(threat_of(name, 32.0), result.delta), exact, rtol=0.02)


@pytest.mark.parametrize("name", L2)
def test_the_parts_of_a_composition_share_the_way(name):
    brightness = Perturbation(
        zeros=lambda images: jnp.zeros((len(images), 1)),
        apply=lambda images, delta: images + delta[:, :, None, None],
        name="brightness",
    )
    model, images = linear(2), sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    threat = ThreatModel(("additive", brightness), "l2", (0.5, 0.2))
    # With both parts at the size s the margin changes by s (0.5 ‖g‖₂ + 0.2 |Σ g|).
    g = np.asarray(model.weights[:, 1] - model.weights[:, 0], np.float64)
    exact = np.asarray(-losses.margin(model(images), labels)) / (0.5 * np.linalg.norm(g) + 0.2 * abs(g.sum()))
    result = run(name, model, images, labels, threat)
    np.testing.assert_array_equal(result.success, exact < 1)
    np.testing.assert_allclose(
        np.asarray(threat_models.size(threat, result.delta))[exact < 1], exact[exact < 1], rtol=0.02
    )
    assert (exact < 1).any()


@each
def test_the_radius_is_unit_and_bound(name):
    whole = run(name)
    check_result(net(), whole, threat_of(name))
    assert whole.success.all()
    distance = 32 * threat_models.size(threat_of(name), whole.delta)
    radius = float(np.median(distance))
    within = run(name, threat=threat_of(name, radius))
    check_result(net(), within, threat_of(name, radius))
    np.testing.assert_array_equal(within.success, distance < radius)
    nowhere = run(name, threat=threat_of(name, 0.0))
    np.testing.assert_array_equal(nowhere.images, IMAGES)
    assert not nowhere.success.any()


@each
def test_the_scale_of_the_logits_changes_nothing(name):
    small, one, large = (run(name, net(factor)) for factor in (2.0**-13, 1.0, 2.0**13))
    for factor, other in ((2.0**-13, small), (2.0**13, large)):
        check_result(net(factor), other, threat_of(name))
        sizes = (threat_models.size(threat_of(name), r.delta) for r in (other, one))
        np.testing.assert_allclose(*sizes, rtol=0.001)


@each
def test_models_that_give_nan_or_a_constant(name):
    spoilt = net(jnp.ones((6, 1)).at[2].set(jnp.nan))
    for factor in (jnp.nan, jnp.inf, 0.0):
        check_result(net(factor), run(name, net(factor)), threat_of(name))
    result, rest = run(name, spoilt), np.array([0, 1, 3, 4, 5])
    check_result(spoilt, result, threat_of(name))
    np.testing.assert_array_equal(result.images[rest], run(name).images[rest])


@each
def test_constant_images(name):
    for value in (0.0, 0.5, 1.0):
        images = jnp.full(SHAPE, value)
        labels = NET(images).argmax(-1)
        result = run(name, images=images, labels=labels)
        check_result(net(), result, threat_of(name), images, labels)
        assert result.success.all()


@each
def test_what_is_misclassified_already_is_left_alone(name):
    result = run(name, labels=(LABELS + 1) % 3)
    np.testing.assert_array_equal(result.images, IMAGES)
    assert result.success.all()


@each
def test_targeted(name):
    target = (LABELS + 1) % 3
    result = run(name, labels=target, targeted=True)
    check_result(net(), result, threat_of(name), labels=target, targeted=True)
    assert result.success.all()
    # The nearest class is no farther than another.
    size = [np.median(threat_models.size(threat_of(name), r.delta)) for r in (run(name), result)]
    assert size[0] <= 1.01 * size[1]


@each
def test_batched_or_alone_jitted_or_not(name):
    batch = run(name)
    size = np.asarray(threat_models.size(threat_of(name), batch.delta))
    # Other neighbours change no bit.
    among = run(name, images=(1 - IMAGES).at[4].set(IMAGES[4]))
    np.testing.assert_array_equal(among.images[4], batch.images[4])
    # Matrix products of other shapes round differently; many steps carry it on.
    alone = run(name, NET, IMAGES[4:5], LABELS[4:5])
    np.testing.assert_allclose(threat_models.size(threat_of(name), alone.delta)[0], size[4], rtol=0.02)
    given = linear(5), sample(0.45, 0.55), jnp.arange(6) % 5, threat_of(name)
    eager, jitted = ATTACKS[name](*given, key=KEY, **SETTINGS[name]), run(name, *given)
    np.testing.assert_allclose(eager.images, jitted.images, atol=1e-3)
    np.testing.assert_array_equal(eager.success, jitted.success)


def test_an_evaluation_takes_it(name="ddn"):
    attacks = {name: Attack(ATTACKS[name], threat_of(name, 0.5), SETTINGS[name], (0.5, 1, 4))}
    measured = robustness(NET, [{"image": IMAGES, "label": np.asarray(LABELS)}], attacks, key=KEY)
    outcome = measured.attacks[name]
    assert outcome.size.max() <= 1.0001 and outcome.excess.max() < 1e-6
    rates = [outcome.curve[m].mean() for m in (0.5, 1.0, 4.0)]
    assert rates[-1] > 0 and (np.diff(rates) >= 0).all()


@pytest.mark.parametrize(
    "name, threat",
    [
        ("ddn", ThreatModel("affine", "l2", (30, 3, 3))),
        ("carlini_wagner", ThreatModel(("flow", "additive"), "l2", (8.0, 4.0))),
    ],
    ids=["ddn-affine", "carlini_wagner-composition"],
)
def test_any_space(name, threat):
    result = run(name, threat=threat)
    check_result(net(), result, threat)
    assert result.success.any()


@each
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(threat=ThreatModel("additive", "linf", 0.1)), "linf.*deepfool"),
        (dict(steps=0), "steps=0"),
        (dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
    ],
)
def test_errors(name, options, message):
    given = dict(images=IMAGES, labels=LABELS, threat=threat_of(name), key=KEY)
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](NET, **(given | options))
