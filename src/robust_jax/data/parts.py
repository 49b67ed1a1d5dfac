"""A dataset and its splits: training, validation, test, and how one that is missing is taken from another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from robust_jax.data.sources import Source

_TEST_SEED = 0  # fixed, so that no seed trains on what another one is tested on


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in three splits; `validation` is taken from the training split unless the data has one of its own."""

    name: str
    num_classes: int
    image_shape: tuple[int, ...]
    train: Source
    validation: Source
    test: Source

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per class; None if they have none."""
        return self.train.class_names


def of_parts(
    train: Source,
    held_out: Source | None,
    test: Source,
    *,
    name: str = "own",
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A dataset of its parts; a validation split that is None is taken from the training split."""
    if not 0 <= validation < 1:
        raise ValueError(f"validation = {validation} must be a fraction: 0 <= validation < 1.")
    if held_out is not None:
        return Dataset(name, train.num_classes, train.image_shape, train, held_out, test)
    size = round(validation * len(train))
    if size == len(train) or (validation and not size):
        raise ValueError(
            f"validation = {validation} of the {len(train)} training examples of {name} is {size}: "
            "nothing is left on one side."
        )
    # RandomState, whose stream NumPy promises never to change.
    order = np.random.RandomState(seed).permutation(len(train))
    kept, held_out = (train.subset(np.sort(part)) for part in (order[size:], order[:size]))
    return Dataset(name, train.num_classes, train.image_shape, kept, held_out, test)


def mixed(*sources: Source | None) -> tuple[Any, ...]:
    """Each source in an order drawn once: its first n are of all classes even if it is sorted by class; None stays."""
    # RandomState, whose stream NumPy promises never to change.
    return tuple(s and s.subset(np.random.RandomState(_TEST_SEED).permutation(len(s))) for s in sources)


def split_off(source: Source, fraction: float) -> tuple[Source, Source]:
    """The source in two parts, of which the second has ``fraction`` of the examples: the same ones at every call.

    Raises:
      ValueError: nothing is left on one side.
    """
    size = round(fraction * len(source))
    if not 0 < size < len(source):
        raise ValueError(
            f"A test split of {fraction} of the {len(source)} examples of {source.name} has {size}: nothing is left on "
            f"one side."
        )
    # RandomState, whose stream NumPy promises never to change.
    order = np.random.RandomState(_TEST_SEED).permutation(len(source))
    return source.subset(np.sort(order[size:])), source.subset(np.sort(order[:size]))
