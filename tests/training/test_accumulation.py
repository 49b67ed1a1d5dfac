"""Micro-batches: the results of the whole batch, in less memory, also backwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from robust_jax import parallel
from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import make_objective
from robust_jax.objectives.terms import TERMS
from robust_jax.training import accumulation
from robust_jax.training.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compile")


class Wide(nn.Module):
    """A layer whose activations are far larger than weights and images."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.tanh(nn.Dense(64)(images))  # per pixel
        return nn.Dense(10)(x.mean((1, 2)))


class Dropped(nn.Module):
    """A linear model of half of the pixels."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1)))


def compiled_step(model, accumulate, points, terms=None, white=None):
    """A step of 64 images, compiled, and what it takes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (64, 12, 12, 1), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(64, dtype=np.int32) % 10, "id": np.arange(64, dtype=np.int32)}
    if white is not None:
        images[white] = 255
    terms = terms or {f"ce_{name}": dict(kind="cross_entropy", at=name) for name in points or ("clean",)}
    objective = make_objective(points, terms)
    optimizer = optax.sgd(0.1)
    memory = objective.remember(lambda n: (images[:n] / np.float32(255), batch["label"][:n]), 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 1)))
    state = parallel.replicate(jax.device_get(init_state(variables, optimizer, 0.0, memory)))
    step = make_train_step(model, objective, optimizer, augmentation={}, accumulate=accumulate)
    given = state, parallel.shard(batch), jax.random.key(1)
    return parallel.pmap(step).lower(*given).compile(), given


BALL = dict(perturbation="additive", radius=0.1)
POINTS = {
    "clean": {},
    "attacked": {"a": dict(kind="attack", steps=2, **BALL)},
    "remembered": {"u": dict(kind="universal", step_size=0.05, **BALL)},
}


@pytest.mark.parametrize("points", POINTS)
def test_an_eighth_of_a_batch_at_a_time_needs_far_less_memory(points):
    steps = (compiled_step(Wide(), count, POINTS[points])[0] for count in (1, 8))
    whole, parts = (step.memory_analysis().temp_size_in_bytes for step in steps)
    assert parts < 0.35 * whole, (parts, whole)


def stepped(*given, **options):
    step, arguments = compiled_step(*given, **options)
    return parallel.first(step(*arguments)[0])


def test_dropout_draws_another_mask_for_each_micro_batch():
    one, two = (stepped(Dropped(), count, {}).params["Dense_0"]["kernel"] for count in (1, 2))
    # The micro-batches are the first and the second half of the batch, whose masks are not those of the whole one.
    assert np.abs(one - two).max() > 1e-4


def test_one_failing_micro_batch_skips_the_update(monkeypatch):
    def infinite(point):
        return jnp.where(point.images.min((1, 2, 3)) == 1, jnp.inf, 0) + point.loss

    monkeypatch.setitem(TERMS, "infinite", infinite)
    for white, failed in ((None, -1), (40, 0)):
        step, given = compiled_step(Dropped(), 4, {}, terms={"bad": dict(kind="infinite")}, white=white)
        before, after = parallel.first(given[0]), parallel.first(step(*given)[0])
        assert int(after.failed_step) == failed
        same = jax.tree.map(np.array_equal, before.params, after.params)
        assert jax.tree.all(same) == (failed == 0), same


def test_a_model_in_parts_has_the_same_values_and_gradients_and_other_sizes_pass():
    def logits(x):
        return jnp.tanh(x.reshape(len(x), -1)[:, :3]) ** 2

    whole = Model(lambda x: (logits(x), {"mean": x.mean()}), logits)
    parts = accumulation.in_parts(whole, 3)
    for size in (6, 4):
        images = jax.random.uniform(jax.random.key(0), (size, 2, 2, 1))
        for one, two in ((whole.eval, parts.eval), (lambda x: whole.train(x)[0], lambda x: parts.train(x)[0])):
            # tanh in vectors of another width may differ by 2 units in the last place, its square by 4: 5e-7.
            np.testing.assert_allclose(one(images), two(images), rtol=1e-6)
            gradient = [jax.grad(lambda x, f=f: f(x).sum())(images) for f in (one, two)]
            np.testing.assert_allclose(*gradient, rtol=1e-6)
        np.testing.assert_allclose(parts.train(images)[1]["mean"], images.mean(), rtol=1e-6)


def test_counts_among_statistics_stay_whole():
    def found(i, part):
        return {"seen": jnp.int32(7), "bytes": jnp.uint8(200), "mean": part.mean()}

    mean = accumulation.mean(found, jnp.arange(6.0), 3)
    assert mean["seen"].dtype == jnp.int32 and int(mean["seen"]) == 7 and float(mean["mean"]) == 2.5
    assert mean["bytes"].dtype == jnp.uint8 and int(mean["bytes"]) == 200  # their sum overflows
    whole = Model(lambda x: (x.reshape(len(x), -1), {"bytes": jnp.uint8(200)}), lambda x: x)
    assert accumulation.in_parts(whole, 2).train(jnp.zeros((4, 2)))[1]["bytes"] == jnp.uint8(200)
