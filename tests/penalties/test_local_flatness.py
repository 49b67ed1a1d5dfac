"""The roughest point: against random search, against its own effort, and where there is nothing to search."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.penalties.local_flatness import roughest
from robust_jax.spaces import threat_models

pytestmark = pytest.mark.usefixtures("quick_compile")

B, H, W = 3, 4, 4
THREATS = [
    rj.ThreatModel("additive", "linf", 0.1),
    rj.ThreatModel("additive", "l2", 0.4),
    rj.ThreatModel("flow", "linf", 0.4),
    rj.ThreatModel("affine", "linf", (10.0, 0.5, 0.5)),
]


def loss_fn(images, seed=0):
    """Cross-entropy of a two-layer network, smooth so that its gradient has a slope."""
    rng = np.random.default_rng(seed)
    w, v = jnp.asarray(rng.normal(size=(H * W, 8)), jnp.float32), jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    logits = jnp.tanh(images.reshape(len(images), -1) @ w) @ v
    return rj.losses.cross_entropy(logits, jnp.arange(len(images)) % B)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, size=(B, H, W, 1)), jnp.float32)


def norms_at(images, threat):
    """The gradient norm, in the norm dual to the threat model's, at each image, `[B]`."""
    return rj.gradient_norm(loss_fn, images, threat.perturbation, rj.dual(threat.norm), 1)


@pytest.mark.parametrize("threat", [THREATS[0], THREATS[2]], ids=["additive", "flow"])
def test_it_finds_more_than_ten_thousand_random_points_do_and_more_with_more_steps(images, threat):
    find = partial(rj.local_flatness, loss_fn, threat=threat)
    few, many = (
        jax.jit(partial(find, steps=steps, restarts=restarts))(images, key=jax.random.key(0))
        for steps, restarts in ((2, 1), (20, 10))
    )

    @jax.jit
    def largest(best, key):
        keys = jax.random.split(key, 100 * B)
        many_images = jnp.tile(images, (100, 1, 1, 1))
        moved = jnp.clip(
            threat.perturbation.apply(many_images, threat_models.random_delta(threat, keys, many_images)), 0, 1
        )
        return jnp.maximum(best, norms_at(moved, threat).reshape(100, B).max(0)), None

    random_best, _ = jax.lax.scan(largest, jnp.zeros(B), jax.random.split(jax.random.key(1), 100))
    assert (many >= random_best).all()
    assert norms_at(images, threat).sum() < few.sum() < many.sum()


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: f"{t.perturbation.name}-{t.norm}")
def test_the_point_is_in_the_ball_and_the_value_is_the_norm_there(images, threat):
    found = jax.jit(lambda x: roughest(loss_fn, x, threat, key=jax.random.key(0), steps=5))(images)
    assert float(threat_models.size(threat, found.delta).max()) <= 1.0001
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    np.testing.assert_allclose(found.value, norms_at(found.images, threat), rtol=1e-5)


def test_radius_0_is_the_l1_penalty_exactly(images):
    flat = rj.local_flatness(loss_fn, images, rj.ThreatModel("additive", "linf", 0.0), key=jax.random.key(0), steps=3)
    np.testing.assert_array_equal(flat, rj.gradient_norm(loss_fn, images, "additive", "l1", 1))


def test_it_is_differentiable_in_parameters_at_a_constant_point(images):
    threat = THREATS[0]

    def scaled_loss(scale):
        return lambda x: loss_fn(x) * scale

    penalty = lambda scale: rj.local_flatness(scaled_loss(scale), images, threat, key=jax.random.key(0), steps=5).sum()  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(penalty))(1.5)
    assert float(slope) == pytest.approx(float(value) / 1.5, rel=1e-5)  # the point does not depend on the scale


def test_a_composition_needs_one_norm(images):
    threat = rj.ThreatModel(("flow", "additive"), ("linf", "l2"), (0.3, 0.1))
    with pytest.raises(ValueError, match="norms differ"):
        rj.local_flatness(loss_fn, images, threat, key=jax.random.key(0))
    found = rj.local_flatness(loss_fn, images, threat, norm="l2", key=jax.random.key(0), steps=1)
    assert (found > 0).all()


def test_the_search_maximises_the_scaled_norm(images):
    threat, scale = rj.ThreatModel("affine", "linf", (10.0, 1.0, 1.0)), jnp.asarray([0.0, 1.0, 0.0])
    options = dict(key=jax.random.key(0), steps=20, restarts=3)
    found = rj.local_flatness(loss_fn, images, threat, scale=scale, **options)
    elsewhere = roughest(loss_fn, images, threat, **options).images  # of the whole gradient
    there = rj.gradient_norm(loss_fn, elsewhere, "affine", rj.dual("linf"), 1, scale=scale)
    assert (found >= there - 1e-6).all() and float(found.sum()) > 1.01 * float(there.sum())
