"""What every attack that seeks the smallest perturbation across the boundary keeps to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simple_models import Net

from robust_jax import threat_models
from robust_jax.attacks import ATTACKS
from robust_jax.models import bind
from robust_jax.robustness import Attack, robustness
from robust_jax.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
NORMS = {"carlini_wagner": "l2"}
SETTINGS = {"carlini_wagner": dict(steps=100, binary_search_steps=5)}
STATIC = ("steps", "binary_search_steps", "learning_rate", "targeted")
JITTED = {name: jax.jit(ATTACKS[name], static_argnames=STATIC) for name in NORMS}
each = pytest.mark.parametrize("name", NORMS)
NET = bind(Net(), Net().init(jax.random.key(0), jnp.zeros((1, *SHAPE[1:]))))
IMAGES = jnp.asarray(np.clip(np.random.default_rng(1).uniform(-0.2, 1.2, SHAPE), 0, 1), jnp.float32)
LABELS = NET(IMAGES).argmax(-1)


def times(base, factor, images):
    return base(images) * factor


def net(factor=1.0):
    """One pytree type for all, so that they share a compilation."""
    return jax.tree_util.Partial(times, NET, jnp.broadcast_to(jnp.asarray(factor, jnp.float32), (6, 1)))


def threat_of(name, radius=6.0):
    return ThreatModel("additive", NORMS[name], radius)


def run(name, model=None, images=IMAGES, labels=LABELS, threat=None, **options):
    model, threat = net() if model is None else model, threat_of(name) if threat is None else threat
    return JITTED[name](model, images, labels, threat, key=KEY, **(SETTINGS[name] | options))


def check_result(model, result, threat, images=IMAGES, labels=LABELS, targeted=False):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.images, result.delta)))
    assert (threat_models.size(threat, result.delta) <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    said = jnp.clip(threat.perturbation.apply(images, result.delta), 0, 1)
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    right = model(result.images).argmax(-1) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)
    failed = ~np.asarray(result.success)
    np.testing.assert_array_equal(result.images[failed], images[failed])
    assert all(not leaf[failed].any() for leaf in jax.tree.leaves(result.delta))


@each
def test_the_radius_is_unit_and_bound(name):
    whole = run(name)
    check_result(net(), whole, threat_of(name))
    assert whole.success.all()
    distance = 6 * threat_models.size(threat_of(name), whole.delta)
    radius = float(np.median(distance))
    within = run(name, threat=threat_of(name, radius))
    check_result(net(), within, threat_of(name, radius))
    np.testing.assert_array_equal(within.success, distance < radius)
    nowhere = run(name, threat=threat_of(name, 0.0))
    np.testing.assert_array_equal(nowhere.images, IMAGES)
    assert not nowhere.success.any()


@each
def test_the_scale_of_the_logits_changes_nothing(name):
    small, one, large = (run(name, net(factor)) for factor in (1e-4, 1.0, 1e4))
    for factor, other in ((1e-4, small), (1e4, large)):
        check_result(net(factor), other, threat_of(name))
        sizes = (threat_models.size(threat_of(name), r.delta) for r in (other, one))
        np.testing.assert_allclose(*sizes, rtol=0.02)


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
    assert size[0] <= 1.001 * size[1]


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
    eager = ATTACKS[name](net(), IMAGES, LABELS, threat_of(name), key=KEY, **SETTINGS[name])
    np.testing.assert_allclose(eager.images, batch.images, atol=1e-3)
    np.testing.assert_array_equal(eager.success, batch.success)


@each
def test_an_evaluation_takes_it(name):
    attacks = {name: Attack(ATTACKS[name], threat_of(name, 1.0), SETTINGS[name], (0.5, 1, 4))}
    measured = robustness(NET, [{"image": IMAGES, "label": np.asarray(LABELS)}], attacks, key=KEY)
    outcome = measured.attacks[name]
    assert outcome.size.max() <= 1.0001 and outcome.excess.max() < 1e-6
    rates = [outcome.curve[m].mean() for m in (0.5, 1.0, 4.0)]
    assert rates[-1] > 0 and (np.diff(rates) >= 0).all()


@pytest.mark.parametrize("name", [n for n, norm in NORMS.items() if norm == "l2"])
@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel("affine", "l2", (30, 3, 3)),
        ThreatModel(("flow", "additive"), "l2", (8.0, 4.0)),
    ],
    ids=lambda t: t.perturbation.name,
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
