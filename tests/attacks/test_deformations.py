from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from properties import KEY, THREATS, check_properties, check_result, sample, smooth
from robust_jax import losses
from robust_jax.attacks import ATTACKS, adef, deepfool, pgd, stadv
from robust_jax.attacks.deformations import SMOOTHING, smoothed, total_variation
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import differences
from simple_models import Linear, Net, initial

pytestmark = pytest.mark.usefixtures("quick_compile")

FLOW = ThreatModel("flow", "l2inf", 8.0)
quick = partial(stadv, steps=15)


def trained(images, labels):
    """`Net` on smooth images, with weights that separate them by a little."""
    variables = initial(images.shape)
    loss = lambda v: losses.cross_entropy(Net().apply(v, images), labels).sum()  # noqa: E731
    step = jax.jit(lambda v: jax.tree.map(lambda p, g: p - 0.01 * g, v, jax.grad(loss)(v)))
    for _ in range(60):
        variables = step(variables)
    return bind(Net(), variables)


@pytest.fixture(scope="module")
def setting():
    images, labels = smooth(), jnp.array([0, 1, 2, 0, 1, 2])
    model = trained(images, labels)
    assert (model(images).argmax(-1) == labels).all()
    return model, images, labels


@pytest.mark.parametrize("attack", [quick, adef], ids=["stadv", "adef"])
def test_properties(attack, setting):
    # Rounding of other shapes decides where a line search ends.
    check_properties(attack, FLOW, *setting[1::-1], minimal=True, eager=attack is adef, atol=0.02)


def lengths(delta):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), axis=1)


def test_they_succeed_with_smoother_flows_than_pgd_and_deepfool(setting):
    model, images, labels = setting
    run = lambda f, t: jax.jit(f)(model, images, labels, t, key=KEY)  # noqa: E731
    # In logits a pixel: these images are smooth and the model flat, at 0.05 staying is cheaper for two of them.
    found = {"stadv": run(partial(stadv, smoothness=0.01), FLOW), "adef": run(partial(adef, sigma=1.0), FLOW)}
    found["deepfool"] = run(partial(deepfool, relaxation=1.0), ThreatModel("flow", "l2", 60.0))
    found["pgd"] = run(pgd, ThreatModel("flow", "l2inf", 3.0))
    rough = {n: np.asarray(total_variation(r.delta)) / lengths(r.delta) for n, r in found.items()}
    for name in ("stadv", "adef"):
        check_result(model, found[name], images, FLOW, labels, minimal=True)
        assert found[name].success.all()
        assert (rough[name] < 0.5 * rough["pgd"]).all() and (rough[name] < 0.6 * rough["deepfool"]).all(), rough
    # What stAdv minimises is less, and ADef's field not much longer than the shortest.
    assert (total_variation(found["stadv"].delta) < 0.5 * total_variation(found["deepfool"].delta)).all()
    smallest = jax.jit(adef)(model, images, labels, FLOW, key=KEY).delta
    assert (lengths(smallest) < 1.4 * lengths(found["deepfool"].delta)).all()
    # The ball bounds: none of these is a success in one that is a tenth of what they need.
    tight = threat_models.scaled(FLOW, 0.1 * float(threat_models.size(FLOW, found["adef"].delta).min()))
    failed = run(adef, tight)
    assert not failed.success.any() and not failed.delta.any()


