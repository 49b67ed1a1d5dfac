"""The costs that follow from settings, compared with a model that counts its passes."""

import inspect
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.attacks import ATTACKS
from robust_jax.attacks.define import Cost, Problem, cost_of
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

SHAPE, CLASSES = (2, 4, 4, 1), 4
WEIGHTS = np.random.default_rng(0).normal(size=(16, CLASSES)).astype(np.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, SHAPE), jnp.float32)
LABELS = jnp.zeros(SHAPE[0], int)
COUNTED = Counter()


def count(what, images):
    # Called in every turn of a loop, and because of its argument for every entry under vmap.
    jax.debug.callback(lambda _: COUNTED.update({what: len(images)}), images.sum())


@jax.custom_vjp
def unbreakable(images):
    count("forwards", images)
    return images.reshape(len(images), -1) @ WEIGHTS + 1e3 * jnp.eye(CLASSES)[0]


def forward(images):
    return unbreakable(images), images


def backward(images, pulled):
    count("gradients", images + pulled.sum())
    return ((pulled @ WEIGHTS.T).reshape(images.shape),)


unbreakable.defvjp(forward, backward)

ADDITIVE, FLOW = ThreatModel("additive", "linf", 0.01), ThreatModel("flow", "linf", 0.5)
CASES = [
    ("pgd", dict(steps=3, restarts=2), ADDITIVE),
    ("pgd", dict(steps=3, keep="last"), ADDITIVE),
    ("fgsm", {}, ADDITIVE),
    ("spsa", dict(steps=2, samples=3), ADDITIVE),
    ("nes", dict(steps=2, samples=3), ADDITIVE),
    ("apgd", dict(steps=3, restarts=2), ADDITIVE),
    ("apgd", dict(steps=4, restarts=2), ThreatModel("additive", "l1", 0.01)),
    ("apgd_dlr", dict(steps=3), ADDITIVE),
    ("apgd_targeted", dict(steps=3, restarts=2, candidates=2), ADDITIVE),
    ("square", dict(queries=5), ADDITIVE),
    ("random_search", dict(samples=4), ADDITIVE),
    ("grid", dict(points=(3, 1, 2)), ThreatModel("affine", "linf", (10.0, 1.0, 1.0))),
    ("gaussian_noise", {}, ADDITIVE),
    ("uniform_noise", {}, ADDITIVE),
    ("deepfool", dict(steps=1), ADDITIVE),
    ("adef", dict(steps=1), FLOW),
    ("fab", dict(steps=3, restarts=2, candidates=2), ADDITIVE),
    ("fab_targeted", dict(steps=2, restarts=2), ADDITIVE),
    ("carlini_wagner", dict(steps=3, binary_search_steps=2), ThreatModel("additive", "l2", 0.1)),
    ("ddn", dict(steps=3), ThreatModel("additive", "l2", 0.1)),
    ("ead", dict(steps=3, binary_search_steps=2), ThreatModel("additive", "l1", 0.1)),
    ("fmn", dict(steps=3), ADDITIVE),
    ("jsma", dict(max_pixels=2), ADDITIVE),
    ("sigma_zero", dict(steps=3), ADDITIVE),
    ("stadv", dict(steps=4), FLOW),
    ("auto_attack", dict(steps=2, queries=2), ADDITIVE),
]
AT_MOST = [
    ("deepfool", dict(steps=9, candidates=2), ADDITIVE),
    ("jsma", dict(max_pixels=9), ADDITIVE),
    ("pointwise", dict(draws=2, levels=3), ADDITIVE),
]


def counted(name, settings, threat, model=unbreakable):
    COUNTED.clear()
    result = jax.jit(partial(ATTACKS[name], model, threat=threat, key=jax.random.key(0), **settings))(IMAGES, LABELS)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert not result.success.any()
    return Cost(*(COUNTED[k] / SHAPE[0] for k in Cost._fields))


@pytest.mark.parametrize("name, settings, threat", CASES)
def test_a_full_run_costs_what_follows_from_the_settings(name, settings, threat):
    expected = cost_of(ATTACKS[name], settings, Problem(SHAPE[1:], CLASSES, threat))
    assert counted(name, settings, threat) == expected


@pytest.mark.parametrize("name, settings, threat", AT_MOST)
def test_a_run_that_stops_early_costs_at_most_that(name, settings, threat):
    bound = cost_of(ATTACKS[name], settings, Problem(SHAPE[1:], CLASSES, threat))
    found = counted(name, settings, threat)
    assert found.forwards <= bound.forwards and found.gradients <= bound.gradients


def test_every_attack_has_a_cost_at_its_defaults():
    assert {name for name, *_ in CASES + AT_MOST} == set(ATTACKS)
    for name in ATTACKS:
        assert min(cost_of(ATTACKS[name], {}, Problem((8, 8, 1), 10, ADDITIVE))) >= 0
    text = " ".join(inspect.getdoc(ATTACKS["auto_attack"]).split())
    assert "1,900 gradients per image, in l1 1,920, and about 5,900 forward passes more" in text
    for norm, gradients in (("linf", 1900), ("l2", 1900), ("l1", 1920)):
        threat = ThreatModel("additive", norm, 1.0)
        standard = cost_of(ATTACKS["auto_attack"], {}, Problem((32, 32, 3), 10, threat))
        assert standard.gradients == gradients
        assert round(standard.forwards - standard.gradients, -2) == 5900
    assert cost_of(len, {}, Problem((8, 8, 1), 10, ADDITIVE)) is None


def test_draws_count():
    one = Problem((8, 8, 1), 10, ADDITIVE)
    assert cost_of(ATTACKS["auto_attack"], dict(version="rand", steps=5), one).gradients == 20 * 2 * 5
