from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from robust_jax import losses
from robust_jax.files import plain

pytestmark = pytest.mark.usefixtures("quick_compile")


def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(3 * rng.normal(size=(16, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 16))


def others(logits, labels):
    """Per example the true logit and the other ones, in float64."""
    z = np.asarray(logits, np.float64)
    return [(row[y], np.delete(row, y)) for row, y in zip(z, np.asarray(labels), strict=True)]


def test_cross_entropy():
    logits, labels = batch()
    expected = -log_softmax(np.asarray(logits, np.float64), -1)[np.arange(16), labels]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)
    assert np.isfinite(losses.cross_entropy(logits * 1e30, labels)).all()


def test_margin_and_its_sign():
    logits, labels = batch()
    expected = [other.max() - own for own, other in others(logits, labels)]
    np.testing.assert_allclose(losses.margin(logits, labels), expected, rtol=1e-5)
    wrong = losses.misclassified(logits, labels)
    np.testing.assert_array_equal(losses.margin(logits, labels) > 0, wrong)
    assert 0 < wrong.sum() < 16
    gradient = jax.grad(lambda z: losses.margin(z, labels).sum())(logits)
    np.testing.assert_array_equal(gradient.sum(-1), 0)
    np.testing.assert_array_equal(gradient[np.arange(16), labels], -1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_class(bad):
    logits = jnp.asarray([[bad, 0.0, 1.0], [0.0, bad, 1.0], [0.0, 3.0, 1.0]])
    np.testing.assert_array_equal(losses.predicted(logits), [-1, -1, 1])
    for label in range(3):  # wrong whatever the label, and no target is reached
        np.testing.assert_array_equal(losses.misclassified(logits, jnp.full(3, label)), [True, True, label != 1])


def test_a_loss_of_ones_own_is_one_number_per_example():
    logits, labels = batch()
    square = losses.get(lambda z, y: jnp.square(losses.margin(z, y)))
    np.testing.assert_array_equal(square(logits, labels), jnp.square(losses.margin(logits, labels)))
    assert losses.get("dlr") is losses.get(losses.dlr) is losses.dlr
    for wrong in (
        lambda z, y: losses.margin(z, y).mean(), lambda z, y: z, lambda z, y: (z[:, 0], y), lambda z, y: None,
        lambda z, y: y,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"loss must return one float per example, \(16,\)"):
            losses.get(wrong)(logits, labels)


def test_dlr_and_its_invariances():
    logits, labels = batch()
    ranked = -np.sort(-np.asarray(logits, np.float64), -1)
    expected = losses.margin(logits, labels) / (ranked[:, 0] - ranked[:, 2])
    np.testing.assert_allclose(losses.dlr(logits, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.dlr(7 * logits + 3, labels), expected, rtol=1e-3, atol=1e-5)
    value, gradient = jax.value_and_grad(lambda z: losses.dlr(z, labels).sum())(jnp.ones((16, 5)))
    assert value == 0 and np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="3 classes"):
        losses.dlr(logits[:, :2], labels)


def test_kl_divergence():
    logits, _ = batch()
    reference = logits[::-1]
    p, q = (log_softmax(np.asarray(z, np.float64), -1) for z in (reference, logits))
    np.testing.assert_allclose(losses.kl_divergence(logits, reference), (np.exp(p) * (p - q)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(losses.kl_divergence(logits, logits), 0, atol=1e-6)
    extreme = jnp.array([[0.0, 200.0, -200.0]])
    gradient = jax.grad(lambda z: losses.kl_divergence(z, extreme).sum())(extreme * 0)
    np.testing.assert_allclose(gradient, [[1 / 3, -2 / 3, 1 / 3]], rtol=1e-5)


def test_the_configurable_losses_are_these():
    assert set(losses.LOSSES) >= {"cross_entropy", "margin", "dlr"}
    logits, labels = batch()
    for loss in losses.LOSSES.values():
        assert loss(logits, labels).shape == (16,)


def test_get_takes_names_and_functions():
    assert losses.get("margin") is losses.margin and losses.get(losses.dlr) is losses.dlr
    with pytest.raises(ValueError, match="loss='hinge'.*cross_entropy.*dlr.*margin.*'module:name' of your own"):
        losses.get("hinge")
    own = losses.get("optax:softmax_cross_entropy_with_integer_labels")  # checked as a function of one's own is
    logits, labels = jnp.eye(3), jnp.arange(3)
    np.testing.assert_allclose(own(logits, labels), losses.cross_entropy(logits, labels), rtol=1e-6)
    assert losses.get(own) is own and plain(own) == "softmax_cross_entropy_with_integer_labels"


def test_cross_entropy_of_soft_labels_is_the_mixture_of_those_of_classes():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    one, other, share = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 1, 0, 2, 3]), jnp.array([0.0, 0.3, 0.5, 0.9, 1.0])
    soft = share[:, None] * jnp.eye(4)[one] + (1 - share[:, None]) * jnp.eye(4)[other]
    expected = share * losses.cross_entropy(logits, one) + (1 - share) * losses.cross_entropy(logits, other)
    np.testing.assert_allclose(losses.cross_entropy(logits, soft), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.cross_entropy)(logits, soft), expected, rtol=1e-5)
    for wrong, message in ((2 * soft, "a sum is off by 1"), (soft - 0.1, "the least is -0.1"), (soft[:, :3], "B, K")):
        with pytest.raises(ValueError, match=message):
            losses.cross_entropy(logits, wrong)
