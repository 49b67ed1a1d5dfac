"""Attacks in float16, where constants that keep float32 finite are 0: a NaN is neither an image nor a success."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import KEY, sample
from robust_jax.attacks import ATTACKS, adef, carlini_wagner, fmn, pgd, sigma_zero
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear

pytestmark = pytest.mark.usefixtures("quick_compile")

L2, FLOW = ThreatModel("additive", "l2", 2.0), ThreatModel("flow", "linf", 1.0)
LINF = ThreatModel("additive", "linf", 0.3)
WEIGHTS = np.random.default_rng(0).normal(size=(32, 3))


@pytest.mark.parametrize(
    "attack, threat",
    [
        (partial(carlini_wagner, steps=5, binary_search_steps=2), L2),
        (partial(fmn, steps=5), LINF),
        (partial(sigma_zero, steps=20), LINF),
        (partial(pgd, steps=5, optimizer="adam"), LINF),
        (partial(pgd, steps=3, optimizer="adam", keep="last"), LINF),
        (partial(pgd, steps=3, momentum=0.9, keep="last"), FLOW),
    ],
)
def test_half_precision_stays_finite_and_succeeds(attack, threat):
    attack, images = jax.jit(partial(attack, key=KEY)), sample()
    found = {}
    for dtype in (jnp.float32, jnp.float16):
        for scale in (1.0, 1e-4, 0.0):  # at 1e-4 the squares of gradients are 0 in float16, too
            model = Linear(jnp.asarray(scale * WEIGHTS, dtype), jnp.zeros(3, dtype))
            labels = Linear(jnp.asarray(WEIGHTS), jnp.zeros(3))(images).argmax(-1)
            result = attack(model, images.astype(dtype), labels, threat)
            assert result.images.dtype == result.delta.dtype == dtype
            assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
            np.testing.assert_array_equal(result.success, model(result.images).argmax(-1) != labels)
            found[dtype, scale] = int(result.success.sum())
    assert found[jnp.float16, 1.0] > 0 and found[jnp.float32, 1.0] > 0


def test_what_overflows_is_no_success():
    images, model = sample(), Linear(jnp.asarray(2e3 * WEIGHTS, jnp.float16), jnp.zeros(3, jnp.float16))
    labels = model(images.astype(jnp.float16)).argmax(-1)
    result = adef(model, images.astype(jnp.float16), labels, ThreatModel("flow", "linf", 4.0), key=KEY)
    assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
    np.testing.assert_array_equal(result.success, model(result.images).argmax(-1) != labels)


BALLS = {
    "adef": FLOW, "stadv": FLOW, "carlini_wagner": L2, "ddn": L2, "ead": ThreatModel("additive", "l1", 4.0),
    "grid": ThreatModel("affine", "linf", (10.0, 1.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize(
    "of_images, of_logits", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")]
)
def test_images_and_logits_of_different_precision(kind, of_images, of_logits):
    model = jax.tree_util.Partial(
        lambda w, x: x.reshape(len(x), -1).astype(of_logits) @ w, jnp.ones((32, 3), of_logits)
    )
    images, threat = jax.ShapeDtypeStruct((2, 4, 4, 2), of_images), BALLS.get(kind, LINF)
    labels = jax.ShapeDtypeStruct((2,), "int32")
    found = jax.eval_shape(partial(ATTACKS[kind], key=KEY), model, images, labels, threat)
    assert found.images.dtype == of_images and {d.dtype.name for d in jax.tree.leaves(found.delta)} == {of_images}
