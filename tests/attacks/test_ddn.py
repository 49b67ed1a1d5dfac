from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.attacks import ddn
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, initial
from test_deepfool import linear, sample

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)


def test_no_farther_than_foolbox():
    foolbox = pytest.importorskip("foolbox")
    images = jnp.concatenate([sample(-0.2, 1.2, seed) for seed in range(3)])
    model = bind(Net(), initial(images.shape))
    labels = model(images).argmax(-1)
    wrapped = foolbox.JAXModel(jax.jit(lambda x: model(x)), bounds=(0, 1))
    theirs = foolbox.attacks.DDNAttack(steps=50)(wrapped, images, labels, epsilons=None)[1]
    fooled = np.asarray(model(theirs).argmax(-1) != labels)
    assert fooled.sum() > 3
    distance = np.where(fooled, np.linalg.norm((theirs - images).reshape(len(images), -1), axis=1), np.inf)
    threat = ThreatModel("additive", "l2", 6.0)
    result = jax.jit(ddn, static_argnames="steps")(model, images, labels, threat, key=KEY, steps=50)
    assert result.success.all()
    assert np.median(6 * threat_models.size(threat, result.delta)) <= 1.02 * np.median(distance)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_errors(gamma):
    threat = ThreatModel("additive", "l2", 1.0)
    with pytest.raises(ValueError, match=f"gamma={gamma}"):
        ddn(linear(2), sample(0, 1), jnp.zeros(6, int), threat, key=KEY, gamma=gamma)
