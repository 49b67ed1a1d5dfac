"""Shared by benchmarks: configs by name, the images of finished runs, and the rows that a flag names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from robust_jax import cli, losses, models
from robust_jax.config.command_line import overridden
from robust_jax.extensions import choose
from robust_jax.workdir import runs


def config_of(name: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> ConfigDict:
    """The config `NAME[:ARGUMENT][:KEY=VALUE...]` of the package, with overrides before and after its own."""
    name, *parts = name.split(":")
    path = ":".join([name, *(part for part in parts if "=" not in part)])
    keys = [*before, *(part for part in parts if "=" in part), *after]
    return overridden(cli.load_config(path), [f"--config.{key}" for key in keys])


def correctly_classified(workdir: Path, count: int) -> tuple[runs.Trained, models.BoundModel, np.ndarray, np.ndarray]:
    """The run, its model, and the first ``count`` test images that it classifies correctly, with their labels.

    They are sought among the first ``4 * count`` and may be fewer.
    """
    run = runs.load(workdir)
    bound = models.bind(run.model, run.variables)
    images, labels = (np.asarray(v) for v in run.examples(min(4 * count, len(run.dataset.test))))
    right = np.flatnonzero(losses.predicted(jax.jit(bound)(images)) == labels)[:count]
    return run, bound, images[right], labels[right]


def classified_by_all(loaded: Sequence[runs.Trained], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of the first ``count`` test images that all runs classify correctly, and their labels."""
    images, labels = (np.asarray(v) for v in loaded[0].examples(count))
    right = np.all([losses.predicted(jax.jit(run.logits_fn)(images)) == labels for run in loaded], 0)
    return images[right], labels[right]


def selected(rows: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The named rows of a table, or all if no names are given."""
    for name in names or ():
        choose("attacks", name, rows)
    return {name: row for name, row in rows.items() if not names or name in names}
