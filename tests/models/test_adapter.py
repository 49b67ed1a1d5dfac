"""`rj.model`: networks of every library give their own logits, can be attacked, and compile once for all weights."""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import robust_jax as rj

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (4, 6, 6, 2))
LABELS = jnp.arange(4) % 3
PIXELS = rj.ThreatModel("additive", "linf", 0.1)
FLOW = rj.ThreatModel("flow", "linf", 0.3)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(8)(x.reshape(len(x), -1))))


class LinenBN(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not training)(nn.relu(x).mean((1, 2))))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(72, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.tanh(self.inner(x.reshape(len(x), -1))))


class NNXBN(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


def linen():
    variables = Linen().init(KEY, IMAGES)
    return rj.model(Linen(), variables), Linen().apply(variables, IMAGES)


def linen_with_batch_norm():
    variables = LinenBN().init(KEY, IMAGES, False)
    return rj.model(LinenBN(), variables), LinenBN().apply(variables, IMAGES, False)


def floats(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def of_nnx(kind):
    network = kind(nnx.Rngs(0))
    network.train()
    network(IMAGES)  # moves the statistics
    before = floats(nnx.state(network))
    logits_fn = rj.model(network)
    jax.tree.map(np.testing.assert_array_equal, floats(nnx.state(network)), before)
    if hasattr(network, "dropout"):
        assert not network.dropout.deterministic  # the user's own goes on training
    network.eval()
    return logits_fn, network(IMAGES)


def equinox():
    eqx = pytest.importorskip("equinox")
    first, second = (jax.random.key(seed) for seed in (1, 2))
    network = eqx.nn.Sequential(
        [eqx.nn.Conv2d(2, 4, 3, key=first), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Lambda(jnp.ravel), eqx.nn.Dropout(),
         eqx.nn.Linear(64, 3, key=second)]
    )  # fmt: skip
    expected = jax.vmap(eqx.nn.inference_mode(network))(jnp.moveaxis(IMAGES, -1, 1))
    return rj.model(network, channels_first=True, per_image=True), expected


def haiku():
    hk = pytest.importorskip("haiku")

    def forward(x, is_training=False):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training)
        return hk.Linear(3)(jax.nn.relu(x).mean((1, 2)))

    network = hk.transform_with_state(forward)
    variables = network.init(jax.random.PRNGKey(0), IMAGES, True)
    return rj.model(network, variables), network.apply(*variables, None, IMAGES)[0]


def haiku_without_state():
    hk = pytest.importorskip("haiku")
    network = hk.transform(lambda x: hk.Linear(3)(hk.Flatten()(x)))
    params = network.init(jax.random.PRNGKey(0), IMAGES)
    return rj.model(network, params), network.apply(params, None, IMAGES)


def keras():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    network = keras.Sequential(
        [layers.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5),
         layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )  # fmt: skip
    return rj.model(network), network(IMAGES, training=False)


def function():
    weights = jax.random.normal(KEY, (72, 3))
    return rj.model(lambda w, x: x.reshape(len(x), -1) @ w, weights), IMAGES.reshape(4, -1) @ weights


NETWORKS = {
    "linen": linen, "linen with BatchNorm": linen_with_batch_norm, "nnx": partial(of_nnx, NNX),
    "nnx with BatchNorm": partial(of_nnx, NNXBN), "equinox": equinox, "haiku": haiku,
    "haiku without state": haiku_without_state, "keras": keras, "a function": function,
}  # fmt: skip
ATTACKS = {
    "pgd": (partial(rj.attacks.pgd, steps=2), PIXELS),
    "apgd": (partial(rj.attacks.apgd, steps=3), PIXELS),
    "auto_attack": (partial(rj.attacks.auto_attack, steps=3, queries=5), PIXELS),
    "stadv": (partial(rj.attacks.stadv, steps=3), FLOW),
    "pgd on flows": (partial(rj.attacks.pgd, steps=2), FLOW),
}


@pytest.fixture
def compilations():
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event) if event.endswith("backend_compile_duration") else None
    )
    jax.jit(lambda x: x + 1)(1.0)
    assert found, "JAX has renamed the event: nothing would be counted"
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_the_networks_own(name):
    logits_fn, expected = NETWORKS[name]()
    np.testing.assert_allclose(logits_fn(IMAGES), expected, atol=1e-5)  # float32 sums of some 70 products
    assert expected.shape == (4, 3) and "numbers" in repr(logits_fn) and len(repr(logits_fn)) < 80


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "attack", [name if name == "pgd" else pytest.param(name, marks=pytest.mark.slow) for name in ATTACKS]
)
def test_attacks_compile_once_for_all_weights(name, attack, compilations):
    logits_fn, _ = NETWORKS[name]()
    function, threat = ATTACKS[attack]
    result = function(logits_fn, IMAGES, LABELS, threat, key=KEY)
    predicted = logits_fn(result.images).argmax(-1)
    np.testing.assert_array_equal(result.success, predicted != LABELS)
    again, _ = NETWORKS[name]()
    given = [again, jax.tree.map(lambda w: w if jnp.issubdtype(w.dtype, jax.dtypes.prng_key) else w * 1, logits_fn)]
    before = len(compilations)
    for model in given if name not in ("a function", "keras") and "haiku" not in name else given[1:]:
        function(model, IMAGES, LABELS, threat, key=KEY)  # those are told apart by the function object
        assert len(compilations) == before


