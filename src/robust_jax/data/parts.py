"""A dataset and its splits: training, validation, test, and how one that is missing is taken from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
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


def check_alike(what: str, splits: Sequence[Source]) -> None:
    """Raises ValueError unless splits have images of one shape and the same classes, by their names if they have them.

    Args:
      what: the splits are called in the message.
      splits: at least one, none of them empty.
    """
    if len({(split.image_shape, split.num_classes) for split in splits}) > 1 or not all(map(len, splits)):
        was = ", ".join(f"{len(s)} images {list(s.image_shape)} of {s.num_classes} classes" for s in splits)
        raise ValueError(f"{what} have {was}: all need images, of one shape and one set of classes.")
    named = [split for split in splits if split.class_names]
    for one, other in pairwise(named):
        for label, pair in enumerate(zip(one.class_names or (), other.class_names or (), strict=True)):
            if pair[0] != pair[1]:
                raise ValueError(
                    f"{what} have classes in another order, or others: label {label} is {pair[0]!r} in {one.name} and "
                    f"{pair[1]!r} in {other.name}. Give all of them labels by the same list of names."
                )


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
