"""Training on a dataset and with a model that are Python objects, and what resumes, loads and evaluates such a run."""

from __future__ import annotations

import json
import logging
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import robust_jax as rj
from robust_jax import data
from robust_jax.config import base
from robust_jax.config.objects import Objects
from robust_jax.workdir import checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")
DRAW = np.random.default_rng(0)
LABELS = np.arange(120) % 3
IMAGES = DRAW.integers(0, 100, (120, 6, 5, 1), np.uint8)
IMAGES[:, :, 0, 0] += (50 * LABELS).astype(np.uint8)[:, None]
PAIRS = ((IMAGES[:96], LABELS[:96]), (IMAGES[96:], LABELS[96:]))


class Net(nnx.Module):
    """One hidden layer, with BatchNorm, Dropout, a count, and an array that is no variable."""

    def __init__(self, num_classes, image_shape=(6, 5, 1), mean=0.0, width=12, *, rngs):
        self.mean, self.inner = mean, nnx.Linear(int(np.prod(image_shape)), width, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(width, momentum=0.5, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)
        self.calls, self.scale = nnx.Variable(jnp.int32(0)), np.ones(1)

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        x = self.norm(self.inner((x * self.scale - np.asarray(self.mean)).reshape(len(x), -1)))
        return self.head(self.drop(nnx.tanh(x)))


class Linen(nn.Module):
    """A Linen module that is told of training in its own way."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dropout(0.2, deterministic=deterministic)(nn.tanh(nn.Dense(12)(x.reshape(len(x), -1))))
        return nn.Dense(self.num_classes)(x)


class TrainsByDefault(nn.Module):
    """A Linen module that trains unless it is told otherwise."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


class Masked(nnx.Module):
    """A network with an infinite constant."""

    def __init__(self, rngs):
        self.dense, self.mask = nnx.Linear(30, 3, rngs=rngs), jnp.array([0, -jnp.inf, 0])

    def __call__(self, x):
        return jnp.where(jnp.isinf(self.mask), 0, self.dense(x.reshape(len(x), -1)))


class Shifted(nn.Module):
    """A network with a field that is an array."""

    shift: np.ndarray

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x.reshape(len(x), -1)) + self.shift.sum()


def net(seed=0, **options):
    return Net(3, rngs=nnx.Rngs(seed), **options)


def config(**changes):
    """10 steps of 16 of 80 images, a validation every 5."""
    c = base("own", "own")
    c.update({"batch_size": 16, "epochs": 2.0, "log_every_steps": 5, "checkpoint_every_steps": 3} | changes)
    c.optimizer.ema = 0.5
    c.data.validation, c.schedule.learning_rate = 1 / 6, 0.1
    c.points.worst = dict(kind="attack", perturbation="additive", norm="linf", radius=0.02, steps=1)
    c.terms.ce = dict(kind="cross_entropy", at="worst")
    c.attacks.shift = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.02, steps=1)
    c.evaluation.update(checks=0, pictures=0)
    return c


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, quick_compile):
    workdir = tmp_path_factory.mktemp("objects") / "run"
    return workdir, rj.train(config(), workdir, dataset=PAIRS, model=net())


def test_a_run_with_objects_learns_and_is_loaded_with_them(reference):
    workdir, state = reference
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert int(state.step) == 10 and losses[-1] < losses[0]
    assert float(abs(state.batch_stats["norm"]["mean"]).max()) > 0
    assert state.batch_stats["calls"] == state.ema["batch_stats"]["calls"] == 10 and state.batch_stats["scale"] == 1
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["name"].startswith("object:own#") and saved["model"]["name"].startswith("object:Net#")
    run = rj.load(workdir, dataset=PAIRS, model=net(seed=5))
    batch = run.dataset.test.take(np.arange(24))
    images = data.to_float(batch["image"])
    np.testing.assert_array_equal(batch["label"], LABELS[96:][batch["id"]])
    module = run.model.module(run.variables)
    np.testing.assert_allclose(module(images), run.logits_fn(images), atol=1e-6)
    assert (np.asarray(run.logits_fn(images)).argmax(-1) == batch["label"]).mean() > 0.5


def test_a_run_with_objects_that_died_and_was_started_again_ends_with_the_same_bits(reference, tmp_path, monkeypatch):
    save = checkpoints.Checkpoints.save

    def dying(self, kind, step, *rest):
        save(self, kind, step, *rest)
        if step == 6:
            self.wait(kind)
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", dying)
        with pytest.raises(InterruptedError):
            rj.train(config(), tmp_path / "run", dataset=PAIRS, model=net())
    with checkpoints.opened(tmp_path / "run") as saved:
        assert saved.step("latest") == 6
    same(rj.train(config(), tmp_path / "run", dataset=PAIRS, model=net()), reference[1])


