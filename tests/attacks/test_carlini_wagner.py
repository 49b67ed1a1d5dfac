from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import carlini_wagner
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, initial
from test_deepfool import linear, sample

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
attack = jax.jit(carlini_wagner, static_argnames=("confidence",))


def sizes(threat, result):
    return np.asarray(threat_models.size(threat, result.delta))


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
    model = bind(Net(), initial(images.shape))
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
