from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import ADDITIVE, THREATS, check_properties, check_result
from robust_jax.attacks import fab, fmn
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, digits_network, initial
from test_deepfool import exact_distances, linear, sample
from test_minimal import distances_in_the_box

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
WHOLE = {"l1": 32.0, "l2": 32.0**0.5, "linf": 1.0}
attack = jax.jit(fmn, static_argnames=("steps", "targeted"))


@pytest.mark.parametrize("norm", WHOLE)
@pytest.mark.parametrize("box", [False, True])
def test_finds_the_exact_distance_of_a_linear_model(norm, box):
    model, images = linear(5), sample(-0.3, 1.3) if box else sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = exact_distances(model, images, labels, {"l1": np.inf, "l2": 2, "linf": 1}[norm])
    if norm == "linf" and box:
        exact = linf_distances_in_the_box(model, images, labels)
    elif box:
        exact = distances_in_the_box(model, images, labels, norm)
    for radius in (WHOLE[norm], 3 * WHOLE[norm]):
        threat = ThreatModel("additive", norm, radius)
        result = attack(model, images, labels, threat, key=KEY, steps=100)
        assert result.success.all()
        ratio = radius * np.asarray(threat_models.size(threat, result.delta)) / exact
        assert (ratio >= 0.9999).all() and (ratio <= 1.02).all(), ratio


def linf_distances_in_the_box(model, images, labels):
    """The distance to the nearest class: each pixel moves by t or to the end of the box."""
    w, b = np.asarray(model.weights, np.float64), np.asarray(model.bias, np.float64)

    def one(x, label, other):
        g = w[:, other] - w[:, label]
        gap, room = b[label] - b[other] - x @ g, np.where(g > 0, 1 - x, x)
        steps = np.linspace(0, 1, 100_001)
        gained = (np.abs(g) * np.minimum(steps[:, None], room)).sum(-1)
        return np.interp(gap, gained, steps, right=np.inf)

    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    classes = range(w.shape[1])
    return np.array([
        min(one(x, y, k) for k in classes if k != y) for x, y in zip(flat, np.asarray(labels), strict=True)
    ])  # fmt: skip


def test_properties():
    # Alone, rounding turns the signs of small gradients, which the last steps hardly follow.
    check_properties(partial(fmn, steps=20), ADDITIVE, minimal=True, eager=False, atol=0.02)


@pytest.mark.parametrize("threat", THREATS[2:], ids=["flow", "affine", "composition"])
def test_any_space(threat):
    images = sample(-0.2, 1.2)
    model = bind(Net(), initial(images.shape))
    labels = model(images).argmax(-1).at[-1].add(1) % 3
    result = attack(model, images, labels, threat, key=KEY, steps=20)
    check_result(model, result, images, threat, labels, minimal=True)
    assert result.success.any()


@pytest.mark.parametrize(("norm", "share"), [("l1", 1.0), ("linf", 0.98)])
def test_closer_than_fab_at_as_many_gradients(norm, share):
    model, images, labels = digits_network()
    threat = ThreatModel("additive", norm, {"l1": 64.0, "linf": 1.0}[norm])

    def median(attack, **options):
        result = jax.jit(partial(attack, **options))(model, images, labels, threat, key=KEY)
        return np.median(np.where(result.success, threat_models.size(threat, result.delta), np.inf))

    assert median(fmn, steps=90) <= share * median(fab, steps=11)


def test_no_farther_than_foolbox():
    foolbox = pytest.importorskip("foolbox")
    images = jnp.concatenate([sample(-0.2, 1.2, seed) for seed in range(3)])
    model = bind(Net(), initial(images.shape))
    labels = model(images).argmax(-1)
    wrapped = foolbox.JAXModel(jax.jit(lambda x: model(x)), bounds=(0, 1))
    theirs = foolbox.attacks.LInfFMNAttack(steps=50)(wrapped, images, labels, epsilons=None)[1]
    fooled = np.asarray(model(theirs).argmax(-1) != labels)
    assert fooled.sum() > 3
    distance = np.where(fooled, np.abs(theirs - images).max((1, 2, 3)), np.inf)
    threat = ThreatModel("additive", "linf", 1.0)
    result = attack(model, images, labels, threat, key=KEY, steps=50)
    assert result.success.all()
    assert np.median(threat_models.size(threat, result.delta)) <= 1.02 * np.median(distance)


def test_targeted_and_what_is_misclassified_already():
    model, images = linear(3), sample(0.3, 0.7)
    target = (model(images).argmax(-1) + 1) % 3
    threat = ThreatModel("additive", "linf", 1.0)
    result = attack(model, images, target, threat, key=KEY, targeted=True)
    assert result.success.all() and (model(result.images).argmax(-1) == target).all()
    result = attack(model, images, target, threat, key=KEY)
    assert result.success.all() and (result.images == images).all()


def test_logits_that_are_not_finite_are_not_sought():
    def model(x):
        mean = x.mean((1, 2, 3)) - 0.5
        return jnp.where(jnp.abs(mean)[:, None] > 0.02, jnp.nan, jnp.stack([1 + 0 * mean, mean], -1))

    images, threat = jnp.full((3, 4, 4, 1), 0.5), ThreatModel("additive", "linf", 0.1)
    assert not fmn(model, images, jnp.zeros(3, int), threat, key=jax.random.key(0)).success.any()


def test_a_ball_that_does_not_reach_the_boundary():
    model, images = linear(5), sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = exact_distances(model, images, labels, 1)
    radius = float(np.median(exact))
    result = attack(model, images, labels, ThreatModel("additive", "linf", radius), key=KEY)
    np.testing.assert_array_equal(result.success, exact < radius)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_errors(gamma):
    with pytest.raises(ValueError, match=f"gamma={gamma}"):
        fmn(linear(2), sample(0, 1), jnp.zeros(6, int), ThreatModel("additive", "l2", 1.0), key=KEY, gamma=gamma)
