"""Images of one's own from Python objects: arrays, PyTorch-style and Hugging Face datasets, anything iterable.

Each function makes one split, a `Source`; `dataset` makes a `Dataset` of one or several::

    train = data.from_torch(torchvision.datasets.ImageFolder("pets"), size=64)
    pets = data.dataset(train, name="pets")    # a test and a validation split are taken from it
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

from robust_jax.data import pixels
from robust_jax.data.parts import Dataset, check_alike, mixed, of_parts, split_off
from robust_jax.data.sources import Source
from robust_jax.options.hints import described

MOST_CLASSES = 1_000_000
"""A larger label is no class, but a mark such as 2³² - 1."""


def from_arrays(
    images: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "train",
) -> Source:
    """A split of arrays.

    Args:
      images: ``[N, H, W]`` or ``[N, H, W, C]`` with C = 1 or 3; uint8, or floats in [0, 1], which become round(255 x).
      labels: ``[N]`` or ``[N, 1]`` whole numbers from 0.
      num_classes: default: the number of names, or the largest label and one.
      class_names: one per class.
      name: how errors name the split.

    Raises:
      ValueError: other arrays, images of PIL, a single class, a label out of range.
    """
    images, labels = _as_array(name, images), np.asarray(labels)
    images = pixels.as_bytes(f"{name}: images", images)
    images = images[..., None] if images.ndim == 3 else images
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or not labels.size:
        one_hot = "; of one-hot labels give labels.argmax(-1)" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name}: labels must be whole numbers [{len(images)}], one per image, not {labels.dtype} "
            f"{list(labels.shape)}{one_hot}."
        )
    class_names = _names(name, class_names)
    if images.max(initial=0) <= 1:
        logging.warning("%s: no pixel is brighter than 1 of 255: give floats in [0, 1], or 0 and 255.", name)
    classes = _classes(name, labels, num_classes or len(class_names or ()))
    return Source.from_arrays(images, labels, classes, name, class_names)


def _as_array(name: str, images: Any) -> np.ndarray:
    """Images as one array; raises ValueError for several of different shapes, and for PIL's."""
    if (isinstance(images, list | tuple) and images) or getattr(images, "dtype", None) == np.dtype(object):
        way_out = "give pairs to data.from_iterable(zip(images, labels), size=...)"
        if any(hasattr(image, "getbands") for image in images):  # of a palette np.asarray gives the indices
            raise ValueError(
                f"{name}: images are PIL's, whose palette, colours and rotation have to be read: {way_out}."
            )
        pixels.one_shape(((f"{name}[{i}]", np.shape(image)) for i, image in enumerate(images)), way_out)
        images = [np.asarray(image) for image in images]
    return np.asarray(images)


def from_iterable(
    pairs: Iterable[tuple[Any, Any]],
    *,
    size: int = 0,
    resize: str = "crop",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "train",
) -> Source:
    """A split of pairs (image, label), such as a generator yields; all are read at once, and kept in memory as resized.

    The images are grey if none of them has colour, RGB otherwise.

    Args:
      pairs: image: PIL's, or an array or tensor ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``, uint8 or floats in [0, 1];
        label: a whole number.
      size: the height and width to which images of any sizes are brought; 0 if all have one size.
      resize: "crop", "stretch" or "pad", see `robust_jax.data.pixels.resized`.
      num_classes: see `from_arrays`.
      class_names: one per class.
      name: how errors name the split.

    Raises:
      ValueError: no pairs, sizes that differ, and what `from_arrays` raises; names the pair.
    """
    arrays, labels = [], []
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ValueError(f"{name}[{i}] is a {type(pair).__name__}: give pairs (image, label).")
        picture = pixels.as_picture(f"{name}[{i}]", pair[0])
        grey = pixels.is_grey(f"{name}[{i}]", picture)
        arrays.append(pixels.decoded(picture, 1 if grey else 3, size, resize))
        labels.append(_label(f"{name}[{i}]", pair[1]))
    if not arrays:
        raise ValueError(f"{name} is empty: it has no pairs (image, label).")
    pixels.one_shape(((f"{name}[{i}]", array.shape[:2]) for i, array in enumerate(arrays)), "give size=")
    channels = max(array.shape[2] for array in arrays)
    return from_arrays(
        np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in arrays]),
        labels,
        num_classes=num_classes,
        class_names=class_names,
        name=name,
    )


