"""One step from one global batch, on 1 and on 8 (virtual) devices: the same parameters where examples are independent.

As a program, `python test_parallel.py OUT`, this file takes the steps on the devices there are and writes the results.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from robust_jax import parallel
from robust_jax.models import cpu_convolution, layers
from robust_jax.objectives.objective import make_objective
from robust_jax.training.step import init_state, make_train_step

CE = dict(kind="cross_entropy", label_smoothing=0.1)
FGR = dict(kind="gradient_norm", perturbation="flow", weight=0.5)
POINTS = {
    "warped": dict(kind="random", perturbation="flow", sigma=0.2),
    "bent": dict(kind="attack", perturbation="additive", radius=0.1, steps=2),
}


class Net(nn.Module):
    """A convolution, normalised if so asked, and a dense layer; smooth."""

    norm: bool = False
    axis: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.Conv3x3(4, use_bias=not self.norm, conv_general_dilated=cpu_convolution.conv_general_dilated)(images)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis)(x)
        return nn.Dense(3)(nn.tanh(x).reshape(len(x), -1))


CASES = {
    "independent": (
        Net(),
        POINTS,
        {"ce": CE | {"at": "warped"}, "fgr": FGR | {"at": "warped"}, "adv": CE | {"at": "bent"}},
    ),
    "synchronised": (Net(True, parallel.AXIS), {}, {"ce": CE, "fgr": FGR}),
    "synchronised_directional": (Net(True, parallel.AXIS), {}, {"ce": CE, "fgr": FGR | {"method": "directional"}}),
    "remembering": (
        Net(),
        {
            "all": dict(kind="universal", perturbation="flow", radius=0.3, step_size=0.1),
            "region": dict(kind="targeted_universal", perturbation="additive", radius=0.2, examples=4, epochs=2),
        },
        {"ce": CE | {"at": "all"}, "region": CE | {"at": "region"}},
    ),
    "unsynchronised": (Net(True), {}, {"ce": CE, "fgr": FGR}),
}
MIXING = dict(mixup=0.7, cutmix=0.8)
CASES |= {
    "accumulated": CASES["independent"],
    "remembering_accumulated": CASES["remembering"],
    "unsynchronised_accumulated": CASES["unsynchronised"],
    "mixed": (Net(), POINTS, {"ce": CE | {"at": "warped"}, "fgr": FGR, "adv": CE | {"at": "bent"}}),
}
ACCUMULATE = {"accumulated": 2, "remembering_accumulated": 2, "unsynchronised_accumulated": 8, "mixed": 2}
EIGHT_ONLY = {"synchronised_directional": "synchronised"}  # compared with that one
ONE_ONLY = {"accumulated", "remembering_accumulated", "unsynchronised_accumulated"}


def batch(count=16):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8),
        "label": rng.integers(0, 3, count, dtype=np.int32),
        "id": rng.permutation(1000)[:count].astype(np.int32),
    }


@cache
def initial(norm):
    # Without the axis, which there is inside the mapped step only.
    return jax.jit(Net(norm).init)(jax.random.key(1), jnp.zeros((1, 6, 6, 1)))


def prepared(case):
    """A step on all devices, and what it takes."""
    model, points, terms = CASES[case]
    optimizer = optax.sgd(0.5)
    objective, augmentation = make_objective(points, terms), dict(resize=0, padding=1, flip=True)
    memory = objective.remember(lambda n: (batch()["image"][:n] / np.float32(255), batch()["label"][:n]), 3)
    state = jax.device_get(init_state(initial(model.norm), optimizer, 0.0, memory))
    uphill = 0.05 if case.startswith("remembering") else 0.0
    augmentation |= MIXING if case == "mixed" else {}
    step = make_train_step(
        model, objective, optimizer, augmentation=augmentation, adversarial_weights=uphill,
        accumulate=ACCUMULATE.get(case, 1),
    )  # fmt: skip
    return parallel.pmap(step), parallel.replicate(state), parallel.shard(batch()), jax.random.key(3)


def take_step(case):
    """Parameters, statistics and metrics after a step, by name, and how many all-reduces there are in it."""
    step, *given = prepared(case)
    compiled = step.lower(*given).compile()
    state, metrics = compiled(*given)
    copies = [
        np.stack([s.data[0] for s in leaf.addressable_shards]) for leaf in jax.tree.leaves((state.params, state.memory))
    ]
    assert all((c == c[:1]).all() for c in copies)  # the replicas stay replicas
    result = parallel.first(
        {"params": state.params, "batch_stats": state.batch_stats, "memory": state.memory, "metrics": metrics}
    )
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(result)}
    return found, compiled.as_text().count(" all-reduce(")


def virtual_devices(count):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, quick_compile):
    out = tmp_path_factory.mktemp("parallel") / "eight.npz"
    other = subprocess.Popen([sys.executable, __file__, str(out)], env=virtual_devices(8))
    assert jax.local_device_count() == 1
    one = {case: take_step(case)[0] for case in CASES if case not in EIGHT_ONLY}
    assert other.wait(300) == 0
    with np.load(out) as arrays:
        assert arrays["devices"] == 8 and arrays["all_reduces"] == 1  # gradients, metrics and statistics together
        cases = [case for case in CASES if case not in ONE_ONLY]
        eight = {case: {k: arrays[f"{case}/{k}"] for k in one[EIGHT_ONLY.get(case, case)]} for case in cases}
    return one, eight


def distance(one, other):
    return max(np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one if np.abs(one[k]).max() > 0)


@pytest.mark.parametrize("case", ["independent", "synchronised", "remembering", "mixed"])
def test_eight_devices_make_the_step_of_one(results, case):
    one, eight = (r[case] for r in results)
    assert case == "remembering" or float(one["['metrics']['terms/fgr']"]) > 1e-3
    assert distance(one, eight) < 1e-5


def test_the_two_exact_methods_make_the_same_step(results):
    _, eight = results
    assert distance(eight["synchronised"], eight["synchronised_directional"]) < 1e-4


def test_unsynchronised_batch_norm_does_not(results):
    one, eight = (r["unsynchronised"] for r in results)
    assert distance(one, eight) > 1e-2
    # On one device there is nothing to synchronise.
    assert distance(results[0]["synchronised"], one) < 1e-6


@pytest.mark.parametrize("case", ["independent", "remembering"])
def test_micro_batches_make_the_step_of_the_batch(results, case):
    accumulated = {"independent": "accumulated", "remembering": "remembering_accumulated"}[case]
    assert 0 < distance(results[0][case], results[0][accumulated]) < 1e-5


def test_micro_batches_are_to_batch_norm_what_devices_are(results):
    one, eight = results
    assert distance(one["unsynchronised_accumulated"], eight["unsynchronised"]) < 1e-5
    assert distance(one["unsynchronised_accumulated"], one["unsynchronised"]) > 1e-2


def test_the_next_example_is_that_of_the_batch_of_all_devices():
    rows = np.arange(6.0).reshape(1, 6)
    np.testing.assert_array_equal(parallel.first(parallel.each(parallel.following)(rows)), [1, 2, 3, 4, 5, 0])


def test_batch_sizes_that_do_not_split(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.check_batch_size(16)
    parallel.check_batch_size(48, parts=3)
    with pytest.raises(ValueError, match="batch_size=16 .*8 devices and there into accumulate=3.*multiple of 24"):
        parallel.check_batch_size(16, parts=3)
    for size in (12, 0, -8):
        with pytest.raises(ValueError, match=f"batch_size={size} does not split evenly over 8 devices.*multiple of 8"):
            parallel.check_batch_size(size)


def test_replicate_first_shard():
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2)}
    copies = jax.pmap(lambda x: x)(parallel.replicate(tree))
    jax.tree.map(np.testing.assert_array_equal, parallel.first(copies), tree)
    assert parallel.shard({"image": np.zeros((4, 8, 8, 1))})["image"].shape == (1, 4, 8, 8, 1)


def test_a_loop_is_compiled_once():
    traced = []

    def step(state, batch, key):
        traced.append(state)
        return jax.tree.map(lambda x: x + batch["x"].mean(), state), {"metric": batch["x"].sum()}

    loop, state, seen = parallel.loop(step), parallel.replicate({"a": np.zeros(3), "b": np.float32(2)}), []
    for _ in range(3):
        state, _ = loop(state, parallel.resident({"x": np.ones((2, 4, 3), np.float32)}), jax.random.key(0), 0, 2)
        seen.append(len(traced))
    assert seen[0] > 0 and seen[-1] == seen[0]


def test_a_loop_of_steps_is_the_steps_one_by_one_however_they_are_cut():
    key = jax.random.key(1)

    def step(state, batch, key):
        state = jnp.cos(3 * state) + batch["x"].mean() + jax.random.uniform(key)
        return state, {"metric": jnp.sin(state)}

    batches = [{"x": np.random.default_rng(i).normal(size=(4, 3)).astype("float32")} for i in range(5)]
    loop, chunk = parallel.loop(step), parallel.resident({"x": np.stack([b["x"] for b in batches])})
    ends = []
    for counts in ((5,), (1, 3, 1), (2, 3)):
        state, at, metrics = parallel.replicate(np.float32(0.5)), 0, []
        for count in counts:
            state, found = loop(state, chunk, key, at, count)
            metrics.append(np.asarray(found["metric"])[0, at : at + count])
            at += count
        ends.append((parallel.first(state), np.concatenate(metrics)))
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])
    state, expected = np.float32(0.5), []
    for batch in batches:
        state, found = step(state, batch, key)
        expected.append(found["metric"])
    np.testing.assert_allclose(ends[0][1], expected, rtol=1e-5)
    assert ends[0][0] == pytest.approx(float(state), rel=1e-5)


ROOT = Path(__file__).resolve().parents[2]
# What only the package `parallel` may call, or read off an array.
DEVICES = {
    "addressable_shards", "default_backend", "device_count", "devices", "local_device_count", "local_devices", "pmap",
    "process_count", "process_index", "Mesh", "NamedSharding", "device_put_replicated", "device_put_sharded",
}  # fmt: skip


def names_used(path):
    """Attributes, other than of the module `parallel`, and imported names that a file uses, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "parallel"):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.lineno) for alias in node.names)


