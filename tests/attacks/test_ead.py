from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.attacks import ead
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, initial
from test_deepfool import linear, sample

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
attack = jax.jit(ead, static_argnames=("steps", "binary_search_steps", "beta", "rule"))


def test_beta_and_rule_trade_few_coordinates_for_short_ones():
    model, images, threat = linear(3), sample(0.3, 0.7), ThreatModel("additive", "l1", 32.0)
    labels = model(images).argmax(-1)
    results = [attack(model, images, labels, threat, key=KEY, steps=200, **o)
               for o in (dict(), dict(beta=0.5), dict(beta=0.5, rule="en"))]  # fmt: skip
    assert all(r.success.all() for r in results)
    l1, l2, changed = (
        [np.linalg.norm(np.asarray(r.delta).reshape(6, -1), order, axis=1) for r in results] for order in (1, 2, 0)
    )
    assert (changed[0] < changed[1]).all() and (l1[0] < l1[1]).all()
    assert (l2[2] <= 1.01 * l2[1]).all() and (l2[2] < l2[0]).all()


def test_no_farther_than_foolbox():
    foolbox = pytest.importorskip("foolbox")
    images = sample(-0.2, 1.2)
    model = bind(Net(), initial(images.shape))
    labels = model(images).argmax(-1)
    peer = foolbox.attacks.EADAttack(
        binary_search_steps=2, steps=30, initial_const=1.0, abort_early=False, decision_rule="L1"
    )
    theirs = peer(foolbox.JAXModel(jax.jit(lambda x: model(x)), bounds=(0, 1)), images, labels, epsilons=None)[1]
    # Where it fails, its image is black.
    fooled = np.asarray(model(theirs).argmax(-1) != labels) & np.asarray(theirs.any((1, 2, 3)))
    assert fooled.sum() > 3
    distance = np.where(fooled, np.abs(theirs - images).sum((1, 2, 3)), np.inf)
    threat = ThreatModel("additive", "l1", 32.0)
    result = attack(model, images, labels, threat, key=KEY, steps=200)
    assert result.success.all()
    assert np.median(32 * threat_models.size(threat, result.delta)) <= 1.02 * np.median(distance)


@pytest.mark.parametrize("options, message", [(dict(beta=-1.0), "beta=-1.0"), (dict(rule="l2"), "l2.*en.*l1")])
def test_errors(options, message):
    threat = ThreatModel("additive", "l1", 1.0)
    with pytest.raises(ValueError, match=message):
        ead(linear(2), sample(0, 1), jnp.zeros(6, int), threat, key=KEY, **options)


def test_a_smaller_net_outside_of_the_ball_does_not_displace_a_result_in_it():
    rng = np.random.default_rng(0)
    images = jnp.asarray(0.5 + 0.01 * rng.normal(size=(32, 8, 8, 1)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=64), jnp.float32).at[0].set(4.0)

    def model(x):
        margin = 5 * ((x.reshape(len(x), -1) - 0.5) @ weights - 0.6)
        return jnp.stack([0 * margin, margin], -1)

    nearest = -model(images)[:, 1] / (5 * 4.0)  # in l1: by the largest weight alone
    threat, labels = ThreatModel("additive", "l1", 1.45 * float(nearest.mean())), jnp.zeros(32, int)
    short, net = (
        ead(model, images, labels, threat, key=KEY, steps=100, binary_search_steps=5, beta=0.5, rule=rule)
        for rule in ("l1", "en")
    )
    np.testing.assert_array_equal(net.success, short.success)
    assert net.success.any()
