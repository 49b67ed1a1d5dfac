"""Modules of Linen and NNX as pure functions of their variables: their own numbers in both modes, transformed too."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import robust_jax as rj
from robust_jax.config.build import init_variables
from robust_jax.models.network import LinenNetwork, NNXNetwork
from robust_jax.objectives import Model, make_objective

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (6, 4, 4, 1))
LABELS = jnp.arange(6) % 3


class Net(nnx.Module):
    """With variables of every kind: weights, statistics, a count, arrays that are no `nnx.Variable`, random streams."""

    def __init__(self, num_classes, rngs, width=12):
        self.mean, self.std, self.rngs = jnp.full(1, 0.5), np.ones(1), rngs
        self.layers = nnx.List([nnx.Linear(16, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.drop = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
        self.calls = nnx.Variable(jnp.int32(0))
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        x = self.norm(self.layers[0](((x - self.mean) / self.std).reshape(len(x), -1)))
        x = self.drop[0](nnx.tanh(x))
        return self.head(self.drop[1](nnx.tanh(self.layers[1](x))))


def test_evaluation_gives_the_modules_own_logits_and_leaves_it_unchanged():
    net = Net(3, rngs=nnx.Rngs(0))
    net.norm.mean.set_value(jnp.arange(12.0))
    network = rj.models.trainable(net)
    variables = network.held
    logits = network.apply(variables, IMAGES)
    assert not net.drop[0].deterministic and int(net.calls.get_value()) == 0
    np.testing.assert_allclose(rj.model(net)(IMAGES), logits, atol=1e-6)
    again = network.module(variables)
    np.testing.assert_allclose(again(IMAGES), logits, atol=1e-6)
    assert set(variables["params"]["layers"]) == {"0", "1"} and variables["batch_stats"]["calls"] == 0


def test_training_moves_the_statistics_as_nnx_does_and_draws_masks_from_the_key():
    net = Net(3, rngs=nnx.Rngs(0))
    network = rj.models.trainable(net)
    variables = network.held

    def run(key):
        return network.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    (logits, new), (same, _), (other, _) = run(KEY), run(KEY), run(jax.random.key(1))
    net.train()
    net(IMAGES)
    for name in ("mean", "var"):
        expected = getattr(net.norm, name).get_value()
        np.testing.assert_allclose(new["batch_stats"]["norm"][name], expected, atol=1e-6)
    assert new["batch_stats"]["calls"] == 1
    np.testing.assert_array_equal(logits, same)
    assert abs(np.asarray(logits - other)).max() > 1e-3
    with pytest.raises(ValueError, match="draws random numbers in training, such as dropout: give rngs"):
        rj.objectives.Model.of(network, variables).train(IMAGES)  # without a key each step would have the same mask


def test_no_variable_is_lost_by_classes_and_modules():
    made, given = rj.models.create(Net, num_classes=3), rj.models.trainable(Net(3, rngs=nnx.Rngs(0)))
    for network in (made, given):
        variables = init_variables(network, (4, 4, 1), 0)
        assert {"mean", "std", "calls", "norm"} == set(variables["batch_stats"])
        shapes = jax.tree.map(jnp.shape, network.shapes)
        assert shapes == jax.tree.map(jnp.shape, variables)
        logits = jax.jit(network.apply)(variables, IMAGES)
        np.testing.assert_allclose(logits, network.module(variables)(IMAGES), atol=1e-6)


def test_every_dropout_layer_has_masks_of_its_own():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return jnp.stack([self.one(x), self.two(x)]) * self.scale

    network = rj.models.trainable(Twice(nnx.Rngs(0)))
    one, two = network.apply(network.held, jnp.ones((50, 10)), train=True, rngs={"dropout": KEY})
    assert 0.3 < float((one == two).mean()) < 0.7  # as likely equal as not


def test_equal_options_make_equal_networks_that_start_alike():
    one, two, wide = (rj.models.create(Net, num_classes=3, width=w) for w in (12, 12, 13))
    assert one == two and hash(one) == hash(two) and one != wide
    drawn = [init_variables(network, (4, 4, 1), seed=1) for network in (one, two)]
    jax.tree.map(np.testing.assert_array_equal, *drawn)
    assert float(abs(drawn[0]["params"]["head"]["kernel"]).max()) > 0


OBJECTIVE = make_objective(
    {"worst": dict(kind="attack", perturbation="additive", norm="linf", radius=0.1, steps=2, batch_norm="train")},
    {"ce": dict(kind="cross_entropy", at="worst"), "fgr": dict(kind="gradient_norm", perturbation="flow", weight=0.5)},
)


def gradient(network, variables):
    keys = jax.random.split(KEY, len(IMAGES))

    def loss(params):
        model = Model.of(network, {**variables, "params": params}, jax.random.key(3))
        return OBJECTIVE(model, IMAGES, LABELS, keys)[0]

    return jax.grad(loss)(variables["params"])


def test_objectives_differentiate_nnx_twice_as_they_do_linen():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.5)
            return nn.Dense(3, name="head")(nn.tanh(norm(nn.Dense(12, name="in")(x.reshape(len(x), -1)))))

    class OfNNX(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.norm = nnx.Linear(16, 12, rngs=rngs), nnx.BatchNorm(12, momentum=0.5, rngs=rngs)
            self.head = nnx.Linear(12, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.tanh(self.norm(self.inner(x.reshape(len(x), -1)))))

    network = rj.models.trainable(OfNNX(nnx.Rngs(0)))
    variables = network.held
    names = {"inner": "in", "norm": "BatchNorm_0", "head": "head"}
    renamed = {k: {names[n]: v for n, v in part.items()} for k, part in variables.items()}
    found, expected = gradient(network, variables), gradient(Linen(), renamed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), {names[n]: v for n, v in found.items()}, expected
    )
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not training)(x.reshape(len(x), -1)))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x.reshape(len(x), -1)))


class Neither(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


class Field(nn.Module):
    """It is told by a field, and by an argument of the call where both have the same name."""

    train: bool = True
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        told = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=told or not self.train)(x.reshape(len(x), -1)))


class Norm(nn.Module):
    use_running_average: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(momentum=0.5)(x.reshape(len(x), -1), use_running_average=self.use_running_average)
        return nn.Dense(3)(x)


@pytest.mark.parametrize("kind", [Training, Deterministic, Neither, Field, Norm])
def test_linen_modules_are_told_of_training_in_their_own_way(kind):
    network = rj.models.trainable(kind())
    assert isinstance(network, LinenNetwork) and network == rj.models.trainable(kind())
    variables = init_variables(network, (4, 4, 1), 0)
    evaluated = network.apply(variables, IMAGES)
    trained, _ = network.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    assert (abs(np.asarray(evaluated - trained)).max() > 1e-3) == (kind is not Neither)
    assert rj.models.trainable((kind(), variables)).held["params"].keys() == variables["params"].keys()


@pytest.mark.parametrize("training", [False, True])
def test_a_field_that_says_training_is_no_part_of_an_evaluation(training):
    module = Norm(use_running_average=not training)
    variables = module.init(KEY, IMAGES)
    expected = Norm(use_running_average=True).apply(variables, IMAGES)
    np.testing.assert_array_equal(rj.model(module, variables)(IMAGES), expected)
    np.testing.assert_array_equal(rj.bind(rj.models.trainable(module), variables)(IMAGES), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3,), "3 cannot be trained here: give a module of Linen or NNX"),
        ((lambda x: x,), "a function cannot be trained here.*training_your_own"),
        ((Net(3, rngs=nnx.Rngs(0)), {"params": {}}), "a Net holds its weights: leave out"),
        ((Neither(), {"params": {"a": 1}, "cache": {}}), r"variables \['cache'\]: training keeps"),
        ((Neither(), {"batch_stats": {}}), "no params: there is nothing to train"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=f"model: {message}|model: it has {message}"):
        rj.models.trainable(*given)


def test_a_linen_module_may_ask_for_train_without_a_default():
    class Asks(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(x.reshape(len(x), -1)) + train

    network = rj.models.trainable(Asks())
    variables = network.init(KEY, IMAGES)
    trained = network.apply(variables, IMAGES, train=True)
    np.testing.assert_allclose(trained, network.apply(variables, IMAGES) + 1)


def test_linen_variables_that_training_would_lose_are_told():
    class Cached(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            cache = self.variable("cache", "mean", jnp.zeros, ())
            return nn.Dense(3)(x.reshape(len(x), -1)) + cache.value

    with pytest.raises(ValueError, match=r"variables \['cache'\]: training keeps \['params', 'batch_stats'\] only"):
        init_variables(Cached(), (4, 4, 1), 0)


def test_streams_of_any_name_are_drawn_from_the_key_of_training():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = x.reshape(len(x), -1)
            x = x + jax.random.normal(self.make_rng("noise"), x.shape) if train else x
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))

    variables = init_variables(Noisy(), (4, 4, 1), 0)
    one, same, other = (Model.of(Noisy(), variables, jax.random.key(i)).train(IMAGES)[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert abs(np.asarray(one - other)).max() > 1e-3


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda self, x: nn.BatchNorm(use_running_average=False)(x), "updates its statistics in evaluation too: give"),
        (lambda self, x: x + jax.random.normal(self.make_rng("noise")), "draws random numbers in evaluation too: let"),
    ],
)
def test_what_training_alone_may_do_is_told_in_evaluation(layer, message):
    class Always(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(layer(self, x.reshape(len(x), -1)))

    with pytest.raises(ValueError, match=f"the model fails for float32 .* images: it {message}"):
        init_variables(Always(), (4, 4, 1), 0)


def test_a_random_key_that_is_no_stream_is_told():
    class Keyed(nnx.Module):
        def __init__(self):
            self.scale, self.inner = nnx.Param(jnp.ones(16)), nnx.Dict(key=jax.random.key(0))

    with pytest.raises(ValueError, match=r"model: inner\.key is a random key .*nnx\.Rngs"):
        init_variables(rj.models.trainable(Keyed()), (4, 4, 1), 0)


def test_a_function_of_images_serves_objectives_as_a_model():
    def slope(model_of):
        def loss(weights):
            model = model_of(lambda x: x.reshape(len(x), -1) @ weights)
            return OBJECTIVE(model, IMAGES, LABELS, jax.random.split(KEY, 6))[0]

        return jax.grad(loss)(jax.random.normal(KEY, (16, 3)))

    expected = slope(lambda f: Model(lambda x: (f(x), {}), f))
    np.testing.assert_allclose(slope(lambda f: f), expected, rtol=1e-5)
    assert float(abs(expected).max()) > 0
    with pytest.raises(ValueError, match="model is 3: give robust_jax.objectives.Model"):
        OBJECTIVE(3, IMAGES, LABELS, jax.random.split(KEY, 6))


def test_short_reprs():
    network = rj.models.trainable(Net(3, rngs=nnx.Rngs(0)))
    assert isinstance(network, NNXNetwork) and len(repr(network)) < 60
    assert repr(rj.bind(network, network.held)) == "BoundModel(Net, 450 numbers)"
