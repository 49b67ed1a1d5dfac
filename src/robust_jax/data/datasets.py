"""`load`: a dataset by its name, with a validation split carved out of its training split.

The name is that of a function in `robust_jax.data.builtin`, ``module:name`` of a function of your own, or that of any
TFDS image-classification dataset prepared as array_record, which is read without TensorFlow.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from robust_jax import extensions
from robust_jax.data import builtin, stored, tfds
from robust_jax.data.parts import Dataset, check_alike, mixed, of_parts
from robust_jax.data.sources import Source
from robust_jax.extensions import FILES

DATASETS: dict[str, Callable[..., tuple[Source, Source]]] = {
    name: value
    for name, value in vars(builtin).items()
    if inspect.isfunction(value) and value.__module__ == builtin.__name__ and not name.startswith("_")
}


def load(
    name: str = "digits",
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    *,
    size: int = 0,
    resize: str = "crop",
    test: float = 0.2,
) -> Dataset:
    """Loads a dataset and carves a validation split out of its training split.

    Args:
      name: One of

        - "digits" (scikit-learn's, 8x8x1; 1,437 to train, 360 to test);
        - "folder:PATH", a folder of images per class, and "npz:PATH", see `robust_jax.data.stored`;
        - "module:name" of your own: a function that returns the training and the test `Source`, or (train,
          validation, test); it takes no arguments, or some of `data_dir`, `size`, `resize` and `test`;
        - a TFDS name: "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", or any other with features
          `image` (of one size) and `label` and splits `train` and `test`; "name/config" and "name:version" as in
          TFDS.
      data_dir: The folder of prepared TFDS datasets; None or "" is TFDS's default
        (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). A function of your own gets it unchanged.
      validation: The fraction of the training split to set aside, 0 <= validation < 1; it does not matter if images
        of your own have a validation split. That of a TFDS dataset is not read.
      seed: Draws which examples those are.
      size: The height and width that images of your own are brought to; 0 if all have one size.
      resize: How: "crop", "stretch" or "pad", see `robust_jax.data.pixels.resized`.
      test: The fraction that is set aside, the same for every seed, if images of your own have no test split.

    Returns:
      The dataset; its train and validation splits are parts of one `Source`. The examples of a dataset of your own are
      in an order drawn once, the same for every seed, so that the first n are not all of one class.

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
    parts = _parts(name, data_dir, {"size": size, "resize": resize, "test": test})
    parts = mixed(*parts) if is_own(name) else parts
    return of_parts(*parts, name=name, validation=validation, seed=seed)


def is_own(name: str) -> bool:
    """Whether a dataset is of the user's own files or function, so that its name says little of its images."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in FILES or extensions.module_of(name) is not None


def _parts(name: str, data_dir: str | Path | None, options: Mapping[str, Any]) -> tuple[Source, Source | None, Source]:
    """The training, validation (None if there is none) and test split."""
    kind = name.partition(":")[0]
    if ":" in name and kind in FILES:
        make: Callable[..., Any] = functools.partial(getattr(stored, kind), name.partition(":")[2])
    elif name in DATASETS or extensions.module_of(name):  # "name:1.0.0" is a version of TFDS
        make = extensions.find("data.name", name, DATASETS)
    else:
        _refuse_options(name, options, ())
        train, test = (Source(*records) for records in tfds.read(name, data_dir))
        return train, None, test
    taken = inspect.signature(make).parameters
    _refuse_options(name, options, taken)
    given = {**options, "data_dir": data_dir}
    made = make(**{option: value for option, value in given.items() if option in taken})
    _check_splits(name, made)
    return made[0], made[1] if len(made) == 3 else None, made[-1]


def _check_splits(name: str, made: Any) -> None:
    """Raises ValueError unless a function returned two or three splits of one kind of images."""
    if not (isinstance(made, tuple) and len(made) in (2, 3) and all(isinstance(source, Source) for source in made)):
        kinds = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        raise ValueError(
            f"data.name={name!r} returned {kinds}: it must return (train, test), or (train, validation, test), each a "
            f"robust_jax.data.Source."
        )
    check_alike(f"data.name={name!r} returned splits that", made)


def _refuse_options(name: str, options: Mapping[str, Any], taken: Container[str]) -> None:
    """Raises ValueError for an option that was given to a dataset which has no use for it."""
    defaults = inspect.signature(load).parameters
    for option, value in options.items():
        if option not in taken and value != defaults[option].default:
            raise ValueError(
                f"data.{option}={value!r}: {name} has images of one size and splits of its own, which are not changed. "
                f"Leave it at {defaults[option].default!r}."
            )