def torch_network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn
    network = layers.Sequential(
        layers.Conv2d(2, 4, 3), layers.BatchNorm2d(4), layers.ReLU(), layers.Flatten(), layers.Linear(64, 3)
    )
    network.eval()
    with torch.no_grad():
        expected = network(torch.tensor(np.moveaxis(np.asarray(IMAGES), -1, 1).copy())).numpy()
    return network, expected


def test_pytorch_is_attacked_without_gradients():
    network, expected = torch_network()
    network.train()
    logits_fn = rj.model(network)
    np.testing.assert_allclose(logits_fn(IMAGES), expected, atol=1e-5)
    assert all(module.training for module in network.modules())  # the user's own goes on training
    np.testing.assert_allclose(rj.model(network.double())(IMAGES), expected, atol=1e-5)
    network.float()
    result = rj.attacks.square(logits_fn, IMAGES, LABELS, PIXELS, key=KEY, queries=5)
    np.testing.assert_array_equal(result.success, logits_fn(result.images).argmax(-1) != LABELS)
    for attack, threat in (ATTACKS[name] for name in ("pgd", "pgd on flows")):
        with pytest.raises(ValueError, match="a black box has no gradient: use an attack without .square"):
            attack(logits_fn, IMAGES, LABELS, threat, key=KEY)


def test_penalties_differentiate_in_the_weights():
    logits_fn, _ = linen()

    def penalty(model):
        def loss(x):
            return rj.losses.cross_entropy(model(x), LABELS)

        return rj.gradient_norm(loss, IMAGES, "flow", power=2).mean()

    slopes = jax.grad(penalty)(logits_fn)
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(slopes)) > 0