def test_adef_without_smoothing_is_deepfool(setting):
    model, images, labels = setting
    far = ThreatModel(replace(flow, slope=None), "l2", 100.0)
    whole = partial(deepfool, relaxation=1.0)
    results = [jax.jit(f)(model, images, labels, far, key=KEY) for f in (partial(adef, sigma=0.0), whole)]
    np.testing.assert_allclose(results[0].delta, results[1].delta, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_first_step_of_adef_is_the_closed_form(sigma):
    rng, images = np.random.default_rng(0), smooth(7, count=12)
    model = Linear(jnp.asarray(0.1 * rng.normal(size=(49, 4)), jnp.float32), jnp.zeros(4))
    labels = np.asarray(model(images)).argmax(-1)
    logits = np.asarray(model(images), np.float64)
    down, across = (np.asarray(d, np.float64)[..., 0] for d in differences(images))
    blur = partial(gaussian_filter, sigma=sigma, mode="constant", truncate=8, axes=(0, 1))
    expected = []
    for i, y in enumerate(labels):
        steps = []
        for k in set(range(4)) - {y}:
            w = np.asarray(model.weights[:, k] - model.weights[:, y], np.float64).reshape(7, 7)
            alpha = blur(np.stack([w * down[i], w * across[i]], -1))
            gap = (logits[i, y] - logits[i, k]) / (alpha**2).sum()
            steps.append((gap * np.sqrt((alpha**2).sum()), gap * blur(alpha)))
        expected.append(min(steps, key=lambda s: s[0])[1])
    attack = jax.jit(partial(adef, sigma=sigma, steps=1, overshoot=1.0))  # far enough, however bent the path is
    result = attack(model, images, jnp.asarray(labels), FLOW, key=KEY)
    assert result.success.sum() >= 4
    for delta, step in zip(result.delta[result.success], np.stack(expected)[result.success], strict=True):
        np.testing.assert_allclose(delta, 2 * step, atol=2e-3 * np.abs(step).max())


def test_smoothing_is_a_gaussian_filter_and_its_own_transpose():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(2, 6, 9, 2)), jnp.float32) for _ in range(2))
    for sigma in (0.5, 2.0):
        expected = gaussian_filter(np.asarray(a, np.float64), sigma, mode="constant", truncate=8, axes=(1, 2))
        np.testing.assert_allclose(smoothed(a, sigma), expected, atol=1e-5)
        np.testing.assert_allclose((smoothed(a, sigma) * b).sum(), (a * smoothed(b, sigma)).sum(), rtol=1e-4)


def test_total_variation_counts_all_pairs_of_neighbours():
    field = np.random.default_rng(0).normal(size=(2, 4, 5, 2)).astype(np.float32)
    expected = np.zeros(2)
    for y in range(4):
        for x in range(5):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < 4 and 0 <= u < 5:
                    squared = ((field[:, y, x] - field[:, v, u]).astype(np.float64) ** 2).sum(-1)
                    expected += np.sqrt(squared + SMOOTHING**2) - SMOOTHING
    np.testing.assert_allclose(total_variation(jnp.asarray(field)), expected, rtol=1e-5)
    assert not np.asarray(total_variation(jnp.full((1, 4, 4, 2), 0.3))).any()


def test_targeted_and_by_how_much_the_label_is_beaten(setting):
    model, images, labels = setting
    target = (labels + 1) % 3
    for attack, ahead in ((partial(stadv, smoothness=1e-3, confidence=1.0), 1), (adef, 0)):
        result = jax.jit(partial(attack, targeted=True))(model, images, target, FLOW, key=KEY)
        check_result(model, result, images, FLOW, target, targeted=True, minimal=True)
        assert result.success.sum() >= 4
        assert (losses.margin(model(result.images), target)[result.success] <= -0.999 * ahead).all()


@pytest.mark.parametrize("attack", [stadv, adef])
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps=0"),
        (dict(threat=THREATS[3]), r"affine has δ of shape \[B, 3\].*'flow'"),
        (dict(threat=THREATS[4]), "not a field"),
        (dict(images=sample() + 1), r"\[0, 1\]"),
    ],
)
def test_errors(attack, options, message):
    model = Linear(jnp.ones((32, 3)), jnp.zeros(3))
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=FLOW, key=KEY)
    with pytest.raises(ValueError, match=message):
        attack(model, **(given | options))


def test_errors_of_one():
    given = (Linear(jnp.ones((32, 3)), jnp.zeros(3)), sample(), jnp.zeros(6, int), FLOW)
    for attack, options in ((adef, dict(sigma=-1.0)), (stadv, dict(smoothness=-0.1)), (stadv, dict(start=-1.0))):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{attack.__name__}: {name}={value}"):
            attack(*given, key=KEY, **options)
    assert ATTACKS["stadv"] is stadv and ATTACKS["adef"] is adef
