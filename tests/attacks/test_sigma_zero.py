from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import KEY, THREATS, check_properties, check_result, net, sample
from robust_jax.attacks import jsma, pointwise, sigma_zero
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, digits_network, times
from test_sparse import ANY, SOME, changed, linear

pytestmark = pytest.mark.usefixtures("quick_compile")

attack = jax.jit(sigma_zero, static_argnames=("steps", "max_pixels", "targeted"))


@pytest.mark.parametrize("threat", [SOME, ANY], ids=["some", "any"])
def test_properties(threat):
    # Alone, rounding decides between pixels that help as much: which they are may differ, how many by one.
    labels, result = check_properties(partial(sigma_zero, steps=30), threat, minimal=True, eager=False, atol=1.0)
    keys = example_keys(KEY, 6)
    for i in range(6):
        alone = attack(net(), sample()[i : i + 1], labels[i : i + 1], threat, key=keys[i : i + 1], steps=30)
        assert abs(changed(alone)[0] - changed(result)[i]) <= 1
    assert changed(result).max() > 1


def test_finds_the_least_number_of_pixels_where_it_is_known():
    # Class 1 wants the sum high: the least number is of the pixels with the most weight and room.
    w = np.linspace(0.5, 1.5, 32)
    images = sample(0, 0.6)
    flat = np.asarray(images, np.float64).reshape(6, -1)
    gains = np.sort(w * (1 - flat), axis=1)[:, ::-1].cumsum(1)
    needed = 2.5
    # The margin of the clean image is just `needed`, whatever the image.
    for i in range(6):
        model = Linear(jnp.asarray(np.stack([0 * w, w], 1), jnp.float32), jnp.asarray([flat[i] @ w + needed, 0.0]))
        result = attack(model, images[i : i + 1], jnp.zeros(1, int), ANY, key=KEY, steps=300)
        least = int((gains[i] <= needed).sum()) + 1
        assert result.success.all() and least <= changed(result)[0] <= least + 1


def test_fewer_pixels_than_jsma_and_pointwise():
    model, images, labels = digits_network()
    pixels = {}
    for one in (partial(sigma_zero, steps=64), partial(jsma, max_pixels=64), pointwise):
        result = jax.jit(one)(model, images, labels, ANY, key=KEY)
        pixels[len(pixels)] = np.mean(np.where(result.success, changed(result), 64))
    assert pixels[0] < 0.9 * min(pixels[1], pixels[2]), pixels


def test_changes_at_most_the_allowed_number_each_at_most_by_the_radius():
    model, images = linear(), sample()
    labels = model(images).argmax(-1)
    needed = changed(attack(model, images, labels, SOME, key=KEY))
    for most in (2, 3, 6):
        result = attack(model, images, labels, SOME, key=KEY, max_pixels=most)
        assert changed(result).max() <= most and jnp.abs(result.delta).max() <= 0.4
        np.testing.assert_array_equal(result.success, (needed > 0) & (needed <= most))


def test_the_scale_of_the_logits_changes_nothing():
    model, images = linear(), sample()
    labels = model(images).argmax(-1)
    one, large = (attack(times(model, f), images, labels, ANY, key=KEY) for f in (1.0, 2.0**13))
    np.testing.assert_array_equal(one.images, large.images)


def test_targeted():
    model, images = linear(), sample()
    target = (model(images).argmax(-1) + 1) % 3
    result = attack(model, images, target, ANY, key=KEY, targeted=True)
    check_result(model, result, images, ANY, target, targeted=True, minimal=True)
    assert result.success.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sigma=0.0), "sigma=0.0"),
        (dict(max_pixels=0), "max_pixels=0"),
        (dict(threat=ThreatModel("additive", "l1", 1.0)), "counts changed pixels.*linf"),
        (dict(threat=THREATS[3]), "affine"),
    ],
)
def test_errors(options, message):
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=ANY, key=KEY)
    with pytest.raises(ValueError, match=message):
        sigma_zero(linear(), **(given | options))
