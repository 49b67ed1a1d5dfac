"""The models: sizes, dtypes, errors, and what `bind` promises."""

from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robust_jax import models

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGES = (
    {"digits_cnn": (8, 8, 1), "small_cnn": (28, 28, 1)}
    | {f"vgg{depth}": (32, 32, 3) for depth in (11, 13, 16, 19)}
    | {name: (28, 28, 1) for name in ("mlp", "maxout_mlp", "maxout_cnn")}
    | {
        name: (32, 32, 3)
        for name in (
            "maxout_cifar",
            *("resnet20", "resnet32", "resnet56"),
            *("wrn_16_4", "wrn_16_8", "wrn_28_10", "wrn_34_10"),
            "preact_resnet18",
            *("resnet18", "resnet20_xia"),
        )
    }
)


def sample(name, batch=2):
    return jax.random.uniform(jax.random.key(0), (batch, *IMAGES[name]))


def variables_of(model, images):
    """Random variables, quicker than `init` on the largest networks; running variances positive."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.05, 1.0, leaf.shape) / np.sqrt(leaf.size), leaf.dtype),
        shapes,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # weights and biases layer by layer, written out by hand
        (
            "digits_cnn",
            9 * 32 + 32 + 9 * 32 * 32 + 32 + 9 * 32 * 64 + 64 + 1024 * 64 + 64 + 640 + 10,
        ),
        ("small_cnn", 320 + 9248 + 18496 + 36928 + 205000 + 40200 + 2010),
        ("vgg11", 9_231_114),  # these four as counted in pytorch-cifar
        ("vgg13", 9_416_010),
        ("vgg16", 14_728_266),
        ("vgg19", 20_040_522),
        ("mlp", 784 * 500 + 500 + 500 * 500 + 500 + 5000 + 10),
        ("maxout_mlp", 784 * 1200 + 1200 + 240 * 1200 + 1200 + 2400 + 10),
        ("maxout_cnn", 64 * 96 + 96 + 64 * 48 * 96 + 96 + 25 * 48 * 96 + 96 + 9 * 24 * 10 + 10),
        (
            "maxout_cifar",
            192 * 192 + 192 + 64 * 96 * 384 + 384 + 25 * 192 * 384 + 384 + 25 * 192 * 2500 + 2500 + 5000 + 10,
        ),
        # as torch counts them: akamaster/pytorch_resnet_cifar10, xternalz/WideResNet-pytorch, pytorch-cifar
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("wrn_16_4", 2_748_890),
        ("wrn_16_8", 10_961_370),
        ("wrn_28_10", 36_479_194),
        ("wrn_34_10", 46_160_474),
        ("preact_resnet18", 11_171_146),
        ("resnet18", 11_173_962),
        ("resnet20_xia", 11_469_386),
    ],
)
def test_parameters_and_output(name, parameters):
    model, images = models.create(name, num_classes=10), sample(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32


def test_every_model_is_covered():
    assert set(models.MODELS) == set(IMAGES)


@pytest.mark.parametrize("name", [name for name in IMAGES if not name.startswith(("vgg", "wrn_28", "wrn_34"))])
def test_every_model_but_vgg_takes_28_and_32_pixels(name):
    model = models.create(name, num_classes=7, dtype="bfloat16")
    for shape in ((1, 28, 28, 1), (1, 32, 32, 3)):
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros(shape))
        assert logits.shape == (1, 7) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["small_cnn", "vgg11", "mlp", "resnet20", "resnet18", "wrn_16_4", "preact_resnet18"])
def test_activation_is_the_only_one(name):
    images = sample(name, 1)

    def used(**fields):
        model = models.create(name, num_classes=10, **fields)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        jaxpr = str(jax.make_jaxpr(model.apply)(variables, images))
        return {kind for kind in ("name=relu", "logistic", "name=softplus") if kind in jaxpr}

    assert used() == {"logistic" if name == "mlp" else "name=relu"}
    assert used(activation="softplus") == {"name=softplus"}
    with pytest.raises(ValueError, match="activation='swish' is unknown: choose one of .*relu"):
        used(activation="swish")


@pytest.mark.parametrize("name", ["digits_cnn", "small_cnn", "mlp", "maxout_mlp"])
def test_bfloat16_gives_float32_logits_close_to_float32(name):
    images = sample(name)
    full = models.create(name, num_classes=10)
    half = models.create(name, num_classes=10, dtype="bfloat16")
    variables = variables_of(full, images)
    a, b = (jax.jit(m.apply)(variables, images) for m in (full, half))
    assert b.dtype == jnp.float32
    assert 0 < jnp.abs(a - b).max() < 0.1 * jnp.abs(a).max()


def test_float64_gives_float64_logits():
    with jax.enable_x64(True):
        model = models.create("digits_cnn", num_classes=10, dtype="float64")
        images = sample("digits_cnn").astype(jnp.float64)
        assert jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].dtype == "float64"


def test_small_cnn_layers():
    model, images = models.create("small_cnn", num_classes=7), sample("small_cnn")
    variables = jax.jit(model.init)(jax.random.key(0), images)
    kernels = [layer["kernel"] for layer in variables["params"].values()]
    assert [k.shape for k in kernels] == [
        (3, 3, 1, 32), (3, 3, 32, 32), (3, 3, 32, 64), (3, 3, 64, 64),
        (1024, 200), (200, 200), (200, 7),
    ]  # fmt: skip
    for kernel in kernels[1:4]:  # Kaiming: variance 2 / fan-in
        assert kernel.std() == pytest.approx((2 / (9 * kernel.shape[2])) ** 0.5, rel=0.05)
    np.testing.assert_array_equal(model.apply(variables, images), np.zeros((2, 7)))  # uniform


def test_small_cnn_dropout():
    model = models.create("small_cnn", num_classes=3, dropout=0.5)
    images = sample("small_cnn", 1)
    variables = variables_of(model, images)
    run = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key}))
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert not jnp.allclose(first, second)
    plain = models.create("small_cnn", num_classes=3)
    np.testing.assert_array_equal(model.apply(variables, images), plain.apply(variables, images, train=True))


def test_vgg_running_statistics():
    """After one training step: 0.9 of the old and 0.1 of the batch's, as in torch."""
    model, images = models.create("vgg11", num_classes=10), sample("vgg11", 4)
    variables = variables_of(model, images)
    _, updated = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    conv = variables["params"]["Conv_0"]
    first = lax.conv_general_dilated(images, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    first = first + conv["bias"]
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (variables, updated))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * first.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * first.var((0, 1, 2)), rtol=1e-4)