def test_evaluating_a_run_with_objects(reference):
    workdir, _ = reference
    moved = {"moved": dict(config().attacks.shift, source=str(workdir))}  # transferred from itself
    (report,) = rj.evaluate(workdir, moved, dataset=PAIRS, model=net(), progress=False).values()
    assert report["clean"]["accuracy"] > 0.5 and str(workdir) in str(report["attacks"]["moved"])


def test_what_helps_where_several_runs_have_objects(reference, tmp_path):
    workdir, _ = reference
    c = config(epochs=0.5)
    c.model.name = "mlp"
    rj.train(c, tmp_path / "named", dataset=PAIRS)
    moved = {"moved": dict(config().attacks.shift, source=str(workdir))}
    with pytest.raises(ValueError, match=r"attacks.moved.source=.* give the attack as .*Attack\(..., source=Source"):
        rj.evaluate(tmp_path / "named", moved, dataset=PAIRS, progress=False)
    rj.train(config(epochs=0.5), tmp_path / "other", dataset=PAIRS, model=Linen())
    with pytest.raises(ValueError, match="give the same. Runs with objects .* one at a time"):
        rj.evaluate([workdir, tmp_path / "other"], dataset=PAIRS, model=net(), progress=False)


def other_images():
    return ((255 - IMAGES[:96], LABELS[:96]), PAIRS[1])


@pytest.mark.parametrize(
    "function", [rj.load, rj.evaluate, lambda workdir, **given: rj.train(config(), workdir, **given)]
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: {"dataset": PAIRS},
            r"a model that was given as a Python object, 'object:Net#.*give it again.* model=",
        ),
        (lambda: {"model": net()}, r"a dataset that was given as a Python object.* dataset="),
        (lambda: {"dataset": other_images(), "model": net()}, "object:own#.*object:own#"),
        (lambda: {"dataset": PAIRS, "model": net(width=13)}, "object:Net#.*object:Net#"),
        (lambda: {"dataset": PAIRS, "model": Linen()}, "object:Net#.*object:Linen#"),
    ],
)
def test_what_is_missing_or_another_one_is_told(reference, function, given, message):
    with pytest.raises(ValueError, match=message):
        function(reference[0], **given())


def named(model):
    return Objects.of(PAIRS, model).model_name


