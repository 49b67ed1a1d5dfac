"""Attacks called outside of `jax.jit`: compiled once, the numbers of `jax.jit`, never a stale result."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.attacks.define import attack
from robust_jax.attacks.result import AttackResult

pytestmark = pytest.mark.usefixtures("quick_compile")
IMAGES = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1))
LABELS = jnp.arange(4) % 3
THREAT = rj.ThreatModel("additive", "linf", 0.1)
PGD = functools.partial(rj.attacks.pgd, steps=2)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=[])
class Linear:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, images):
        return jax.nn.relu(images.reshape(len(images), -1) @ self.weights)


def closure(weights):
    return lambda images: jax.nn.relu(images.reshape(len(images), -1) @ weights)


def weights(seed):
    return jax.random.normal(jax.random.key(seed), (9, 3))


@pytest.fixture
def compilations():
    found = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(1.0)
    assert found, "JAX has renamed the event: nothing would be counted"
    yield found


@pytest.mark.parametrize("model", [Linear, closure])
def test_other_weights_radii_and_functions_do_not_compile_again(compilations, model):
    given = [weights(seed) for seed in (1, 2)]
    keys = [jax.random.key(seed) for seed in (3, 4)]
    radii = [rj.ThreatModel("additive", "linf", radius) for radius in (0.1, 0.2)]
    PGD(model(given[0]), IMAGES, LABELS, radii[0], key=keys[0])
    before = len(compilations)
    found = PGD(model(given[1]), IMAGES, LABELS, radii[1], key=keys[1])
    assert len(compilations) == before
    expected = jax.jit(PGD)(Linear(given[1]), IMAGES, LABELS, radii[1], key=keys[1])
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_what_a_function_reads_is_read_at_each_call():
    state = {"weights": weights(1), "scale": 1.0}

    def logits_fn(images):
        return state["scale"] * images.reshape(len(images), -1) @ state["weights"]

    def found():
        return np.asarray(PGD(logits_fn, IMAGES, LABELS, THREAT, key=jax.random.key(0)).images)

    first = found()
    state["weights"] = -state["weights"]
    second = found()
    assert not np.array_equal(first, second)
    state["scale"] = -1.0
    np.testing.assert_array_equal(found(), first)


def test_what_a_loss_of_ones_own_reads_is_read_at_each_call():
    sign = [1.0]

    def loss(logits, labels):
        return sign[0] * rj.losses.cross_entropy(logits, labels)

    def found():
        return np.asarray(PGD(Linear(weights(1)), IMAGES, LABELS, THREAT, key=jax.random.key(0), loss=loss).images)

    first = found()
    sign[0] = -1.0
    assert not np.array_equal(found(), first)


def test_weights_that_were_closed_over_are_not_kept():
    held = weights(5)
    gone = weakref.ref(held)
    PGD(closure(held), IMAGES, LABELS, THREAT, key=jax.random.key(0))
    del held
    gc.collect()
    assert gone() is None


def test_an_attack_that_needs_values_runs_all_the_same():
    @attack(family="one_step")
    def careful(logits_fn, images, labels, threat, *, key):
        wrong = logits_fn(images).argmax(-1) != labels
        delta = jnp.zeros_like(images) if bool(wrong.all()) else jnp.full_like(images, 0.0)
        return AttackResult(images, delta, wrong)

    model = Linear(weights(1))
    success = careful(model, IMAGES, LABELS, THREAT, key=jax.random.key(0)).success
    np.testing.assert_array_equal(success, model(IMAGES).argmax(-1) != LABELS)


def test_inside_other_transformations_attacks_stay_part_of_them():
    def loss(scale):
        model = closure(scale * weights(1))
        return PGD(model, IMAGES, LABELS, THREAT, key=jax.random.key(0)).images.sum() * scale

    # The signs that it steps along have no derivative: the images are constants.
    np.testing.assert_allclose(jax.grad(loss)(1.0), loss(1.0), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(loss)(jnp.array([1.0, 2.0])), [loss(1.0), loss(2.0)], rtol=1e-5)


@pytest.mark.parametrize("function", [rj.attacks.apgd_dlr, rj.attacks.apgd_targeted])
def test_with_two_classes_the_margin_takes_the_place_of_dlr(function):
    model = Linear(1e4 * weights(1)[:, :2])  # where the cross-entropy is flat
    found = function(model, IMAGES, LABELS % 2, THREAT, key=jax.random.key(0), steps=2)
    early = {"early_stop": True} if function is rj.attacks.apgd_targeted else {}
    expected = rj.attacks.apgd(
        model, IMAGES, LABELS % 2, THREAT, key=jax.random.key(0), steps=2, loss=rj.losses.margin, **early
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (found.images != IMAGES).any()
