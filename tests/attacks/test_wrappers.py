"""Models that are not in JAX, have no useful gradient, or are random."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import (
    black_box,
    bpda,
    expectation,
    gaussian_noise,
    grid,
    nes,
    pgd,
    pointwise,
    random_search,
    spsa,
    square,
    uniform_noise,
)
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.evaluation.summary import summarise
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE, CLASSES = (12, 4, 4, 1), 3
RNG = np.random.default_rng(0)
WEIGHTS, BIAS = RNG.normal(size=(16, CLASSES)).astype(np.float32), np.zeros(CLASSES, np.float32)
IMAGES = jnp.asarray(RNG.uniform(0.3, 0.7, SHAPE), jnp.float32)
MODEL = Linear(jnp.asarray(WEIGHTS), jnp.asarray(BIAS))
LABELS = MODEL(IMAGES).argmax(-1)
BALL = ThreatModel("additive", "linf", 0.1)


def predict(images):
    """Nothing of JAX: it would not take a tracer."""
    assert type(images) is np.ndarray
    return np.einsum("bhwc,hwck->bk", images, WEIGHTS.reshape(4, 4, 1, CLASSES)).astype(np.float64)


@pytest.mark.parametrize(
    "attack",
    [
        partial(square, queries=30), partial(random_search, samples=5), partial(nes, steps=3, samples=4),
        partial(spsa, steps=3, samples=4), gaussian_noise, uniform_noise, partial(pointwise, draws=1, levels=3),
        partial(grid, points=(3, 3, 3)),
    ],
)  # fmt: skip
def test_attacks_without_gradients_take_a_python_function(attack):
    over_affine = getattr(attack, "func", None) is grid
    threat = ThreatModel("affine", "linf", (30.0, 1.0, 1.0)) if over_affine else BALL
    run = jax.jit(lambda model, x, y: attack(model, x, y, threat, key=KEY))
    result, expected = run(black_box(predict, CLASSES), IMAGES, LABELS), run(MODEL, IMAGES, LABELS)
    np.testing.assert_array_equal(result.success, expected.success)
    np.testing.assert_allclose(result.images, expected.images, atol=1e-5)
    np.testing.assert_array_equal(result.success, predict(np.asarray(result.images)).argmax(-1) != LABELS)


def test_a_black_box_says_that_it_has_no_gradient_and_which_shape_it_expects():
    model = black_box(predict, CLASSES)
    for run in (pgd, jax.jit(partial(pgd, steps=2))):
        with pytest.raises(ValueError, match="black box has no gradient.*square.*bpda"):
            run(model, IMAGES, LABELS, BALL, key=KEY)
    with pytest.raises(Exception, match=r"for 12 images the function returned \(12, 3\)"):
        black_box(predict, CLASSES + 1)(IMAGES)


def test_a_black_box_is_measured():
    attacks = {"square": Attack(square, BALL, {"queries": 30})}
    batches = [{"image": IMAGES[:8], "label": LABELS[:8]}, {"image": IMAGES[8:], "label": LABELS[8:]}]
    boxed, plain = (
        summarise(robustness(model, batches, attacks, key=KEY)) for model in (black_box(predict, CLASSES), MODEL)
    )
    assert boxed["clean"] == plain["clean"]
    assert 0 < boxed["worst_case"]["accuracy"] == plain["worst_case"]["accuracy"] < 1


def test_a_black_box_under_vmap():
    apart = jax.vmap(lambda x: black_box(predict, CLASSES)(x[None])[0])(IMAGES)
    np.testing.assert_allclose(apart, MODEL(IMAGES), atol=1e-5)


def quantise(images):
    return jnp.round(images * 7) / 7


def test_bpda_has_the_values_of_one_and_the_gradient_of_the_other():
    step = bpda(quantise, jnp.square)
    np.testing.assert_array_equal(step(IMAGES), quantise(IMAGES))
    np.testing.assert_allclose(jax.grad(lambda x: step(x).sum())(IMAGES), 2 * IMAGES, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: bpda(quantise)(x).sum())(IMAGES), 1)
    with pytest.raises(ValueError, match=r"\(12, 4, 4, 1\).*\(12, 16\)"):
        jax.grad(lambda x: bpda(quantise, lambda x: x.reshape(12, 16))(x).sum())(IMAGES)


def test_bpda_breaks_what_quantisation_hides():
    run = jax.jit(lambda step, x, y: pgd(lambda z: MODEL(step(z)), x, y, BALL, key=KEY, steps=10, random_start=False))
    labels = MODEL(quantise(IMAGES)).argmax(-1)
    hidden = run(jax.tree_util.Partial(quantise), IMAGES, labels)
    found = run(bpda(quantise), IMAGES, labels)
    assert not hidden.success.any() and found.success.mean() > 0.5
    np.testing.assert_array_equal(found.success, MODEL(quantise(found.images)).argmax(-1) != labels)


def test_a_whole_model_can_lend_its_gradient_to_a_black_box():
    # As an argument of a jitted function; of the lender's weights too, which are traced there.
    run = jax.jit(lambda model, x, y: pgd(model, x, y, BALL, key=KEY, steps=5))
    lent = run(bpda(black_box(predict, CLASSES), MODEL), IMAGES, LABELS)
    own = run(MODEL, IMAGES, LABELS)
    np.testing.assert_array_equal(lent.success, own.success)
    np.testing.assert_allclose(lent.images, own.images, atol=1e-5)


def noisy(images, key):
    return 3 * MODEL(images) + jax.random.normal(key, (len(images), CLASSES))


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_expectation_is_the_mean_over_its_draws(mean):
    model = expectation(noisy, KEY, draws=5, mean=mean)
    draws = np.stack([noisy(IMAGES[:1], k)[0] for k in jax.random.split(KEY, 5)])  # all images share them
    logits = 3 * np.asarray(MODEL(IMAGES)) + (draws - 3 * np.asarray(MODEL(IMAGES[:1])))[:, None]
    if mean == "logits":
        np.testing.assert_allclose(model(IMAGES), logits.mean(0), atol=1e-4)
    else:
        np.testing.assert_allclose(jnp.exp(model(IMAGES)), jax.nn.softmax(logits).mean(0), atol=1e-5)
    np.testing.assert_array_equal(model(IMAGES), model(IMAGES))
    np.testing.assert_allclose(model(IMAGES[3:4])[0], model(IMAGES)[3], atol=1e-5)
    keys = jax.random.split(KEY, len(IMAGES))
    apart = [expectation(noisy, k, draws=5, mean=mean)(x[None])[0] for k, x in zip(keys, IMAGES, strict=True)]
    np.testing.assert_allclose(expectation(noisy, keys, draws=5, mean=mean)(IMAGES), apart, atol=1e-4)


def test_expectation_has_the_mean_gradient():
    def loss(model, x):
        return losses.margin(model(x), LABELS).sum()

    slope = jax.jit(jax.grad(loss, argnums=1))(expectation(noisy, KEY, draws=500, mean="logits"), IMAGES)
    np.testing.assert_allclose(slope, 3 * jax.grad(loss, argnums=1)(MODEL, IMAGES), atol=1e-4)


def test_errors_of_expectation():
    with pytest.raises(ValueError, match="median.*logits.*probabilities"):
        expectation(noisy, KEY, mean="median")
    with pytest.raises(ValueError, match="draws=0"):
        expectation(noisy, KEY, draws=0)