class Scaled(nn.Module):
    num_classes: int = 3
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        return self.scale * nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Acting(nnx.Module):
    def __init__(self, num_classes=3, act=jnp.tanh, *, rngs):
        self.act, self.dense = act, nnx.Linear(30, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.act(self.dense(x.reshape(len(x), -1)))


def test_networks_that_compute_something_else_have_other_names():
    weights = Scaled().init(jax.random.key(0), jnp.zeros((1, 6, 5, 1)))
    pairs = [
        (partial(Scaled, scale=1.0), partial(Scaled, scale=-1.0)),
        ((Scaled(scale=1.0), weights), (Scaled(scale=-1.0), weights)),
        (Acting(act=jnp.tanh, rngs=nnx.Rngs(0)), Acting(act=jnp.abs, rngs=nnx.Rngs(0))),
        (lambda num_classes, rngs: Acting(num_classes, jnp.tanh, rngs=rngs),
         lambda num_classes, rngs: Acting(num_classes, jnp.abs, rngs=rngs)),
        (partial(Acting, act=jnp.tanh), partial(Acting, act=jnp.abs)),
        (Shifted(np.zeros(2000)), Shifted(np.zeros(2000) + (np.arange(2000) == 1000))),
    ]  # fmt: skip
    for one, other in pairs:
        assert named(one) != named(other)
    evaluated = Acting(rngs=nnx.Rngs(1))
    evaluated.eval()
    assert named(evaluated) == named(Acting(rngs=nnx.Rngs(0)))  # weights and mode are no part of it
    trained = net()
    trained.train()
    assert named(trained) == named(net(seed=1))


def test_a_class_of_nnx_with_some_arguments_set_is_trained(tmp_path):
    rj.train(config(epochs=0.5), tmp_path / "run", dataset=PAIRS, model=partial(Net, width=5))
    assert rj.load(tmp_path / "run", dataset=PAIRS, model=partial(Net, width=5)).variables
    with pytest.raises(ValueError, match="object:Net#.*object:Net#"):
        rj.load(tmp_path / "run", dataset=PAIRS, model=partial(Net, width=6))


@pytest.mark.parametrize("model", [TrainsByDefault, lambda: Masked(nnx.Rngs(0))])
def test_modules_that_train_by_default_or_hold_an_infinite_constant_are_trained(tmp_path, model):
    state = rj.train(config(epochs=0.4), tmp_path / "run", dataset=PAIRS, model=model())
    assert int(state.step) == 2 and int(state.failed_step) == -1


def test_other_labels_are_other_data():
    labels = LABELS.copy()
    labels[41] = (labels[41] + 1) % 3
    other = Objects.of(((IMAGES[:96], labels[:96]), PAIRS[1]), net())
    assert other.dataset_name != Objects.of(PAIRS, net()).dataset_name


def test_objects_that_a_run_does_not_need_are_refused(tmp_path):
    c = config()
    c.model.update(name="mlp", options={"hidden": (8,)})
    rj.train(c, tmp_path / "run", dataset=PAIRS)
    for function in (rj.load, rj.evaluate):
        with pytest.raises(ValueError, match="with the model 'mlp', which is found by its name: leave out model="):
            function(tmp_path / "run", dataset=PAIRS, model=net())
    assert rj.load(tmp_path / "run", dataset=PAIRS).dataset.num_classes == 3


def test_a_linen_module_starts_from_the_weights_that_are_given(tmp_path):
    variables = Linen().init(jax.random.key(4), IMAGES[:1] / 255, True)
    c = config(epochs=0.2)
    c.schedule.learning_rate = 0.0
    state = rj.train(c, tmp_path / "run", dataset=data.dataset(*PAIRS), model=(Linen(), variables))
    same(state.params, jax.device_get(variables["params"]))


def test_other_first_weights_are_another_run(reference, tmp_path):
    workdir, state = reference
    assert json.loads((workdir / "config.json").read_text())["model"]["first_weights"]
    same(rj.train(config(), workdir, dataset=PAIRS, model=net()).params, state.params)
    with pytest.raises(ValueError, match=r"of another config \(model.first_weights: '\w{8}' there, '\w{8}' now\)"):
        rj.train(config(), workdir, dataset=PAIRS, model=net(seed=1))
    saved = rj.load(workdir, dataset=PAIRS, model=net()).config
    with pytest.raises(ValueError, match="model.first_weights=.* training would start from random ones"):
        rj.train(saved, tmp_path / "run", dataset=PAIRS, model=Net)


def test_classes_are_made_with_the_options_of_the_config(tmp_path):
    c = config(epochs=0.2)
    c.model.options.width, c.model.mean = 7, (0.5,)
    state = rj.train(c, tmp_path / "run", dataset=data.from_arrays(IMAGES, LABELS), model=Net)
    assert state.params["inner"]["kernel"].shape == (30, 7)
    run = rj.load(tmp_path / "run", dataset=data.from_arrays(IMAGES, LABELS), model=Net)
    assert run.model.make.make is Net
    np.testing.assert_allclose(run.model.module(run.variables).mean, [0.5])


def changed(**keys):
    c = config()
    c.update_from_flattened_dict({path.replace("__", "."): value for path, value in keys.items()})
    return c


@pytest.mark.parametrize(
    ("given", "keys", "message"),
    [
        ({"dataset": 3}, {}, "dataset is 3: give a robust_jax.data.Dataset"),
        ({"dataset": (IMAGES,)}, {}, "dataset is a tuple: give"),
        ({"dataset": data.dataset(*PAIRS, validation=0.0)}, {}, "'own' has no validation images"),
        ({"dataset": PAIRS}, {"data__size": 6}, "data.size=6: images given as an object have a size"),
        ({"model": "Net"}, {}, "'Net' cannot be trained here"),
        (
            {"model": net(image_shape=(8, 8, 1))},
            {},
            r"the model 'object:Net#.*' fails for float32 \(2, 6, 5, 1\) images: ",
        ),
        ({"model": net()}, {"model__dtype": "bfloat16"}, "model.dtype='bfloat16': a model object has its own"),
        ({"model": Net(2, rngs=nnx.Rngs(0))}, {}, r"gives \(2, 2\) for \[2, 6, 5, 1\] images of 3 classes"),
        ({"model": net()}, {"model__mean": (0.25,), "model__std": (0.5,)}, "a model object .* normalises them itself"),
        ({"model": Net}, {"model__mean": (125.3,)}, "model.mean=.*125.3.* must be at most 1"),
        ({"model": net()}, {"epochs": -1.0}, "epochs=-1.0 must be above 0"),
    ],
)
def test_mistakes(tmp_path, given, keys, message):
    with pytest.raises(ValueError, match=message):
        rj.train(changed(**keys), tmp_path / "run", **({"dataset": PAIRS, "model": net()} | given))


def test_the_statistics_of_another_dataset_are_told(tmp_path, caplog):
    c = config(epochs=0.2)
    c.data.name, c.model.name = "digits", "mlp"
    c.model.update(mean=base("digits").model.mean, std=base("digits").model.std)
    with caplog.at_level(logging.WARNING):
        rj.train(c, tmp_path / "run", dataset=PAIRS)
    assert "model.mean and model.std are those of digits, and the images of object:own#" in caplog.text


def test_an_object_cannot_be_named_in_a_config(tmp_path):
    c = base("object:own#00000000", "mlp")
    c.terms.ce = dict(kind="cross_entropy", at="clean")
    with pytest.raises(ValueError, match="data.name='object:own#00000000' was a Python object: give it again"):
        rj.train(c, tmp_path / "run")