def from_torch(dataset: Any, **options: Any) -> Source:
    """A split of a dataset as PyTorch's: with ``len`` and ``dataset[i] -> (image, label)``.

    Class names are its ``classes``, if these are a list of text, as torchvision's are.

    Args:
      dataset: without random augmentation and without normalisation.
      options: those of `from_iterable`.

    Raises:
      ValueError: what `from_iterable` raises.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"from_torch takes a dataset with len() and [i], not {type(dataset).__name__}: see from_iterable."
        )
    names = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple | np.ndarray) and all(isinstance(name, str) for name in names):
        options.setdefault("class_names", names)
    return from_iterable((dataset[i] for i in range(len(dataset))), **options)


def from_huggingface(split: Any, *, image: str = "image", label: str = "label", **options: Any) -> Source:
    """A split of a dataset of Hugging Face's ``datasets``, such as ``load_dataset(...)["train"]``.

    Class names are those of its feature ``label``.

    Args:
      split: has ``features``, ``len`` and ``split[i] -> {image: ..., label: ...}``.
      image: the name of the images' column.
      label: the name of the labels' column.
      options: those of `from_iterable`.

    Raises:
      ValueError: no such column, several splits at once, and what `from_iterable` raises.
    """
    columns = getattr(split, "features", None)
    if columns is None:
        raise ValueError(
            f"from_huggingface takes one split, with features, not {type(split).__name__}: give one, such as ['train']."
        )
    for column in (image, label):
        if column not in columns:
            raise ValueError(f"There is no column {column!r}: name it by image= or label=, of {sorted(columns)}.")
    options.setdefault("class_names", getattr(columns[label], "names", None))
    rows = (split[i] for i in range(len(split)))
    return from_iterable(((row[image], row[label]) for row in rows), **options)


def dataset(
    train: Source | tuple[Any, Any],
    test: Source | tuple[Any, Any] | None = None,
    *,
    validation: Source | tuple[Any, Any] | float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "own",
) -> Dataset:
    """A dataset of splits, each a `Source` or a pair (images, labels) of arrays.

    The examples keep their ids, which count from 0 in each split that was given, and are in an order drawn once, so
    that the first n are not all of one class. Whether test images are also among the training images is not checked.

    Args:
      train: the training split.
      test: None sets aside a part of ``train``, the same for every seed.
      validation: the fraction of the training images set aside, or a split.
      test_fraction: the fraction set aside if ``test`` is None.
      seed: draws the validation split.
      name: of the dataset.

    Raises:
      ValueError: splits of other shapes or classes, or with these in another order; nothing left on one side.
    """
    fraction = validation if isinstance(validation, int | float) else 0.0
    given = {"train": train, "test": test}
    given |= {} if isinstance(validation, int | float) else {"validation": validation}
    for title, part in given.items():
        if not (part is None or isinstance(part, Source) or _is_pair(part)):
            raise ValueError(
                f"dataset: {title} is {described(part)}: give a Source, or a tuple (images, labels) of arrays."
            )
    there = {title: part for title, part in given.items() if part is not None}
    splits = dict(zip(there, _sources(list(there.values()), list(there)), strict=True))
    first, held_out = splits["train"], splits.get("validation")
    first, tested = (first, splits["test"]) if test is not None else split_off(first, test_fraction)
    check_alike(f"{name}: the splits", [first, *filter(None, (held_out, tested))])
    return of_parts(*mixed(first, held_out, tested), name=name, validation=fraction, seed=seed)


def splits_of(given: Any) -> Dataset | tuple[Source, ...]:
    """What `robust_jax.train` may be given as its images, as a dataset or as its splits.

    Args:
      given: a `Dataset`; a split, which is a `Source` or a pair (images, labels) of arrays; or a tuple of two or three
        splits: (train, test) or (train, validation, test).

    Returns:
      The dataset, or one to three sources.

    Raises:
      ValueError: anything else, and what `from_arrays` raises.
    """
    if isinstance(given, Dataset | Source):
        return given if isinstance(given, Dataset) else (given,)
    parts = given if isinstance(given, tuple | list) else ()
    if len(parts) in (1, 2, 3) and all(isinstance(part, Source) or _is_pair(part) for part in parts):
        names = {1: ("train",), 2: ("train", "test"), 3: ("train", "validation", "test")}[len(parts)]
        return _sources(parts, names)
    if _is_pair(given):
        return _sources((given,), ("train",))
    raise ValueError(
        f"dataset is {described(given)}: give a robust_jax.data.Dataset, a split, or (train, test) or (train, "
        f"validation, test) of splits. A split is what data.from_arrays, from_iterable, from_torch or "
        f"from_huggingface returns, or a pair (images, labels) of arrays."
    )


def _is_pair(part: Any) -> bool:
    """Whether something is (images, labels): of arrays, not of further pairs or sources."""
    inner = (Source, tuple)
    return isinstance(part, tuple | list) and len(part) == 2 and not any(isinstance(each, inner) for each in part)


def _sources(parts: Sequence[Any], names: Sequence[str]) -> tuple[Source, ...]:
    """The splits, of which those given as arrays have the classes of the first."""
    first = parts[0] if isinstance(parts[0], Source) else from_arrays(*parts[0])
    rest = [part if isinstance(part, Source)
            else from_arrays(*part, num_classes=first.num_classes, class_names=first.class_names, name=name)
            for part, name in zip(parts[1:], names[1:], strict=True)]  # fmt: skip
    return (first, *rest)


def fingerprint(splits: Dataset | Sequence[Source]) -> str:
    """Eight hexadecimal digits of the splits' sizes, shapes, class names, 64 examples of each, and given labels."""
    sources = (splits.train, splits.validation, splits.test) if isinstance(splits, Dataset) else splits
    checksum = 0
    for source in sources:
        facts = repr((len(source), source.image_shape, source.num_classes, source.class_names))
        checksum = zlib.crc32(facts.encode(), checksum)
        if len(source):
            batch = source.take(np.unique(np.linspace(0, len(source) - 1, 64).astype(int)))
            for name in ("image", "label", "id"):
                checksum = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), checksum)
        if source.labels is not None:
            checksum = zlib.crc32(source.labels.tobytes(), checksum)
    return f"{checksum:08x}"


def statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of a split's images in [0, 1], for ``model.mean`` and ``model.std``.

    Give the training split; a channel that never varies has 1 for a standard deviation.

    Raises:
      ValueError: something that is no `Source`.

    Example::

        c.model.mean, c.model.std = data.statistics(data.load("folder:pets", size=64).train)
    """
    if not isinstance(source, Source):
        raise ValueError(
            f"statistics: {described(source)} is no split: of a dataset give its training split, dataset.train."
        )
    count, total, squares = 0, np.zeros(source.image_shape[-1]), np.zeros(source.image_shape[-1])
    for start in range(0, len(source), 1000):
        images = source.take(np.arange(start, min(start + 1000, len(source))))["image"].astype(np.float64) / 255
        count += images[..., 0].size
        total, squares = total + images.sum((0, 1, 2)), squares + (images**2).sum((0, 1, 2))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(mean.round(4).tolist()), tuple(np.where(std < 1e-4, 1.0, std).round(4).tolist())


def _classes(name: str, labels: np.ndarray, known: int) -> int:
    """The number of classes: that which is known, or if it is 0 the largest label and one."""
    there = np.unique(labels)
    if known == 1 or not known and len(there) < 2:
        raise ValueError(f"{name} has one class only: a classifier needs at least 2.")
    if not known and there[-1] >= MOST_CLASSES:
        raise ValueError(f"{name} has the label {there[-1]}: number classes from 0, at most {MOST_CLASSES:,} of them.")
    absent = [] if known else np.setdiff1d(np.arange(there[-1]), there)[:10].tolist()
    if absent:
        logging.warning("%s: no image has the labels %s: are they numbered from 0?", name, absent)
    return known or int(there[-1]) + 1


def _names(name: str, given: Any) -> tuple[str, ...] | None:
    """Class names as a tuple; raises ValueError for what is none, such as their number."""
    if given is None:
        return None
    if not isinstance(given, list | tuple | np.ndarray) or np.ndim(given) != 1:
        raise ValueError(f"{name}: class_names is {described(given)}: give a list, one name for each class.")
    return tuple(map(str, given))


def _label(what: str, label: Any) -> int:
    value = np.asarray(label)
    if value.size != 1 or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(f"{what} has label {label!r}: give a whole number.")
    return int(value.reshape(()))
