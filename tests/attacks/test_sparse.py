from __future__ import annotations

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import KEY, THREATS, check_properties, check_result, net, sample
from robust_jax.attacks import ATTACKS, jsma, pointwise, sparse
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear

pytestmark = pytest.mark.usefixtures("quick_compile")

ANY = ThreatModel("additive", "linf", 1.0)
SOME = ThreatModel("additive", "linf", 0.4)


def linear(classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return Linear(jnp.asarray(rng.normal(size=(32, classes)), jnp.float32), jnp.zeros(classes))


def changed(result):
    return np.asarray((result.delta != 0).sum((1, 2, 3)))


@pytest.mark.parametrize("attack", [jsma, partial(pointwise, draws=2, levels=8)], ids=["jsma", "pointwise"])
@pytest.mark.parametrize("threat", [SOME, ANY], ids=["some", "any"])
def test_properties(attack, threat):
    if threat is SOME:
        check_properties(attack, threat, minimal=True)
        return
    model, images = linear(), sample()
    labels = model(images).argmax(-1)
    result = jax.jit(attack)(model, images, labels, threat, key=KEY)
    check_result(model, result, images, threat, labels, minimal=True)
    assert result.success.any()


def follow(model, image, label, target, steps, targeted):
    """JSMA on a linear model in plain numpy: the images after each step."""
    w = np.asarray(model.weights, np.float64)
    x, moved = np.asarray(image, np.float64).ravel(), set()
    a, b = w[:, target], w.sum(1) - w[:, target]
    for _ in range(steps):
        z = (x.astype(np.float32) @ np.asarray(model.weights)).argmax()
        if (z == label) if targeted else (z != label):
            break
        options = []
        for p, q in combinations(range(32), 2):
            alpha, beta = a[p] + a[q], b[p] + b[q]
            end = 1.0 if alpha > 0 else 0.0
            if alpha * beta < 0 and not {p, q} & moved and x[p] != end and x[q] != end:
                options.append((-alpha * beta, p, q, end))
        if not options:
            break
        _, p, q, end = max(options)
        x[[p, q]] = end
        moved |= {p, q}
    return x


@pytest.mark.parametrize("targeted", [False, True])
def test_jsma_follows_an_independent_implementation(targeted):
    model, images = linear(4), sample()
    logits = np.asarray(model(images))
    order = logits.argsort(-1)
    labels = order[:, 0] if targeted else order[:, -1]
    targets = labels if targeted else order[:, -2]
    run = jax.jit(partial(jsma, max_pixels=32, targeted=targeted))
    result = run(model, images, jnp.asarray(labels), ANY, key=KEY)
    check_result(model, result, images, ANY, labels, targeted=targeted, minimal=True)
    assert result.success.sum() >= 4
    for i in np.flatnonzero(result.success):
        expected = follow(model, images[i], labels[i], targets[i], 16, targeted)
        np.testing.assert_allclose(np.asarray(result.images[i]).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 24])
def test_the_salient_pair_is_the_same_in_blocks(monkeypatch, rows):
    for seed in range(5):
        draw = np.random.default_rng(seed)
        a, b = (jnp.asarray(draw.integers(-4, 5, 24), jnp.float32) for _ in range(2))  # many ties
        example = a, b, jnp.asarray(draw.random(24) < 0.8)
        whole = sparse._salient_pair(example)
        monkeypatch.setattr(sparse, "_PAIRS", 24 * rows)
        in_blocks = sparse._salient_pair(example)
        monkeypatch.undo()
        assert whole[0] == in_blocks[0] and (whole[1] == in_blocks[1]).all()


def test_jsma_at_the_size_of_imagenet_scores_pairs_in_blocks():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    run = jax.jit(partial(jsma, lambda x: x.mean((1, 2)), threat=ThreatModel("additive", "linf", 1.0), key=KEY))
    compiled = run.lower(images, labels=jax.ShapeDtypeStruct((1,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**30


def test_jsma_changes_at_most_the_allowed_number_each_at_most_by_the_radius():
    model, images = linear(), sample()
    labels = model(images).argmax(-1)
    needed = changed(jax.jit(jsma)(model, images, labels, SOME, key=KEY))
    successes = []
    for most in (2, 3, 6, 32):
        result = jax.jit(partial(jsma, max_pixels=most))(model, images, labels, SOME, key=KEY)
        assert changed(result).max() <= most and jnp.abs(result.delta).max() <= 0.4
        np.testing.assert_array_equal(result.success, (needed > 0) & (needed <= most))
        successes.append(int(result.success.sum()))
    assert successes[0] < successes[-1]


def test_pointwise_finds_the_least_number_of_pixels_where_it_is_known():
    # Class 1 wants the sum high: the least number is of the pixels with the most weight and room.
    w = np.linspace(0.5, 1.5, 32)
    model = Linear(jnp.asarray(np.stack([0 * w, w], 1), jnp.float32), jnp.asarray([12.0, 0.0]))
    images, labels = jnp.full((6, 4, 4, 2), 0.2), jnp.zeros(6, int)
    gains = np.sort(0.8 * w)[::-1].cumsum()
    least = int(np.argmax(gains > 12 - 0.2 * w.sum())) + 1
    result = jax.jit(partial(pointwise, draws=40))(model, images, labels, ANY, key=KEY)
    check_result(model, result, images, ANY, labels, minimal=True)
    assert (changed(result) >= least).all() and changed(result).min() <= least + 2
    assert (result.delta >= 0).all()  # what does not help is put back


def test_pointwise_is_minimal_and_bounded():
    model, images = net(), sample()
    labels = model(images).argmax(-1)
    result = jax.jit(pointwise)(model, images, labels, ANY, key=KEY)
    assert result.success.all()
    counts = changed(result)
    for i, count in enumerate(counts):
        flat = np.asarray(result.delta[i]).ravel()
        for j in np.flatnonzero(flat):
            fewer = np.where(np.arange(32) == j, 0, flat).reshape(images[0].shape)
            assert model(images[i : i + 1] + fewer).argmax(-1)[0] == labels[i]
        assert 0 < count < 32
    most = int(counts.min())
    bounded = jax.jit(partial(pointwise, max_pixels=most))(model, images, labels, ANY, key=KEY)
    np.testing.assert_array_equal(bounded.success, counts <= most)
    check_result(model, bounded, images, ANY, labels, minimal=True)


@pytest.mark.parametrize("attack", [jsma, pointwise])
def test_errors(attack):
    assert attack in ATTACKS.values()
    given = (net(), sample(), jnp.zeros(6, int))
    for threat in (*THREATS[1:], ThreatModel("additive", "l2", 1.0)):
        with pytest.raises(ValueError, match="'additive' with 'linf'"):
            attack(*given, threat, key=KEY)
    with pytest.raises(ValueError, match="max_pixels=-1"):
        attack(*given, ANY, key=KEY, max_pixels=-1)
    with pytest.raises(ValueError, match="draws=0"):
        pointwise(*given, ANY, key=KEY, draws=0)
