"""Experiment configs: plain data (ml_collections), every key in one place, checked before anything runs.

A config file is short::

    from robust_jax.config import base, complete

    def get_config():
        c = base("mnist", "small_cnn")
        c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
        return complete(c)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import jax
from ml_collections import ConfigDict

from robust_jax import attacks, checkpoints, losses, models, norms, perturbations
from robust_jax.attacks.ascent import KEEP, check_effort
from robust_jax.attacks.auto import VERSIONS
from robust_jax.attacks.deepfool import check_search
from robust_jax.attacks.ead import RULES
from robust_jax.checks import check_attack_name, check_options, choose, options_of
from robust_jax.gradients import METHODS
from robust_jax.objectives import make_objective
from robust_jax.optimizers import OPTIMIZERS, SCHEDULES
from robust_jax.points import MODES, POINTS, SEARCHES
from robust_jax.terms import TERMS
from robust_jax.threat_models import ThreatModel

PRECISIONS = ("float32", "tensorfloat32", "bfloat16", "default")
DTYPES = ("float32", "bfloat16")
SPLITS = ("test", "validation", "train")
# Section of a config -> (its kinds, the options that all kinds have, with their defaults).
KINDS: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
    "points": (POINTS, {}),
    "terms": (TERMS, {"at": "clean", "weight": 1.0}),
    "attacks": (attacks.ATTACKS, {"perturbation": None, "norm": "linf", "radius": None, "curve": (), "source": ""}),
}

# Options of points, terms and attacks that are one of a few names.
CHOICES: dict[str, Any] = {
    "loss": losses.LOSSES, "keep": KEEP, "method": METHODS, "batch_norm": MODES, "search": SEARCHES,
    "version": VERSIONS, "rule": RULES,
}  # fmt: skip
POSITIVE = ("epochs", "batch_size", "eval_every_epochs", "log_every_steps", "evaluation.batch_size")
NOT_NEGATIVE = (
    "seed", "select_limit", "checkpoint_every_steps", "data.eval_resize", "optimizer.adversarial_weights",
    "optimizer.clip_norm", "optimizer.max_norm", "optimizer.weight_decay", "schedule.learning_rate",
    "schedule.warmup_epochs", "evaluation.limit", "evaluation.checks", "evaluation.pictures",
)  # fmt: skip
NUMERIC = ("weight", "radius", "sigma", "step_size", "scale", "curve")  # numbers, or tuples of them

STATISTICS = {  # mean and standard deviation of the training images, in [0, 1]
    "digits": ((0.305,), (0.376,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def base(dataset: str = "digits", model: str = "digits_cnn") -> ConfigDict:
    """Every key with its default; an experiment adds terms (and points, attacks) and changes what it needs."""
    mean, std = STATISTICS.get(dataset, ((0.0,), (1.0,)))
    return ConfigDict(
        {
            "seed": 0,
            "epochs": 10.0,
            "batch_size": 128,  # over all devices of all hosts
            # Of matrix products: float32, or the faster tensorfloat32, bfloat16, default (the device's own choice).
            "precision": "float32",
            "data": {
                "name": dataset,
                "data_dir": "",  # of prepared TFDS datasets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets
                "validation": 0.1,  # the fraction of the training split that checkpoints are chosen on
                "limit": 0,  # train on the first so many images only; 0: all
                "augment": {"resize": 0, "padding": 0, "flip": False},
                "eval_resize": 0,  # resize and centre-crop of validation and test images
            },
            # mean, std: normalisation inside the model. dtype: of its computations, float32 or bfloat16.
            "model": {"name": model, "mean": mean, "std": std, "dtype": "float32", "options": {}},
            "sync_batch_norm": False,  # batch statistics over all devices instead of each device's own
            "optimizer": {
                "name": "sgd",
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "decay_batch_norm": True,
                "clip_norm": 0.0,
                "max_norm": 0.0,  # the largest norm of a unit's incoming weights; 0: any
                # The weights' gradient is taken after a step of so much of each layer's norm uphill (AWP); 0: at them.
                "adversarial_weights": 0.0,
                "ema": 0.0,  # decay of an average of weights and BatchNorm statistics, used to evaluate; 0: none
            },
            "schedule": {
                "name": "constant",
                "learning_rate": 0.01,
                "boundaries": (),  # epochs
                "factor": 0.1,
                "warmup_epochs": 0.0,
            },
            "points": {},
            "terms": {},
            "select_by": "clean",  # validation accuracy that chooses the best checkpoint: clean, or a name in attacks
            "select_limit": 0,  # validation images for that; 0: all
            "eval_every_epochs": 1.0,
            "checkpoint_every_steps": 0,  # beside those after each evaluation
            "log_every_steps": 50,
            "attacks": {},
            "evaluation": {
                "split": "test",
                "limit": 0,  # the first so many examples; 0: all
                "batch_size": 250,  # halved where memory runs out
                "checkpoint": "best",
                # Each attack sees only what no attack before it has broken: the same worst case, sooner; no curves.
                "worst_case_only": False,
                "checks": 64,  # images tried further for signs of masked gradients; 0: none
                "pictures": 10,  # of each attack so many examples are drawn, at most 10
            },
        },
        convert_dict=True,
    )


def number(value: Any) -> Any:
    """The number that a string spells, "8/255" or "0.5"; other values as they are, tuples entry by entry."""
    if isinstance(value, tuple | list):
        return tuple(map(number, value))
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return value


def _is_numeric(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def complete(config: ConfigDict) -> ConfigDict:
    """The config with each point's, term's and attack's options filled in and all of it checked.

    Fractions such as "8/255" become numbers.

    Raises:
      ValueError: what `check` finds.
    """
    config = config.copy_and_resolve_references()
    for section, (known, own) in KINDS.items():
        for name, entry in config[section].items():
            given = {k: number(v) for k, v in entry.items()}
            options = options_of(known[entry.kind]) if entry.get("kind") in known else {}
            defaults = {n: _default(p.default) for n, p in options.items() if p.default is not p.empty}
            filled = own | defaults | given
            # 1 for 1.0 would make an override by 1.5 a type error.
            whole = {n for n, p in options.items() if p.annotation in ("int", "bool")}
            filled |= {k: float(v) for k, v in filled.items() if type(v) is int and k not in whole}
            schedules = {k: v for k, v in filled.items() if isinstance(v, ConfigDict)}
            filled |= {k: {n: _float(number(x)) for n, x in v.items()} for k, v in schedules.items()}
            config[section][name] = ConfigDict(filled)
    check(config)
    return config


def _float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _default(value: Any) -> Any:
    return getattr(value, "__name__", value) if callable(value) else value


def check(config: Mapping[str, Any]) -> None:
    """Checks names, options and combinations of a whole config.

    Raises:
      ValueError: the first mistake, with the path of its key and all valid choices.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    _check_keys(config, base())
    choose("precision", config["precision"], PRECISIONS)
    choose("model.name", config["model"]["name"], models.MODELS)
    choose("model.dtype", config["model"]["dtype"], DTYPES)
    choose("optimizer.name", config["optimizer"]["name"], OPTIMIZERS)
    choose("schedule.name", config["schedule"]["name"], SCHEDULES)
    choose("evaluation.split", config["evaluation"]["split"], SPLITS)
    choose("evaluation.checkpoint", config["evaluation"]["checkpoint"], checkpoints.KINDS)
    choose("select_by", config["select_by"], ("clean", *config["attacks"]))
    for path in (*POSITIVE, *NOT_NEGATIVE):
        value: Any = reduce(operator.getitem, path.split("."), config)
        if path in POSITIVE and not value > 0:
            raise ValueError(f"{path}={value!r} must be above 0.")
        if not value >= 0:
            raise ValueError(f"{path}={value!r} must not be negative.")
    if not 0 <= config["optimizer"]["ema"] < 1:
        raise ValueError(f"optimizer.ema={config['optimizer']['ema']!r} is a decay: 0 (none) <= ema < 1.")
    if not config["data"]["validation"] > 0:
        raise ValueError("data.validation must be above 0: checkpoints are chosen on the validation split.")
    for section, (known, own) in KINDS.items():
        for name, entry in config[section].items():
            path = f"{section}.{name}"
            check_options(path, entry, known, own)
            for option in set(NUMERIC) & set(entry):
                value = entry[option]
                if isinstance(value, Mapping | None):
                    continue
                if not _is_numeric(value) or (option == "weight" and isinstance(value, tuple)):
                    tuples = "" if option == "weight" else ", or a tuple"
                    raise ValueError(f"{path}.{option}={value!r}: give a finite number, or one as 8/255{tuples}.")
                if option == "sigma" and min(jax.tree.leaves(value)) < 0:
                    raise ValueError(f"{path}.sigma={value!r} must not be negative.")
            if not 0 <= entry.get("label_smoothing", 0) < 1:
                raise ValueError(f"{path}.label_smoothing={entry['label_smoothing']!r} must be from 0 to below 1.")
            for option in set(CHOICES) & set(entry):
                choose(f"{path}.{option}", entry[option], CHOICES[option])
            try:
                if "radius" in entry:
                    radius = entry["radius"]  # a schedule of it is checked with the objective
                    ThreatModel(entry["perturbation"], entry["norm"], 0.0 if isinstance(radius, Mapping) else radius)
                elif "perturbation" in entry:
                    perturbations.get(entry["perturbation"])
                    norms.exponent(entry.get("norm", "l2"))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if section == "attacks":
                if schedules := sorted(k for k, v in entry.items() if isinstance(v, Mapping)):
                    raise ValueError(f"{path} has schedules {schedules}: an attack of an evaluation has numbers.")
                check_attack(path, entry)
            if "steps" in entry:
                names = ("restarts", "random_start", "keep", "early_stop")
                check_effort(path, entry["steps"], **{name: entry[name] for name in names if name in entry})
            if entry.get("optimizer") is not None:
                choose(f"{path}.optimizer", entry["optimizer"], attacks.ascent.OPTIMIZERS)
            if entry.get("gradient") is not None:
                norms.exponent(entry["gradient"])
            if min(entry.get("refresh", 1), entry.get("examples", 1), entry.get("epochs", 1)) < 1:
                raise ValueError(f"{path}: refresh, examples and epochs must be at least 1.")
            if "overshoot" in entry:
                check_search(path, entry["steps"], entry["overshoot"], entry["candidates"])
            if entry.get("method") == "finite_difference" and config["model"]["dtype"] != "float32":
                raise ValueError(
                    f"{path}.method=finite_difference needs model.dtype=float32: its step is lost in bfloat16."
                )
            if entry.get("method") == "finite_difference" and config["sync_batch_norm"]:
                raise ValueError(
                    f"{path}.method=finite_difference moves each device's examples by a scale of its own, which "
                    f"sync_batch_norm couples: use double_backprop or directional."
                )
    make_objective(config["points"], config["terms"])


