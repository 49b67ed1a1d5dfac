"""A config is completed with every default and checked as a whole before any data is read.

A config file is short::

    from robust_jax.config import base, complete

    def get_config():
        c = base("mnist", "small_cnn")
        c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
        return complete(c)

The checks are those of the parts themselves: of their options by their signatures (`robust_jax.options`), and of all
else by calling them without computing anything (`robust_jax.config.dry_run`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from typing import Any

import jax
from ml_collections import ConfigDict

from robust_jax.attacks import ATTACKS
from robust_jax.checks import check_attack_names
from robust_jax.config import dry_run
from robust_jax.config.build import check_attack, create_model, every_attack
from robust_jax.config.defaults import CHOICES, RANGES, SPLITS, base, nominal_shape
from robust_jax.config.optimizers import OF_STEP, make_optimizer, make_schedule
from robust_jax.config.values import number
from robust_jax.data.augment import MIXING, augment, resize_images
from robust_jax.data.known import facts
from robust_jax.extensions import FILES, check_name, choose, find, is_object
from robust_jax.models import MODELS
from robust_jax.objectives.objective import make_objective
from robust_jax.objectives.points import POINTS
from robust_jax.objectives.terms import TERMS, every_term
from robust_jax.options import REQUIRED, Option, function_of, options_of, with_path
from robust_jax.options.hints import described

__all__ = ["KINDS", "SPLITS", "check", "complete", "number"]

# Section of a config -> (its built-in parts by name, the options that all of its entries have).
KINDS: dict[str, tuple[Mapping[str, Callable[..., Any]], dict[str, Option]]] = {
    "points": (POINTS, {}),
    "terms": (TERMS, options_of(every_term)),
    "attacks": (ATTACKS, options_of(every_attack)),
}


def complete(config: ConfigDict) -> ConfigDict:
    """The config with the default of every option of its points, terms and attacks, and all of it checked.

    Fractions such as "8/255" become numbers.

    Raises:
      ValueError: what `check` raises.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(f"config is {described(config)}: give a ConfigDict, made by robust_jax.config.base.")
    _check_form(config)
    config = config.copy_and_resolve_references()
    _check_keys(config.to_dict(), base())
    _check_names(config)
    for section in KINDS:
        for name, entry in config[section].items():
            config[section][name] = ConfigDict(with_defaults(section, name, entry))
    check(config)
    return config


