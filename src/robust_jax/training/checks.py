"""What is checked when everything that a config describes has been built: now, not after hours of training."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from robust_jax import data, models, parallel
from robust_jax.checks import called
from robust_jax.config import build
from robust_jax.config.defaults import base
from robust_jax.config.objects import Objects
from robust_jax.config.validation import check_images
from robust_jax.data.known import STATISTICS, facts
from robust_jax.extensions import modules_of
from robust_jax.workdir import saved_config


def check_against(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError if the batch, the augmentation or an attack does not suit the data."""
    if config.batch_size > len(dataset.train):
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {len(dataset.train)} training images (data.limit and "
            f"data.validation leave no more): lower it."
        )
    if not len(dataset.validation):
        raise ValueError(f"the dataset {dataset.name!r} has no validation images: checkpoints are chosen on them.")
    check_images(config.to_dict(), dataset.image_shape, dataset.num_classes)
    for name, spec in config.attacks.items():
        build.check_attack(f"attacks.{name}", spec, dataset.image_shape, dataset.num_classes)


def check_logits(name: str, model: models.Network, variables: Mapping[str, Any], dataset: data.Dataset) -> None:
    """Raises ValueError for a model of the user's own that does not give one logit per class."""
    images = jax.ShapeDtypeStruct((2, *dataset.image_shape), np.float32)
    bound = models.bind(model, variables)
    logits = called(f"the model {name!r}", lambda x: jax.eval_shape(bound, x), images)
    expected = (2, dataset.num_classes)
    if getattr(logits, "shape", None) != expected:
        shown = getattr(logits, "shape", None) or f"a {type(logits).__name__}"
        raise ValueError(
            f"the model {name!r} gives {shown} for {list(images.shape)} images of {dataset.num_classes} classes: it "
            f"must give logits of shape {expected}."
        )


def check_hosts_agree(config: ConfigDict, dataset: data.Dataset, state: Any) -> None:
    """Raises ValueError if hosts would train different things, whose gradients would be averaged all the same."""
    if not parallel.has_peers():
        return
    splits = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    leaves = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
    own = {
        "config": json.dumps(saved_config.decisive(config), sort_keys=True).encode(),
        "number of images": str(splits).encode(),
        "first weights": leaves,
    }
    found = parallel.gathered([zlib.crc32(content) >> 1 for content in own.values()])
    for name, numbers in zip(own, found.T, strict=True):
        if others := np.flatnonzero(numbers != numbers[0]).tolist():
            raise ValueError(
                f"the {name} of process {', '.join(map(str, others))} is not that of process 0: start all hosts with "
                f"the same command, from the same files, with the same data and versions."
            )


def warn_of_newer_code(config: ConfigDict, checkpoint: Path) -> None:
    """Warns of modules of parts of one's own that were changed after a checkpoint was saved: none of its steps knew."""
    saved = checkpoint.stat().st_mtime
    files = [getattr(sys.modules.get(module), "__file__", None) for module in modules_of(config.to_dict())]
    if newer := [file for file in files if file and Path(file).stat().st_mtime > saved]:
        logging.warning("%s changed after %s was saved: if what it computes did, train in another workdir.",
                        ", ".join(newer), checkpoint)  # fmt: skip


def warn(config: ConfigDict, objects: Objects) -> None:
    """Warns of what may be meant, and probably is not."""
    _warn_of_unused_points(config)
    _warn_of_missing_sources(config)
    _warn_of_schedule(config)
    _warn_of_idle_keys(config)
    if objects.network is None:
        _warn_of_statistics(config)


def _warn_of_unused_points(config: ConfigDict) -> None:
    names = {value for term in config.terms.values() for value in term.values() if isinstance(value, str)}
    if unused := sorted({*config.points} - names):
        logging.warning("No term uses the points %s: name one in a term's `at` if it should.", unused)


def _warn_of_missing_sources(config: ConfigDict) -> None:
    """Models that transfer attacks attack may be trained after this one, but before it is evaluated."""
    for name, attack in config.attacks.items():
        source = attack.get("source")
        if source and not Path(source).expanduser().is_dir():
            logging.warning("attacks.%s.source=%s: there is no such workdir yet; an evaluation needs it.", name, source)


def _warn_of_schedule(config: ConfigDict) -> None:
    """Decays or a warm-up beyond the end: often only ``epochs`` was changed."""
    schedule, ends = config.schedule, config.epochs
    late = [f"boundaries={b:g}" for b in schedule.boundaries if b >= ends] if schedule.name == "piecewise" else []
    late += [f"warmup_epochs={schedule.warmup_epochs:g}"] if schedule.warmup_epochs >= ends else []
    if late:
        logging.warning("schedule: %s is not reached in epochs=%g: set both.", ", ".join(late), ends)


# What alone reads some keys of its section.
_READERS = {"schedule": ("piecewise", ("boundaries", "factor")), "optimizer": ("sgd", ("momentum", "nesterov"))}


def _warn_of_idle_keys(config: ConfigDict) -> None:
    """Keys that were set, and that the schedule or optimiser does not read: often only its name was changed."""
    defaults = base()
    for section, (reader, keys) in _READERS.items():
        name = config[section].name
        for key in keys if name != reader else ():
            if (value := config[section][key]) and value != defaults[section][key]:
                logging.warning("%s.%s=%s has no effect with %s.name=%s: only %s reads it.",
                                section, key, value, section, name, reader)  # fmt: skip


def _warn_of_statistics(config: ConfigDict) -> None:
    """A config made for one dataset normalises the images of another as it would its own."""
    given = tuple(np.ravel(config.model.mean)), tuple(np.ravel(config.model.std))
    own = facts(config.data.name)
    known = [name for name, statistics in STATISTICS.items() if statistics == given]
    if known and (own is None or (own.mean, own.std) != given):
        logging.warning(
            "model.mean and model.std are those of %s, and the images of %s: set both for these images "
            "(robust_jax.data.statistics computes them), or to 0 and 1.",
            known[0],
            config.data.name,
        )