def check_attack(path: str, attack: Mapping[str, Any]) -> ThreatModel:
    """The threat model of an attack of an evaluation.

    Raises:
      ValueError: one that this kind of attack cannot have; a targeted attack: towards the true label it would help the
        model; AutoAttack for random models, whose logits ask for a key.
    """
    check_attack_name(path.split(".")[-1])
    if attack.get("targeted"):
        raise ValueError(f"{path}.targeted: an evaluation knows true labels only, which are no targets.")
    if attack.get("version") == "rand":
        raise ValueError(
            f"{path}.version='rand' is for models that take (images, key): call attacks.auto_attack with yours; "
            f"an evaluation's has no randomness, so take 'standard' or 'plus'."
        )
    threat = ThreatModel(attack["perturbation"], attack.get("norm", "linf"), attack["radius"])
    if attack["kind"] in attacks.ASKED:
        attacks.ASKED[attack["kind"]](path, threat)
    return threat


def _check_keys(config: Mapping[str, Any], template: Mapping[str, Any], path: str = "") -> None:
    """Raises ValueError for a key that `base` does not have, or one that is missing."""
    for key in sorted({*config} ^ {*template}):
        state = "is unknown" if key in config else "is missing"
        raise ValueError(f"{path}{key} {state}: the keys there are {sorted(template)}.")
    for key, value in template.items():
        if isinstance(value, Mapping | ConfigDict) and key not in (*KINDS, "options"):
            _check_keys(config[key], value, f"{path}{key}.")