def with_defaults(section: str, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A point, term or attack of a config with the default of every option that it lacks.

    Raises:
      ValueError: what `options_at` raises.
    """
    return _filled(entry, options_at(section, name, entry))


def options_at(section: str, name: str, entry: Mapping[str, Any]) -> dict[str, Option]:
    """The options of a point, term or attack of a config, those of its section first.

    Raises:
      ValueError: an unknown kind, or type hints that cannot be resolved.
    """
    known, own = KINDS[section]
    path = f"{section}.{name}"
    return own | with_path(path, options_of, function_of(f"{path}.kind", entry.get("kind"), known))


def _filled(entry: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """An entry with its options' defaults, and numbers in place of fractions."""
    defaults = {name: _plain(option.default) for name, option in options.items() if option.default is not REQUIRED}
    filled = defaults | {name: _value(options.get(name), value) for name, value in entry.items()}
    whole = {name for name, option in options.items() if option.is_whole}
    # 1 for 1.0 would make an override by 1.5 a type error.
    filled |= {name: float(value) for name, value in filled.items() if type(value) is int and name not in whole}
    schedules = {name: value for name, value in filled.items() if isinstance(value, Mapping | ConfigDict)}
    return filled | {name: {k: _float(number(v)) for k, v in value.items()} for name, value in schedules.items()}


def _value(option: Option | None, value: Any) -> Any:
    """A value as its option takes it: text that looks like a number stays text where text is expected."""
    return value if option is not None and option.is_text else number(value)


def _float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _plain(default: Any) -> Any:
    return getattr(default, "__name__", default) if callable(default) else default


def check(config: Mapping[str, Any]) -> None:
    """Checks names, options and combinations of a whole config.

    Raises:
      ValueError: the first mistake, with the path of its key and all valid choices.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    _check_keys(config, base())
    _check_names(config)
    _check_values(config)
    shape, classes = nominal_shape(config)
    # `create_model` is called again before training, then with the axis of sync_batch_norm.
    if not is_object(config["model"]["name"]):
        create_model({**config, "sync_batch_norm": False}, classes, shape)
    for name, spec in config["attacks"].items():
        dry_run.ignoring_libraries(check_attack, f"attacks.{name}", spec, shape, classes)
    make_objective(config["points"], config["terms"])
    dry_run.ignoring_libraries(dry_run.of_objective, config["points"], config["terms"], shape, classes)
    if any(config["data"]["augment"][name] for name in MIXING):
        dry_run.ignoring_libraries(dry_run.of_soft_labels, config["points"], config["terms"], shape, classes)
    _check_finite_differences(config)


def _check_form(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a section that is no group of parts, and for a whole number that no float can hold."""
    for section in KINDS:
        entries = config.get(section, {})
        if not _is_group(entries):
            raise ValueError(f"{section}={entries!r}: give a dict of names.")
        for name, entry in entries.items():
            if not _is_group(entry):
                raise ValueError(f"{section}.{name}={entry!r}: give dict(kind=..., **options).")
    for path, value in _leaves(config):
        if type(value) is int and value.bit_length() > 1000:
            raise ValueError(f"{path} is a whole number of {value.bit_length()} bits: give a finite number.")


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping | ConfigDict)


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The path and value of every key; the entries of a tuple have its path."""
    for key, value in config.items():
        inner = f"{path}.{key}" if path else str(key)
        if _is_group(value):
            yield from _leaves(value, inner)
        else:
            yield from ((inner, entry) for entry in (value if isinstance(value, tuple | list) else [value]))


def _check_keys(config: Mapping[str, Any], template: Mapping[str, Any], path: str = "") -> None:
    """Raises ValueError for a key that `base` does not have, or one that is missing."""
    for key in sorted({*config} ^ {*template}):
        state = "is unknown" if key in config else "is missing"
        raise ValueError(f"{path}{key} {state}: the keys there are {sorted(template)}.")
    for key, value in template.items():
        if _is_group(value) and not _is_group(config[key]):
            raise ValueError(f"{path}{key}={config[key]!r} must be a group of keys.")
        if _is_group(value) and key not in (*KINDS, "options"):
            _check_keys(config[key], value, f"{path}{key}.")


def _check_names(config: Mapping[str, Any]) -> None:
    """Raises ValueError for names of points, terms and attacks that cannot stand in files and on screens."""
    for section in KINDS:
        if not _is_group(config[section]):
            raise ValueError(f"{section}={config[section]!r}: give a dict of names.")
        for name in config[section]:
            check_name(section, name)
    check_attack_names(config["attacks"])


def _check_values(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a plain value out of its choices or range, see `robust_jax.config.defaults`."""
    check_plain(config)
    for path in ("schedule.boundaries", "evaluation.signs", "writers"):
        if not isinstance(_at(config, path), tuple | list):
            raise ValueError(f"{path}={_at(config, path)!r}: give a tuple.")
    dataset = config["data"]["name"]
    if not is_object(dataset) and (not dataset.strip() or ".." in dataset and dataset.partition(":")[0] not in FILES):
        raise ValueError(f"data.name={dataset!r} is no name of a dataset.")
    if not all(isinstance(name, str) for name in config["model"]["options"]):
        raise ValueError(f"model.options={config['model']['options']!r}: give names of the model's fields.")
    if not is_object(config["model"]["name"]):
        find("model.name", config["model"]["name"], MODELS)
    choose("select_by", config["select_by"], ("clean", *config["attacks"]))
    schedule = make_schedule(**config["schedule"], epochs=config["epochs"], steps_per_epoch=100)
    if known := facts(config["data"]["name"]):  # others are checked once they are loaded
        check_images(config, known.image_shape, known.num_classes)
    make_optimizer(schedule, **{name: v for name, v in config["optimizer"].items() if name not in OF_STEP})


def check_plain(config: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError for a number, bool or text of the wrong type, out of its range, or not among its choices."""
    for path, choices in CHOICES.items():
        choose(prefix + path, _at(config, path), choices)
    for path, option in plain_options().items():
        option.check(prefix + path, _at(config, path))


@functools.cache
def plain_options() -> dict[str, Option]:
    """The keys of a config that hold a number, a bool or text, as options: of their defaults' types, and in range."""
    found = {}
    for path, default in _leaves({k: v for k, v in base().to_dict().items() if k not in (*KINDS, "writers")}):
        notes = (RANGES[path],) if path in RANGES else ()
        hint = type(default) if path not in RANGES or not RANGES[path].tuples else Any
        found[path] = Option(path, hint, default, notes)
    return found | {"schedule.boundaries": Option("boundaries", Any, (), (RANGES["schedule.boundaries"],))}


def check_images(config: Mapping[str, Any], *shape_and_classes: Any) -> None:
    """Raises ValueError for augmentation, or a size for evaluation, that images of a shape cannot have."""
    shapes = dry_run.batch(*shape_and_classes)
    options = {name: value for name, value in config["data"]["augment"].items() if name not in MIXING}
    with_path("data.augment", jax.eval_shape, partial(augment, **options), shapes.images, shapes.keys)
    resized = partial(resize_images, resize=config["data"]["eval_resize"])
    with_path("data.eval_resize", jax.eval_shape, resized, shapes.images)


def _at(config: Mapping[str, Any], path: str) -> Any:
    return reduce(operator.getitem, path.split("."), config)


def _check_finite_differences(config: Mapping[str, Any]) -> None:
    """Raises ValueError for terms by finite differences where model or devices make them meaningless."""
    for name, term in config["terms"].items():
        path = f"terms.{name}.method=finite_difference"
        if term.get("method") != "finite_difference":
            continue
        for key, dtype in (("model.dtype", config["model"]["dtype"]), ("precision", config["precision"])):
            if dtype != "float32":
                raise ValueError(f"{path} needs {key}=float32, not {dtype}: its step is lost in fewer digits.")
        if config["sync_batch_norm"]:
            raise ValueError(
                f"{path} moves the examples of each device by a scale of their own, which sync_batch_norm couples: "
                f"use double_backprop or directional."
            )