def test_synchronised_batch_norm_sees_the_whole_batch():
    images = sample("vgg11", 4)
    alone = models.create("vgg11", num_classes=10)
    together = models.create("vgg11", num_classes=10, batch_norm_axis="devices")
    variables = jax.tree.map(lambda v: v + 0.01, variables_of(alone, images))

    def train(model, variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]

    halves = images.reshape(2, 2, 32, 32, 3)
    whole = jax.jit(partial(train, alone))(variables, images)
    split = jax.jit(jax.vmap(partial(train, together), in_axes=(None, 0), axis_name="devices"))(variables, halves)
    for a, b in zip(jax.tree.leaves(whole)[:4], jax.tree.leaves(split)[:4], strict=True):
        np.testing.assert_allclose(b[0], a, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(b[0], b[1])


@pytest.mark.parametrize("name", ["digits_cnn", "small_cnn", "mlp", "maxout_mlp"])
def test_normalisation_inside_equals_outside(name):
    images = sample(name)
    channels = images.shape[-1]
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    inside = models.create(name, num_classes=10, mean=list(mean), std=np.array(std))
    outside = models.create(name, num_classes=10)
    variables = variables_of(outside, images)
    expected = outside.apply(variables, (images - np.array(mean)) / np.array(std))
    np.testing.assert_allclose(inside.apply(variables, images), expected, rtol=1e-4, atol=1e-5)


def test_both_convolutions_give_the_same_gradients(name="digits_cnn"):
    """Of the logits in the images, and of that gradient's square in the parameters."""
    images = sample(name)
    ours = models.create(name, num_classes=10)
    laxs = models.create(name, num_classes=10, conv_general_dilated=lax.conv_general_dilated)
    variables = jax.jit(laxs.init)(jax.random.key(0), images)
    head = list(variables["params"])[-1]
    variables["params"][head]["kernel"] = 0.1 * jnp.ones_like(variables["params"][head]["kernel"])

    def run(model):
        def gradient(v, x):
            return jax.grad(lambda x: model.apply(v, x)[:, 0].sum())(x)

        penalty = jax.grad(lambda v: (gradient(v, images) ** 2).sum())
        return jax.jit(lambda v: (gradient(v, images), penalty(v)["params"]))(variables)

    for a, b in zip(jax.tree.leaves(run(ours)), jax.tree.leaves(run(laxs)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max() + 1e-12)


@pytest.mark.parametrize(
    ("name", "least"),
    [("digits_cnn", 2), ("small_cnn", 16), ("vgg11", 32), ("vgg19", 32), ("mlp", 1), ("maxout_mlp", 1)]
    + [
        ("maxout_cnn", 18),
        ("maxout_cifar", 10),
        ("resnet20", 4),
        ("wrn_16_4", 4),
        ("preact_resnet18", 8),
        ("resnet18", 8),
    ],
)
def test_least_size(name, least):
    model, channels = models.create(name, num_classes=10), IMAGES[name][-1]
    make = lambda size: jax.eval_shape(  # noqa: E731
        model.init_with_output, jax.random.key(0), jnp.zeros((1, size, least, channels))
    )
    assert make(least)[0].shape == (1, 10)
    with pytest.raises(ValueError, match=f"{name} needs images of at least {least}x{least}"):
        make(least - 1)


def test_wrong_rank():
    model = models.create("digits_cnn", num_classes=10)
    with pytest.raises(ValueError, match=r"got an array of shape \(8, 8, 1\); .*image\[None\]"):
        model.init(jax.random.key(0), jnp.zeros((8, 8, 1)))


def test_vgg_takes_larger_images():
    model = models.create("vgg11", num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.eval_shape(model.apply, variables, jnp.zeros((2, 64, 96, 3))).shape == (2, 10)


def test_create_errors():
    with pytest.raises(
        ValueError, match="model.name='vgg12' is unknown: choose one of .*Did you mean 'vgg1[1-9]'"
    ) as error:
        models.create("vgg12", num_classes=10)
    assert all(repr(name) in str(error.value) for name in IMAGES) and "'module:name' of your own" in str(error.value)
    with pytest.raises(ValueError, match="'digits_cnn' has no field 'dropout'; it has .*dtype"):
        models.create("digits_cnn", num_classes=10, dropout=0.5)
    with pytest.raises(ValueError, match="no field 'batch_norm_axis'"):
        models.create("small_cnn", num_classes=10, batch_norm_axis="batch")
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2"):
        models.create("vgg11", num_classes=1)
    with pytest.raises(ValueError, match="std=0.0 must be above 0"):
        models.create("vgg11", num_classes=10, std=(0.1, 0.0, 0.1))
    models.create("small_cnn", num_classes=10, batch_norm_axis=None)


OWN = """
import flax.linen as nn
from robust_jax.models import VGG


class Linear(nn.Module):
    num_classes: int
    bias: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes, use_bias=self.bias)(images.reshape(len(images), -1))


def half_vgg(num_classes, mean, std, dtype, depth=11):
    return VGG(num_classes, depth=depth, mean=mean, std=std, dtype=dtype)


def anything(**fields):
    return Linear(fields["num_classes"])


class Fixed(nn.Module):
    width: int = 3


def no_module(num_classes):
    return lambda images: images


number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_models", None)


def test_a_model_of_ones_own_is_a_class_or_a_function_in_a_file_outside_of_the_package(own):
    images = sample("digits_cnn")
    shared = dict(num_classes=7, mean=0.3, std=0.2)
    with pytest.raises(ValueError, match="does not take mean and std, so .*would have no effect"):
        models.create("own_models:Linear", **shared)
    linear = models.create(
        "own_models:Linear", num_classes=7, mean=0.1307, std=0.3081, bias=False, batch_norm_axis=None
    )
    logits, variables = linear.init_with_output(jax.random.key(0), images)
    np.testing.assert_allclose(logits, images.reshape(2, -1) @ variables["params"]["Dense_0"]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(models.bind(linear, variables)(images), logits)
    with pytest.raises(ValueError, match=r"images must be floats .*got uint8 .*to_float divides bytes by 255"):
        models.bind(linear, variables)((255 * images).astype(np.uint8))
    with pytest.raises(ValueError, match=r"images must be floats .*got uint8 .*to_float divides bytes by 255"):
        models.model(linear, variables)((255 * images).astype(np.uint8))
    assert linear == models.create("own_models:Linear", num_classes=7, bias=False)
    vgg = models.create("own_models:half_vgg", **shared, dtype="bfloat16", depth=13)
    assert vgg == models.create("vgg13", **shared, dtype="bfloat16")
    assert models.create("own_models:anything", **shared, dtype="bfloat16", more=1).num_classes == 7


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("own_models:Linaer", {}, "model.name='own_models:Linaer' cannot be imported: .*'Linaer'"),
        ("nowhere:Linear", {}, "model.name='nowhere:Linear' cannot be imported: No module named 'nowhere'"),
        ("own_models:Linear", {"depth": 3}, "'own_models:Linear' has no field 'depth'; it has bias, num_classes"),
        ("own_models:Linear", {"dtype": "bfloat16"}, "'own_models:Linear' has no field 'dtype'"),
        ("own_models:Linear", {"batch_norm_axis": "devices"}, "'own_models:Linear' has no field 'batch_norm_axis'"),
        ("own_models:Fixed", {}, "'own_models:Fixed' has no field 'num_classes'; it has width"),
        ("own_models:no_module", {}, "must return a flax.linen.Module"),
        ("own_models:number", {}, "'own_models:number' is 3: it must be a class of flax's modules, or a function"),
    ],
)
def test_mistaken_models_of_ones_own(own, name, fields, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, num_classes=10, **fields)


def test_equal_models_are_equal_and_hashable():
    make = lambda **f: models.create("small_cnn", **(dict(num_classes=10, mean=[0.1]) | f))  # noqa: E731
    assert make() == make(mean=0.1, dtype="float32") and hash(make()) == hash(make())
    assert make() != make(mean=0.2)
    widths = [models.create("mlp", num_classes=10, hidden=hidden) for hidden in ([7, 8], (7, 8))]
    assert widths[0] == widths[1] and hash(widths[0]) == hash(widths[1])


def test_bind_compiles_once_for_all_weights():
    images = sample("digits_cnn")
    traces = []

    @jax.jit
    def attack(logits_fn, images):
        traces.append(1)
        return images + 0.1 * jnp.sign(jax.grad(lambda x: logits_fn(x)[:, 0].sum())(images))

    results = []
    for seed in range(3):
        model = models.create("digits_cnn", num_classes=10)
        variables = model.init(jax.random.key(seed), images)
        bound = models.bind(model, variables)
        np.testing.assert_array_equal(bound(images), model.apply(variables, images, train=False))
        results.append(attack(bound, images))
    assert len(traces) == 1
    assert not jnp.allclose(results[0], results[1])
    assert len(jax.tree.leaves(bound)) == len(jax.tree.leaves(variables))


def test_digits_cnn_learns():
    """Not only the right shape: a few steps fit 64 random images."""
    images, labels = sample("digits_cnn", 64), jnp.arange(64) % 10
    model = models.create("digits_cnn", num_classes=10)

    def loss(v):
        logits = jax.nn.log_softmax(model.apply(v, images))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    @jax.jit
    def step(v, m):
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, jax.grad(loss)(v))
        return jax.tree.map(lambda p, m: p - 0.02 * m, v, m), m

    v = model.init(jax.random.key(0), images)
    m = jax.tree.map(jnp.zeros_like, v)
    start = loss(v)
    for _ in range(60):
        v, m = step(v, m)
    assert loss(v) < 0.7 * start
