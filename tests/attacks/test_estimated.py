from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import ADDITIVE, KEY, THREATS, check_properties, check_result, net, sample
from robust_jax import losses
from robust_jax.attacks import ATTACKS, nes, pgd, spsa
from robust_jax.attacks.estimated import estimate_gradient
from robust_jax.attacks.result import clip_box
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("attack, threat", [(spsa, ADDITIVE), (nes, THREATS[2])])
def test_properties(attack, threat):
    labels, result = check_properties(partial(attack, steps=4, samples=8), threat, atol=1e-3)
    model = net()
    assert (losses.margin(model(result.images), labels) > losses.margin(model(sample()), labels)).all()


@pytest.mark.parametrize(
    "signs, threat", [(True, ADDITIVE), (False, ADDITIVE), (True, THREATS[2]), (False, THREATS[4])]
)
def test_the_estimate_points_along_the_gradient(signs, threat):
    model, images = net(), sample(0.3, 0.7)
    labels = model(images).argmax(-1)
    zeros = threat.perturbation.zeros(images)
    # Inside a cell of the grid, where bilinear sampling has a derivative.
    delta = jax.tree.map(lambda z: z + (0.4 if threat.perturbation.name != "additive" else 0), zeros)

    def value(delta):
        return losses.margin(model(clip_box(threat.perturbation.apply(images, delta))), labels)

    exact = jax.grad(lambda d: value(d).sum())(delta)
    keys = example_keys(KEY, len(images))
    run = partial(estimate_gradient, images, value, threat=threat, samples=300, probe=0.01, signs=signs)
    guess = jax.jit(run)(delta, keys)
    for e, g, r in zip(*map(jax.tree.leaves, (exact, guess)), _radii(threat), strict=True):
        e, g = (np.asarray(v * r).reshape(len(images), -1) for v in (e, g))
        cosine = (e * g).sum(1) / np.linalg.norm(e, axis=1) / np.linalg.norm(g, axis=1)
        # Of n directions in D dimensions the cosine is sqrt(n / (n + D)), less for a small part of a composition.
        assert cosine.min() > (0.3 if threat.perturbation.parts else 0.8), cosine


def _radii(threat):
    radii = threat.radius if threat.perturbation.parts else (threat.radius,)
    return [jnp.asarray(r, jnp.float32) for r in radii]


@pytest.mark.parametrize("attack, threat", [(spsa, THREATS[0]), (nes, THREATS[2])])
def test_reaches_most_of_the_gain_of_pgd(attack, threat):
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    run = lambda f, **o: jax.jit(partial(f, loss=losses.margin, **o))(model, images, labels, threat, key=KEY)  # noqa: E731
    ours, theirs = run(attack), run(pgd)
    check_result(model, ours, images, threat, labels)
    clean = losses.margin(model(images), labels)
    gains = [np.asarray(losses.margin(model(r.images), labels) - clean) for r in (ours, theirs)]
    assert gains[0].mean() >= 0.8 * gains[1].mean(), gains


@pytest.mark.parametrize("attack, norm, order", [(spsa, "linf", 1), (nes, "l2", 2)])
def test_reaches_the_optimum_of_a_linear_model_without_its_derivative(attack, norm, order):
    linear = Linear(jnp.asarray(np.random.default_rng(0).normal(size=(32, 2)), jnp.float32), jnp.zeros(2))
    model = lambda x: jax.lax.stop_gradient(linear(x))  # noqa: E731
    images, labels = sample(0.3, 0.7), linear(sample(0.3, 0.7)).argmax(-1)
    w = np.asarray(linear.weights)
    threat = ThreatModel("additive", norm, 0.1)
    result = jax.jit(partial(attack, model, samples=128))(images, labels, threat, key=KEY)
    best = np.array([0.1 * np.linalg.norm(w[:, 1 - y] - w[:, y], order) for y in np.asarray(labels)])
    gain = losses.margin(model(result.images), labels) - losses.margin(model(images), labels)
    assert (gain >= 0.9 * best).all() and (gain <= 1.0001 * best).all(), gain / best
    towards = jax.jit(partial(attack, model, targeted=True, samples=128))(images, 1 - labels, threat, key=KEY)
    np.testing.assert_allclose(towards.images, result.images, atol=1e-5)


@pytest.mark.parametrize("attack", [spsa, nes])
@pytest.mark.parametrize("options", [dict(samples=0), dict(probe=0.0), dict(steps=0), dict(keep="none")])
def test_errors(attack, options):
    assert attack in ATTACKS.values()
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{attack.__name__}: {name}={value!r}"):
        attack(net(), sample(), jnp.zeros(6, int), ADDITIVE, key=KEY, **options)
