from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simple_models import Net

from robust_jax import parallel
from robust_jax.attacks import deepfool, expectation, jsma, square, survivors
from robust_jax.attacks.survivors import chunk_size, while_active
from robust_jax.models import bind
from robust_jax.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
LIFES = np.random.default_rng(0).permutation(np.r_[np.zeros(10), np.full(30, 1), np.full(40, 4), np.full(20, 9)])


@pytest.mark.parametrize("steps", [1, 4, 100])
@pytest.mark.parametrize("devices, chunk", [(1, 25), (1, 30), (1, 100), (5, 25)])
def test_each_example_stops_for_itself_and_those_left_are_computed_alone(steps, devices, chunk, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    computed = []

    def body(step, life, count):
        jax.debug.callback(lambda step: computed.append((int(step), len(count))), step, ordered=True)
        return count + 1, count + 1 < life

    life = jnp.asarray(LIFES, int)
    run = jax.jit(lambda: while_active(body, life, jnp.zeros(100, int), life > 0, steps, chunk))
    np.testing.assert_array_equal(run(), np.minimum(LIFES, steps))
    jax.effects_barrier()
    # 90 go on at first, 60 after a step, 20 after four; of these one of five devices has 6.
    left = {100: (1, 1, 1), 25: (4, 3, 1), 30: (3, 2, 1)}[chunk] if devices == 1 else (4, 3, 2)
    expected = [left[0], *3 * left[1:2], *5 * left[2:]][:steps]
    assert computed == [(step, chunk) for step, chunks in enumerate(expected) for _ in range(chunks)]


def test_each_device_goes_on_with_its_own():
    """Four devices with 32 rows each, computed 16 at a time, and nothing is gathered."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__], env=environment, check=True)


def test_nothing_is_computed_where_none_is_active():
    computed = []

    def body(step, fixed, state):
        jax.debug.callback(computed.append, step)
        return state + 1, state < 0

    assert (while_active(body, jnp.ones(8), jnp.ones(8), jnp.zeros(8, bool), 5, 4) == 1).all()
    jax.effects_barrier()
    assert not computed


@pytest.mark.parametrize("devices, backend, expected", [(1, "cpu", 32), (2, "cpu", 64), (1, "gpu", 50), (2, "gpu", 50)])
def test_chunks(devices, backend, expected, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    images = jnp.zeros((100, 4, 4, 1))
    assert chunk_size(lambda x: x.sum((1, 2)), images) == expected
    own_draws = expectation(lambda x, key: x.sum((1, 2)), jax.random.split(KEY, 100), draws=2)
    assert chunk_size(own_draws, images) == 100


def test_small_batches_go_together():
    assert chunk_size(lambda x: x.sum((1, 2)), jnp.zeros((7, 4, 4, 1))) == 7


@pytest.mark.parametrize(
    "attack, norm, radius",
    [(partial(square, queries=60), "linf", 0.15), (deepfool, "l2", 0.7), (partial(jsma, max_pixels=20), "linf", 0.5)],
)
def test_attacks_find_the_same_in_chunks(attack, norm, radius, monkeypatch):
    model = bind(Net(), Net().init(KEY, jnp.zeros((1, 4, 4, 2))))
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(80, 4, 4, 2)), jnp.float32)
    labels, threat = model(images).argmax(-1), ThreatModel("additive", norm, radius)
    monkeypatch.setattr(survivors, "ON_CPU", 12)
    chunks = jax.jit(attack)(model, images, labels, threat, key=KEY)
    monkeypatch.setattr(survivors, "ON_CPU", 80)
    whole = jax.jit(lambda *args: attack(*args, key=KEY))(model, images, labels, threat)
    assert 20 < whole.success.sum() < 80
    np.testing.assert_array_equal(chunks.success, whole.success)
    # Matrix products of other sizes round otherwise, a step adds up to 2e-7 of δ, and there are up to 60.
    np.testing.assert_allclose(chunks.delta, whole.delta, atol=1e-5)


if __name__ == "__main__":
    rows = parallel.spread({"x": np.ones((128, 4), np.float32), "active": np.arange(128) % 3 > 0})
    chunked = jax.jit(lambda x, active: while_active(lambda i, _, x: (jnp.tanh(x), x[:, 0] > 0.1), x, x, active, 9, 64))
    program = chunked.lower(rows["x"], rows["active"]).compile().as_text()
    assert {int(n) for n in re.findall(r"f32\[(\d+),4\]\S* tanh\(", program)} == {16}
    assert "all-gather(" not in program
