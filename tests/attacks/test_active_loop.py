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

from robust_jax import parallel
from robust_jax.attacks import (
    apgd,
    apgd_targeted,
    deepfool,
    expectation,
    fab_targeted,
    jsma,
    nes,
    pgd,
    spsa,
    square,
)
from robust_jax.attacks.active_loop import while_active
from robust_jax.models import bind
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, initial

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
LIFES = np.random.default_rng(0).permutation(np.r_[np.zeros(10), np.full(30, 1), np.full(40, 4), np.full(20, 9)])


@pytest.mark.parametrize("steps", [1, 4, 100])
@pytest.mark.parametrize("devices, chunk", [(1, 25), (1, 30), (1, 100), (5, 25)])
def test_each_example_stops_at_its_own_step_and_only_active_ones_are_computed(steps, devices, chunk, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(parallel.devices, "CHUNK_ON_CPU", chunk // devices)
    computed = []

    def body(done, life, count):
        jax.debug.callback(lambda: computed.append(len(count)))
        return jnp.where(done == count, count + 1, -100), count + 1 < life

    life = jnp.asarray(LIFES, int)
    run = jax.jit(lambda: while_active(body, life, jnp.zeros(100, int), life > 0, steps))
    np.testing.assert_array_equal(run(), np.minimum(LIFES, steps))
    jax.effects_barrier()
    work = np.minimum(LIFES, steps).reshape(devices, -1)
    # No fewer chunks can do it; a last one that is not filled costs a little more.
    least = max(work.max(), *(-(-work.sum(1) // (chunk // devices))))
    assert set(computed) == {chunk} and least <= len(computed) <= least + 2


def test_each_device_goes_on_with_its_own():
    """Four devices with 32 rows each, computed 16 at a time, and nothing is gathered."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__], env=environment, check=True)


def test_nothing_is_computed_where_none_is_active(monkeypatch):
    monkeypatch.setattr(parallel.devices, "CHUNK_ON_CPU", 4)
    computed = []

    def body(step, fixed, state):
        jax.debug.callback(computed.append, step)
        return state + 1, state < 0

    assert (while_active(body, jnp.ones(8), jnp.ones(8), jnp.zeros(8, bool), 5) == 1).all()
    assert (while_active(body, jnp.ones(8), jnp.ones(8), jnp.ones(8, bool), 0) == 1).all()
    jax.effects_barrier()
    assert not computed


def sizes(body, count):
    """How many examples a body is given at a time."""
    seen = []

    def watched(step, fixed, state):
        jax.debug.callback(lambda: seen.append(len(state)))
        return body(step, fixed, state)

    while_active(watched, jnp.ones((count, 2)), jnp.ones(count), jnp.ones(count, bool), 1)
    jax.effects_barrier()
    return seen


@pytest.mark.parametrize("backend, count, expected", [("cpu", 100, 7 * [16]), ("cpu", 7, [7]), ("gpu", 300, 2 * [256])])
def test_examples_at_a_time(backend, count, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert sizes(lambda _, fixed, state: (state + fixed.sum(1), state > 0), count) == expected


OWN = expectation(lambda x, key: x + jax.random.normal(key), jax.random.split(KEY, 100), draws=2)
WHOLE = {
    "draws of each image": lambda _, fixed, state: (state + OWN(fixed).sum(1), state > 0),
    "numbers of each image": lambda _, fixed, state: (state * jnp.arange(100), state > 0),
    "a number of images": lambda _, fixed, state: (state + fixed.reshape(100, -1).sum(1), state > 0),
    "broadcast": lambda _, fixed, state: (jnp.broadcast_to(state[:1], 100), state > 0),
}


@pytest.mark.parametrize("body", WHOLE)
def test_a_body_that_accepts_only_the_whole_batch_gets_it(body):
    assert sizes(WHOLE[body], 100) == [100]


def test_what_is_wrong_is_raised():
    with pytest.raises(ZeroDivisionError):
        while_active(lambda *_: 1 // 0, jnp.ones(100), jnp.ones(100), jnp.ones(100, bool), 1)


ADDITIVE = partial(ThreatModel, "additive")
BOTH = ThreatModel(("flow", "additive"), ("linf", "linf"), (0.2, 0.1))
CASES = {
    "square": (partial(square, queries=60), ADDITIVE("linf", 0.15)),
    "composed": (partial(square, queries=60), BOTH),
    "deepfool": (deepfool, ADDITIVE("l2", 0.7)),
    "jsma": (partial(jsma, max_pixels=20), ADDITIVE("linf", 0.5)),
    "pgd": (partial(pgd, steps=4, restarts=2, early_stop=True), ADDITIVE("linf", 0.1)),
    "adam": (partial(pgd, steps=4, optimizer="adam", early_stop=True), ADDITIVE("linf", 0.1)),
    "nes": (partial(nes, steps=4, samples=9, early_stop=True), ADDITIVE("linf", 0.15)),
    "apgd": (partial(apgd, steps=4, restarts=3), ADDITIVE("linf", 0.1)),
    "apgd l1": (partial(apgd, steps=4, early_stop=True), ADDITIVE("l1", 2.0)),
    "apgd_targeted": (partial(apgd_targeted, steps=4, candidates=2), ADDITIVE("linf", 0.1)),
    "fab_targeted": (partial(fab_targeted, steps=4, candidates=2), ADDITIVE("l2", 0.7)),
}


def examples():
    """A model, 80 images, and the labels that it gives them."""
    model = bind(Net(), initial((1, 4, 4, 2)))
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(80, 4, 4, 2)), jnp.float32)
    return model, images, model(images).argmax(-1)


@pytest.mark.parametrize("case", CASES)
def test_attacks_find_the_same_in_chunks(case, monkeypatch):
    attack, threat = CASES[case]
    model, images, labels = examples()
    monkeypatch.setattr(parallel.devices, "CHUNK_ON_CPU", 16)
    chunks = jax.jit(attack)(model, images, labels, threat, key=KEY)
    monkeypatch.setattr(parallel.devices, "CHUNK_ON_CPU", 80)
    whole = jax.jit(lambda *args: attack(*args, key=KEY))(model, images, labels, threat)
    assert 20 < whole.success.sum() < 80
    np.testing.assert_array_equal(chunks.success, whole.success)
    # Matrix products of other sizes round otherwise, a step adds up to 2e-7 of δ, and there are up to 60.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunks.delta, whole.delta)


STOPS = {
    "pgd": (partial(pgd, steps=8, restarts=3), ADDITIVE("l2", 0.6)),
    "flow": (partial(pgd, steps=8, momentum=0.5), ThreatModel("flow", "linf", 0.7)),
    "spsa": (partial(spsa, steps=8, samples=8), ADDITIVE("linf", 0.2)),
    "targeted": (partial(pgd, steps=8, targeted=True), ADDITIVE("linf", 0.2)),
    "apgd": (partial(apgd, steps=8), ADDITIVE("linf", 0.2)),
}


@pytest.mark.parametrize("case", STOPS)
def test_stopping_early_breaks_the_same_images_in_less_time(case, monkeypatch):
    attack, threat = STOPS[case]
    model, images, right = examples()
    # The first ten succeed as they are.
    labels = (right.at[10:] if case == "targeted" else right.at[:10]).add(1) % 3
    monkeypatch.setattr(parallel.devices, "CHUNK_ON_CPU", 8)
    seen = []

    def counted(images):
        jax.debug.callback(lambda: seen.append(len(images)))
        return model(images)

    def run(**options):
        seen.clear()
        found = jax.jit(lambda: attack(counted, images, labels, threat, key=KEY, **options))()
        jax.effects_barrier()
        return found, sum(seen)

    (whole, all_passes), (stopped, passes) = run(), run(early_stop=True)
    assert 20 < whole.success.sum() < 75 and passes < 0.9 * all_passes
    np.testing.assert_array_equal(stopped.success, whole.success)
    assert (stopped.success == ((model(stopped.images).argmax(-1) != labels) != (case == "targeted"))).all()
    assert not stopped.delta[:10].any()
    # Where nothing succeeds, nothing has changed but the rounding of other matrix products.
    left = ~np.asarray(whole.success)
    np.testing.assert_allclose(stopped.delta[left], whole.delta[left], atol=1e-5)


if __name__ == "__main__":
    rows = parallel.spread({"x": np.ones((128, 4), np.float32), "active": np.arange(128) % 3 > 0})
    parallel.devices.CHUNK_ON_CPU = 16
    chunked = jax.jit(
        lambda x, active: while_active(lambda i, _, x: (jnp.tanh(x), x[:, 0] > 0.1), x, x, active, 9)
    ).lower(rows["x"], rows["active"])
    program = chunked.compile()
    assert {int(n) for n in re.findall(r"f32\[(\d+),4\]\S* tanh\(", program.as_text())} == {16}
    assert "all-gather(" not in program.as_text()
    expected = np.ones((128, 4), np.float32)
    for _ in range(9):
        expected = np.where((np.arange(128) % 3 > 0)[:, None], np.tanh(expected), expected)
    np.testing.assert_allclose(program(rows["x"], rows["active"]), expected, rtol=1e-5)
