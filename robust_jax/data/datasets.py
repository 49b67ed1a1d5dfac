"""`load`: a dataset by its name, with a validation split carved out of its training split.

The name is that of a function in `robust_jax.data.builtin`, ``module:name`` of a function of your own, or that of any
TFDS image-classification dataset prepared as array_record, which is read without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robust_jax import extensions
from robust_jax.data import builtin, tfds
from robust_jax.data.sources import Source

DATASETS: dict[str, Callable[..., tuple[Source, Source]]] = {
    name: value
    for name, value in vars(builtin).items()
    if inspect.isfunction(value) and value.__module__ == builtin.__name__ and not name.startswith("_")
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `load` returns: `validation` is carved out of the training split, `test` is fixed."""

    name: str
    num_classes: int
    image_shape: tuple[int, ...]
    train: Source
    validation: Source
    test: Source


def load(name: str = "digits", data_dir: str | Path | None = None, validation: float = 0.1, seed: int = 0) -> Dataset:
    """Loads a dataset and carves a validation split out of its training split.

    Args:
      name: One of

        - "digits" (scikit-learn's, 8x8x1; 1,437 to train, 360 to test);
        - "module:name" of your own: a function that returns the training and the test `Source`; it takes no
          arguments, or `data_dir`;
        - a TFDS name: "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", or any other with features
          `image` (of one size) and `label` and splits `train` and `test`; "name/config" and "name:version" as in
          TFDS.
      data_dir: The folder of prepared TFDS datasets; None or "" is TFDS's default
        (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). A function of your own gets it unchanged.
      validation: The fraction of the training split to set aside, 0 <= validation < 1.
      seed: Draws which examples those are.

    Returns:
      The dataset; its train and validation splits are parts of one `Source`.

    Raises:
      ValueError: An unknown name; a module or function that cannot be imported; a function that does not return two
        sources of the same shape and classes; a dataset that is not prepared (says what to run); TFRecord files (says
        how to convert them); an empty split; images or labels of a kind that cannot be used.

    Example::

        # my_data.py, then --config.data.name=my_data:noise
        def noise():
            draw = np.random.default_rng(0)
            images = draw.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
            source = Source.from_arrays(images, draw.integers(0, 2, 100), num_classes=2)
            return source.subset(np.arange(80)), source.subset(np.arange(80, 100))
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation = {validation} must be a fraction: 0 <= validation < 1.")
    full, test = _train_and_test(name, data_dir)
    size = round(validation * len(full))
    if size == len(full) or (validation and not size):
        raise ValueError(
            f"validation = {validation} of the {len(full)} training examples of {name} is {size}: "
            "nothing is left on one side."
        )
    # RandomState, whose stream NumPy promises never to change.
    order = np.random.RandomState(seed).permutation(len(full))
    train, held_out = (full.subset(np.sort(part)) for part in (order[size:], order[:size]))
    return Dataset(name, full.num_classes, full.image_shape, train, held_out, test)


def _train_and_test(name: str, data_dir: str | Path | None) -> tuple[Source, Source]:
    if name not in DATASETS and not extensions.module_of(name):  # "name:1.0.0" is a version of TFDS
        train, test = (Source(*records) for records in tfds.read(name, data_dir))
        return train, test
    make = extensions.find("data.name", name, DATASETS)
    wants_folder = "data_dir" in inspect.signature(make).parameters
    made = make(data_dir=data_dir) if wants_folder else make()
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(source, Source) for source in made)):
        kinds = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        raise ValueError(
            f"data.name={name!r} returned {kinds}: it must return (train, test), two robust_jax.data.Source."
        )
    if len({(source.image_shape, source.num_classes) for source in made}) > 1 or not all(map(len, made)):
        was = ", ".join(f"{len(s)} images {list(s.image_shape)} of {s.num_classes} classes" for s in made)
        raise ValueError(f"data.name={name!r} returned {was}: both need images, of one shape and one set of classes.")
    return made
