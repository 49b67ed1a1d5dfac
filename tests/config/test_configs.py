"""Every config of the package loads, is complete, and builds its model and objective; no data is read."""

from __future__ import annotations

import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from robust_jax import cli, configs, models
from robust_jax.config import build, complete, optimizers
from robust_jax.config.command_line import overridden
from robust_jax.config.methods import METHODS
from robust_jax.configs import cifar10_methods
from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import make_objective

FOLDER = Path(configs.__file__).parent
FILES = cli.config_names()
NAMES = [
    *FILES,
    *(f"digits_methods:{method}" for method in METHODS),
    "mnist_methods:lfr",
    "cifar10_methods:lfr",
    "svhn_methods:adt",
]
SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    **dict.fromkeys(("cifar10", "cifar100", "svhn_cropped"), (32, 32, 3)),
}


def test_there_are_configs():
    assert len(FILES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_config(name):
    config = cli.load_config(name)
    assert complete(config).to_dict() == config.to_dict()
    assert overridden(config, ["--config.seed=3"]).seed == 3
    assert config.data.name == {"svhn": "svhn_cropped"}.get(name.split("_")[0], name.split("_")[0])
    assert config.attacks and (FOLDER / f"{name.split(':')[0]}.py").read_text().startswith('"""')

    classes = 100 if config.data.name == "cifar100" else 10
    images = jax.ShapeDtypeStruct((4, *SHAPES[config.data.name]), jnp.float32)
    model = build.create_model(config, classes)
    jax.eval_shape(model.init, jax.random.key(0), images)
    if ":" in name:  # a method sees its model from outside: a small one is traced in its place
        model = models.create("mlp", num_classes=classes, hidden=(8,))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def run(variables, images):
        def train(x):
            logits, new = model.apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            )
            return logits, new.get("batch_stats", {})

        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
        seen = Model(train, lambda x: model.apply(variables, x, train=False))
        objective, labels = make_objective(config.points.to_dict(), config.terms.to_dict()), jnp.zeros(4, int)
        memory = objective.remember(lambda n: (jnp.zeros((n, *images.shape[1:])), jnp.zeros(n, int)), classes)
        return objective.loss(seen, objective.find(seen, images, labels, keys, memory), labels)

    total, outcome = jax.eval_shape(run, variables, images)
    assert total.shape == () and total.dtype == jnp.float32 and set(outcome.terms) == set(config.terms)

    schedule = optimizers.make_schedule(**config.schedule, epochs=config.epochs, steps_per_epoch=100)
    of_optax = {k: v for k, v in config.optimizer.items() if k not in optimizers.OF_STEP}
    optimizer = optimizers.make_optimizer(schedule, **of_optax)
    jax.eval_shape(optimizer.init, variables["params"])


@pytest.mark.parametrize("method", cifar10_methods.PAPERS)
def test_the_papers_settings_are_keys_of_their_methods(method):
    config = cifar10_methods.get_config(method)
    model, radius, keys = cifar10_methods.PAPERS[method]
    assert (config.model.name, config.attacks.additive.radius) == (model, radius)
    for path, value in keys.items():
        assert operator.attrgetter(path)(config) == value


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_settings_of_the_fgr_paper_differ_from_those_of_its_repository_in_what_it_says(dataset):
    newest, paper = (
        flatten_dict(cli.load_config(name).to_dict(), sep=".")
        for name in ("cifar10_reference_methods:fgr", f"{dataset}_fgr_paper:fgr")
    )
    changed = {key: value for key, value in paper.items() if newest[key] != value and not key.startswith("model.")}
    assert changed.pop("data.name", "cifar10") == dataset
    assert changed == {
        "batch_size": 256,
        "schedule.learning_rate": 0.1,
        "data.augment.resize": 0,
        "data.augment.padding": 4,
        "data.eval_resize": 0,
        "terms.fgr.weight": 1.10,
    }
    assert paper["model.name"] == "vgg13"
    assert paper["points.warped.sigma"] == newest["points.warped.sigma"] == pytest.approx(0.01 * 31 / 2)
    control = cli.load_config(f"{dataset}_fgr_paper:random_flow")  # λ = 0 has the random start too
    assert control.points.warped.sigma == paper["points.warped.sigma"] and list(control.terms) == ["ce"]


@pytest.mark.parametrize(
    ("name", "batch", "weight"),
    [("cifar10_fgr_paper", 256, 1.10), ("cifar100_fgr_paper", 256, 1.10), ("cifar10_vgg11_fgr", 128, 4.40)],
)
def test_the_weight_of_fgr_is_the_papers_coefficient_of_300(name, batch, weight):
    config = cli.load_config(name)
    assert (config.batch_size, config.terms.fgr.weight) == (batch, weight)
    assert weight == pytest.approx(300 / batch**2 * (31 / 2) ** 2, abs=5e-3)


def test_an_unknown_method_lists_all():
    with pytest.raises(ValueError, match="'tradse' is unknown.*'trades'"):
        cli.load_config("digits_methods:tradse")