def test_only_parallel_asks_for_devices_and_processes():
    files = [path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    files += ROOT.glob("*.py")
    own = ROOT / "src" / "robust_jax" / "parallel"
    inside = {name for path in own.glob("*.py") for name, _ in names_used(path)}
    assert {"pmap", "addressable_shards", "default_backend", "process_index", "local_device_count"} <= inside
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files
        if path.parent != own
        for name, line in names_used(path)
        if name in DEVICES
    ]
    assert found == [] and len(files) > 80


def test_the_small_questions():
    assert parallel.host() == (0, 1) and parallel.is_main()
    assert parallel.device_count() == jax.device_count() and parallel.device_kind() == jax.devices()[0].device_kind
    assert parallel.on_cpu() == (jax.default_backend() == "cpu")
    twice = parallel.each(lambda x: 2 * x)(parallel.replicate(np.float32(3)))
    np.testing.assert_array_equal(twice, np.full(jax.local_device_count(), 6))


@pytest.mark.parametrize("address", ["here", "127.0.0.1:1,2", "127.0.0.1:1,two,0"])
def test_the_form_of_an_address(address):
    with pytest.raises(ValueError, match="give 'auto', or HOST:PORT,COUNT,INDEX"):
        parallel.initialize(address)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    steps = {case: take_step(case) for case in CASES if case not in ONE_ONLY}
    found = {f"{case}/{k}": v for case, (values, _) in steps.items() for k, v in values.items()}
    np.savez(sys.argv[1], devices=jax.local_device_count(), all_reduces=steps["independent"][1], **found)
