from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.attacks import ATTACKS, apgd, auto_attack, square
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.per_example import example_keys, fold_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, initial
from test_deepfool import exact_distances
from test_pgd import check_result

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (12, 4, 4, 2)
FEW = {"steps": 12, "queries": 100}
# Small programs, run a few times: compile the cheapest way.
attack = jax.jit(auto_attack, static_argnames=("version", "steps", "queries"))


def net(seed=0, factor=1.0):
    variables = initial(SHAPE, seed)
    variables["params"]["Dense_0"]["kernel"] *= factor
    return bind(Net(), variables)


def sample(low=-0.25, high=1.25, seed=1):
    x = np.random.default_rng(seed).uniform(low, high, size=SHAPE)
    return jnp.asarray(np.clip(x, 0, 1), jnp.float32)


def check(model, result, images, threat, labels):
    check_result(model, result, images, threat, labels)
    np.testing.assert_array_equal(result.images[~result.success], images[~result.success])


@pytest.mark.parametrize("version, classes", [("standard", 5), ("plus", 2)])
def test_breaks_exactly_what_can_be_broken(version, classes):
    rng = np.random.default_rng(0)
    model = Linear(jnp.asarray(rng.normal(size=(32, classes)), jnp.float32), jnp.zeros(classes))
    images = sample(0.45, 0.55)
    labels = model(images).argmax(-1)
    exact = exact_distances(model, images, labels, 1)
    threat = ThreatModel("additive", "linf", float(np.median(exact)))
    result = attack(model, images, labels, threat, key=KEY, version=version, **FEW)
    check(model, result, images, threat, labels)
    clear = np.abs(exact / threat.radius - 1) > 0.01
    np.testing.assert_array_equal(np.asarray(result.success)[clear], (exact < threat.radius)[clear])
    # One program serves other radii.
    none = attack(model, images, labels, ThreatModel("additive", "linf", 0.0), key=KEY, version=version, **FEW)
    assert not none.success.any() and not none.delta.any()


@pytest.fixture
def two_parts(monkeypatch):
    """Enough to see them take turns."""
    module = sys.modules["robust_jax.attacks.auto"]
    monkeypatch.setattr(module, "parts", lambda *_: [partial(apgd, steps=12), partial(square, queries=100)])


def test_what_one_has_broken_the_next_leave_alone(two_parts):
    model, images, threat = net(), sample(), ThreatModel("additive", "l2", 0.4)
    labels = model(images).argmax(-1).at[0].add(1) % 3
    result = jax.jit(lambda *given: auto_attack(*given, key=KEY))(model, images, labels, threat)
    check(model, result, images, threat, labels)
    assert result.success[0] and not jax.tree.leaves(result.delta)[0][0].any()
    assert 2 < result.success.sum() < len(images)
    # By the first attack that breaks them.
    keys = fold_keys(example_keys(KEY, 12), 0)
    first = jax.jit(apgd, static_argnames="steps")(model, images, labels, threat, key=keys, steps=12)
    assert (result.success | ~first.success).all()
    broken = np.asarray(first.success)
    np.testing.assert_allclose(result.images[broken], first.images[broken], atol=1e-3)


def test_random_models():
    images, threat = sample(), ThreatModel("additive", "linf", 0.3)
    base = net()
    noisy = lambda x, key: base(x + 0.1 * jax.random.normal(key, x.shape))  # noqa: E731
    labels = base(images).argmax(-1)
    result = jax.jit(lambda x, y: auto_attack(noisy, x, y, threat, key=KEY, version="rand", **FEW))(images, labels)
    assert (threat_models.size(threat, result.delta) <= 1.0001).all() and result.success.mean() > 0.5
    # What fools the mean of some draws fools most others too.
    draws = jax.vmap(lambda k: noisy(result.images, k).argmax(-1))(jax.random.split(jax.random.key(9), 50))
    assert (draws != labels)[:, result.success].mean() > 0.7


def test_an_evaluation_takes_it(two_parts):
    assert ATTACKS["auto_attack"] is auto_attack
    model, images = net(), sample()
    labels = np.asarray(model(images).argmax(-1))
    attacks = {"auto": Attack(auto_attack, ThreatModel("flow", "linf", 0.5), {}, (0.5, 1, 2))}
    outcome = robustness(model, [{"image": images, "label": labels}], attacks, key=KEY).attacks["auto"]
    assert outcome.size.max() <= 1.0001 and outcome.excess.max() < 1e-6
    rates = [outcome.curve[m].mean() for m in (0.5, 1.0, 2.0)]
    assert rates[-1] > 0 and (np.diff(rates) >= 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(version="custom"), "version='custom'.*plus.*rand.*standard"),
        (dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (dict(labels=jnp.full(12, 3)), "3 classes"),
        (dict(steps=0), "steps=0"),
    ],
)
def test_errors(options, message):
    given = dict(images=sample(), labels=net()(sample()).argmax(-1), threat=ThreatModel("additive", "l2", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        auto_attack(net(), **(given | options))