@pytest.mark.parametrize(
    "given, message",
    [
        ((Linen(),), r"a Linen module holds no weights: give them as well, rj.model\(network, variables\)"),
        ((NNX(nnx.Rngs(0)), {}), "an NNX module holds its weights: leave out variables=a dict"),
        ((3,), "3 is no network: give one of Linen, NNX"),
        (("resnet",), "'resnet' is no network"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=f"model: {message}"):
        rj.model(*given)


class Normalised(nn.Module):
    """Its constants are fields that are arrays."""

    mean: np.ndarray

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)((x - self.mean).reshape(len(x), -1))


def test_a_linen_module_with_arrays_for_fields_is_compared_by_them(compilations):
    mean = np.asarray([0.1, 0.2], np.float32)
    variables = Normalised(mean).init(jax.random.key(0), IMAGES)
    function, threat = ATTACKS["pgd"]
    for make in (rj.model, rj.bind):
        if make is rj.bind:
            module = type("WithTrain", (nn.Module,), {
                "__annotations__": {"mean": np.ndarray},
                "__call__": nn.compact(lambda self, x, train=False: nn.Dense(3)((x - self.mean).reshape(len(x), -1))),
            })  # fmt: skip
        else:
            module = Normalised
        variables = module(mean).init(jax.random.key(0), IMAGES)
        one = function(make(module(mean), variables), IMAGES, LABELS, threat, key=KEY)
        before = len(compilations)
        again = function(make(module(mean.copy()), variables), IMAGES, LABELS, threat, key=KEY)
        assert len(compilations) == before
        np.testing.assert_array_equal(one.images, again.images)
        other = make(module(mean + 1), variables)
        np.testing.assert_array_equal(
            function(other, IMAGES, LABELS, threat, key=KEY).success,
            other(function(other, IMAGES, LABELS, threat, key=KEY).images).argmax(-1) != LABELS,
        )


@pytest.mark.parametrize("with_key", [True, False])
def test_a_haiku_network_that_trains_by_default_is_used_as_in_evaluation(with_key):
    hk = pytest.importorskip("haiku")

    def forward(x, is_training=True):
        x = hk.BatchNorm(True, True, 0.9)(hk.Flatten()(x), is_training)
        return hk.Linear(3)(x)

    network = hk.transform_with_state(forward)
    variables = network.init(jax.random.PRNGKey(0), IMAGES)
    expected = network.apply(*variables, None, IMAGES, is_training=False)[0]
    given = network if with_key else hk.without_apply_rng(network)
    np.testing.assert_allclose(rj.model(given, variables)(IMAGES), expected, rtol=1e-6)


def test_an_equinox_network_is_measured_as_it_is_though_it_holds_functions():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, images):
            return jax.vmap(self.mlp)(images.reshape(len(images), -1))

    network = Net(eqx.nn.MLP(16, 3, 8, 1, key=jax.random.key(0)))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 4, 4, 1)), jnp.float32)
    labels = np.asarray(network(images).argmax(-1))
    attacks = {"pgd": dict(kind="pgd", perturbation="additive", radius=0.1, steps=2)}
    own, adapted = (
        rj.robustness(model, (images, labels), attacks, key=jax.random.key(1)) for model in (network, rj.model(network))
    )
    np.testing.assert_allclose(own.attacks["pgd"].loss, adapted.attacks["pgd"].loss, rtol=1e-5)
    assert own.correct.all() and rj.summarise(own)["clean"]["accuracy"] == 1


def test_an_equinox_network_may_have_a_state_and_says_that_it_takes_single_images():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(2, 3, 3, key=key)
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="ema")

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return x.mean((1, 2)), state

    network, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    inference = eqx.nn.inference_mode(network)
    expected = jax.vmap(lambda x: inference(x, state)[0])(jnp.moveaxis(IMAGES, -1, 1))
    logits_fn = rj.model(network, state, channels_first=True, per_image=True)
    np.testing.assert_allclose(logits_fn(IMAGES), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="takes single images: give per_image=True"):
        rj.model(network, state, channels_first=True)(IMAGES)


def test_parameters_without_the_name_of_their_collection_are_told():
    variables = Linen().init(KEY, IMAGES)
    for given in (rj.model, rj.bind):
        with pytest.raises(ValueError, match=r"no 'params': give \{'params': params\}"):
            given(Linen(), variables["params"])


def test_a_module_in_train_mode_that_is_given_as_it_is_is_told():
    pixels = rj.ThreatModel("additive", "linf", 0.1)
    with pytest.raises(ValueError, match=r"changes its own variables, as BatchNorm does.*give robust_jax.model"):
        rj.attacks.pgd(NNXBN(nnx.Rngs(0)), IMAGES, LABELS, pixels, key=KEY, steps=1)
