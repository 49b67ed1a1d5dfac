from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simple_models import Net
from test_deepfool import exact_distances, linear, sample

from robust_jax import losses, threat_models
from robust_jax.attacks import carlini_wagner
from robust_jax.models import bind
from robust_jax.perturbations import Perturbation
from robust_jax.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
attack = jax.jit(carlini_wagner, static_argnames=("confidence",))


def sizes(threat, result):
    return np.asarray(threat_models.size(threat, result.delta))


def distances_in_the_box(model, images, labels):
    """The l2 distance to the nearest class within [0, 1], in float64: δ = clip(t g), t by bisection."""
    w, b = np.asarray(model.weights, np.float64), np.asarray(model.bias, np.float64)

    def one(x, label, other):
        g = w[:, other] - w[:, label]
        gap = b[label] - b[other] - x @ g
        low, high = 0.0, 1e6
        for _ in range(200):
            t = (low + high) / 2
            low, high = (low, t) if g @ np.clip(t * g, -x, 1 - x) > gap else (t, high)
        delta = np.clip(t * g, -x, 1 - x)
        return np.linalg.norm(delta) if g @ delta > gap - 1e-6 else np.inf

    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    classes = range(w.shape[1])
    return np.array([
        min(one(x, y, k) for k in classes if k != y) for x, y in zip(flat, np.asarray(labels), strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("box", [False, True])
def test_finds_the_exact_distance_of_a_linear_model(box):
    model, images = linear(5), sample(-0.3, 1.3) if box else sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = distances_in_the_box(model, images, labels)
    if not box:
        np.testing.assert_allclose(exact, exact_distances(model, images, labels, 2), rtol=1e-6)
    for radius in (6.0, 100.0):
        threat = ThreatModel("additive", "l2", radius)
        result = attack(model, images, labels, threat, key=KEY)
        assert result.success.all()
        ratio = radius * sizes(threat, result) / exact
        assert (ratio >= 0.9999).all() and (ratio <= 1.005).all(), ratio


def test_the_nearest_class_is_not_always_that_of_the_largest_logit():
    model, images = linear(5), sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    # A class whose logit is close, and hardly changes.
    runner_up = jax.lax.top_k(model(images), 2)[1][0, 1]
    model.weights = model.weights.at[:, runner_up].set(model.weights[:, labels[0]] * 0.98)
    exact, threat = exact_distances(model, images, labels, 2), ThreatModel("additive", "l2", 6.0)
    keep = np.asarray(model(images).argmax(-1) == labels) & (exact < 2)
    result = attack(model, images, labels, threat, key=KEY)
    np.testing.assert_allclose(6 * sizes(threat, result)[keep], exact[keep], rtol=0.02)


def test_the_parts_of_a_composition_share_the_way():
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
    result = attack(model, images, labels, threat, key=KEY)
    np.testing.assert_array_equal(result.success, exact < 1)
    np.testing.assert_allclose(sizes(threat, result)[exact < 1], exact[exact < 1], rtol=0.02)
    assert (exact < 1).any()


def test_confidence():
    model, images, threat = linear(3), sample(0.3, 0.7), ThreatModel("additive", "l2", 6.0)
    labels = model(images).argmax(-1)
    result = attack(model, images, labels, threat, key=KEY, confidence=2.0)
    assert result.success.all()
    margin = losses.margin(model(result.images), labels)
    assert (margin >= 2).all() and (margin <= 2.05).all()


def test_no_farther_than_foolbox():
    foolbox = pytest.importorskip("foolbox")
    images = sample(-0.2, 1.2)
    model = bind(Net(), Net().init(jax.random.key(0), jnp.zeros((1, *images.shape[1:]))))
    labels = model(images).argmax(-1)
    peer = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=2, steps=40, stepsize=0.1, initial_const=1.0, abort_early=False
    )
    theirs = peer(foolbox.JAXModel(jax.jit(lambda x: model(x)), bounds=(0, 1)), images, labels, epsilons=None)[1]
    # Where it fails, its image is black.
    fooled = (np.asarray(model(theirs).argmax(-1)) != np.asarray(labels)) & np.asarray(theirs.any((1, 2, 3)))
    assert fooled.sum() > 3
    distance = np.where(fooled, np.linalg.norm((theirs - images).reshape(len(images), -1), axis=1), np.inf)
    threat = ThreatModel("additive", "l2", 6.0)
    result = attack(model, images, labels, threat, key=KEY)
    assert result.success.all()
    assert np.median(6 * sizes(threat, result)) <= 1.02 * np.median(distance)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(binary_search_steps=0), "binary_search_steps=0"),
        (dict(learning_rate=0.0), "learning_rate=0.0"),
        (dict(initial_const=-1.0), "initial_const=-1.0"),
        (dict(confidence=-1.0), "confidence=-1.0"),
        (dict(threat=ThreatModel(("flow", "additive"), ("l2", "l1"), (1, 1))), "l1.*every part"),
    ],
)
def test_errors(options, message):
    images = sample(0, 1)
    given = dict(images=images, labels=jnp.zeros(6, int), threat=ThreatModel("additive", "l2", 1.0), key=KEY)
    with pytest.raises(ValueError, match=message):
        carlini_wagner(linear(2), **(given | options))
