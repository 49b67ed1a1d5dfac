"""What a config describes, built: the dataset, the model and its first variables, attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import data, models, parallel
from robust_jax.attacks import ATTACKS
from robust_jax.attacks.define import about
from robust_jax.checks import called, check_attack_name, check_curve
from robust_jax.config import dry_run
from robust_jax.config.objects import NONE, Objects
from robust_jax.config.values import number
from robust_jax.extensions import is_object
from robust_jax.models.network import LinenNetwork, Network, NNXNetwork
from robust_jax.options import Range, arguments, check_options, function_of, options_of, with_path
from robust_jax.spaces.checks import warn_of_radius
from robust_jax.spaces.threat_models import Threat, ThreatModel


def load_dataset(config: Mapping[str, Any], objects: Objects = NONE) -> data.Dataset:
    """The dataset of a config, its training split cut to ``data.limit``.

    Raises:
      ValueError: what `robust_jax.data.load` raises; a dataset object that is not given; images whose fingerprint is
        another one than that of the config, if it has one.
    """
    c = config["data"]
    if objects.dataset is not None:
        dataset = objects.split(config)
    elif is_object(c["name"]):
        raise ValueError(f"data.name={c['name']!r} was a Python object: give it again, in Python, by dataset=...")
    else:
        own = {option: c[option] for option in ("size", "resize", "test")}
        dataset = data.load(c["name"], c["data_dir"] or None, c["validation"], config["seed"], **own)
    if c["limit"]:
        if not 0 < c["limit"] <= len(dataset.train):
            raise ValueError(f"data.limit={c['limit']}: give 1 to {len(dataset.train)} training images, or 0 for all.")
        few = np.random.RandomState(config["seed"]).permutation(len(dataset.train))[: c["limit"]]
        dataset = data.Dataset(**{**vars(dataset), "train": dataset.train.subset(np.sort(few))})
    if c["fingerprint"] and c["fingerprint"] != (now := data.fingerprint(dataset)):
        raise ValueError(
            f"the images of data.name={c['name']!r} are not those that the run was trained with: their fingerprint is "
            f"{now!r}, not data.fingerprint={c['fingerprint']!r}. Put back those, or train another run on these."
        )
    return dataset


def create_model(
    config: Mapping[str, Any],
    num_classes: int,
    image_shape: tuple[int, ...] | None = None,
    objects: Objects = NONE,
) -> Network:
    """The model of a config; with ``sync_batch_norm`` its batch statistics are those of all devices.

    Raises:
      ValueError: what `robust_jax.models.create` raises; a model object that is not given.
    """
    c = config["model"]
    if objects.network is not None:
        return objects.network
    if objects.model is None and is_object(c["name"]):
        raise ValueError(f"model.name={c['name']!r} was a Python object: give it again, in Python, by model=...")
    options = dict(c["options"])
    if config["sync_batch_norm"]:
        options["batch_norm_axis"] = parallel.AXIS
    try:
        return models.create(
            objects.model or c["name"],
            num_classes=num_classes, mean=c["mean"], std=c["std"], dtype=jnp.dtype(c["dtype"]), image_shape=image_shape,
            **options,
        )  # fmt: skip
    except ValueError as error:
        if "no field 'batch_norm_axis'" not in str(error):
            raise
        raise ValueError(
            f"sync_batch_norm=True: the model {c['name']!r} has no BatchNorm that could be synchronised "
            f"(batch_norm_axis); leave it False."
        ) from error


def init_variables(model: Network, image_shape: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Initial parameters and statistics: those that the model came with, or drawn from the seed.

    Raises:
      ValueError: a model without parameters, or with variables that training does not keep.
    """
    if isinstance(model, LinenNetwork | NNXNetwork) and model.held is not None:
        return models.checked_variables(model.held)
    if isinstance(model, NNXNetwork):
        return models.checked_variables(model.init(jax.random.key(seed)))
    # It runs once, and XLA's CPU backend takes ten seconds and more to optimise what draws random kernels.
    options = {"xla_backend_optimization_level": 1} if parallel.on_cpu() else None
    init = jax.jit(model.init, compiler_options=options)
    images = jnp.zeros((1, *image_shape))
    drawn = called("the model", partial(init, jax.random.key(seed)), images)
    kept = {name: drawn[name] for name in models.COLLECTIONS if drawn.get(name)}
    try:
        called("the model", partial(jax.eval_shape, model.apply, kept), images)
    except ValueError as error:
        if isinstance(error.__cause__, flax.errors.FlaxError):
            models.checked_variables(drawn)  # says which variables are missing
        raise
    return models.checked_variables(kept)


def shapes_of_variables(model: Network, image_shape: tuple[int, ...]) -> Any:
    """The shapes of a model's variables, without computing them."""
    if isinstance(model, NNXNetwork):
        return model.shapes
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


class AttackSpec(NamedTuple):
    """An attack of a config.

    Attributes:
      function: ``(logits_fn, images, labels, threat, *, key, **settings) -> AttackResult``.
      threat: the ball.
      settings: keyword arguments of the function.
      curve: multiples of the radius at which the accuracy is measured too.
      source: the workdir of the model that is attacked in place of the one evaluated; "" for none.
    """

    function: Callable[..., Any]
    threat: ThreatModel
    settings: dict[str, Any]
    curve: tuple[float, ...]
    source: str


def every_attack(*, threat: Threat, curve: Annotated[Any, Range(least=0, tuples=True)] = (), source: str = "") -> None:
    """The options of every attack of a config, besides those of the attack itself."""


def build_attack(path: str, spec: Mapping[str, Any]) -> AttackSpec:
    """An attack from its entry in a config: kind, perturbation, norm, radius, curve, source, and its own options.

    Args:
      path: of the entry in the config, for messages.
      spec: ``dict(kind=..., **options)``; ``kind`` is a name in `robust_jax.attacks.ATTACKS` or ``module:name``.

    Raises:
      ValueError: an unknown kind or option, with all valid ones; a wrong value; a threat model that the attack cannot
        have; a schedule; ``targeted``, as the true labels of an evaluation are no targets.
    """
    check_attack_name(path.partition(".")[2])
    function = function_of(f"{path}.kind", spec.get("kind"), ATTACKS)
    text = {name for name, option in (options_of(every_attack) | options_of(function)).items() if option.is_text}
    spec = {name: value if name in text else number(value) for name, value in spec.items()}
    if schedules := sorted(name for name, value in spec.items() if isinstance(value, Mapping)):
        raise ValueError(f"{path} has schedules {schedules}: an attack of an evaluation has numbers.")
    check_curve(f"{path}.curve", spec.get("curve", ()))
    check_options(path, spec, function, options_of(every_attack))
    if spec.get("targeted"):
        raise ValueError(f"{path}.targeted: an evaluation knows true labels only, which are no targets.")
    entry = {"curve": (), "source": ""} | with_path(path, arguments, every_attack, spec)
    if (known := about(function)) and known.check:
        known.check(path, entry["threat"])
    warn_of_radius(entry["threat"])
    own = {name: value for name, value in spec.items() if name in options_of(function)}
    return AttackSpec(function, entry["threat"], arguments(function, own), tuple(entry["curve"]), entry["source"])


def check_attack(path: str, spec: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int) -> None:
    """Calls an attack of a config on images of a shape, without computing anything.

    Raises:
      ValueError: what `build_attack` raises, and what the attack itself raises, beginning with the path.
    """
    function, threat, settings, _, _ = build_attack(path, spec)
    dry_run.of_attack(path, function, threat, settings, tuple(image_shape), num_classes)
