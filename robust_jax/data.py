"""Image sources, and batches that are a pure function of (seed, step).

Two kinds of source stand behind `load`: the handwritten digits bundled with scikit-learn (the
default, nothing to download), and any TFDS image-classification dataset prepared as array_record,
read without TensorFlow.

    dataset = load("digits", seed=0)
    for batch in train_batches(dataset.train, batch_size=64, seed=0, start_step=step): ...

There is no iterator state to save: batch s of `train_batches` depends on (seed, s) only. Images
stay uint8 on the host; `to_float` and the functions of `robust_jax.augment` run on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from robust_jax import tfds_source

NAMES = ("digits", *tfds_source.NAMES)
_TEST_SEED = 0  # The held-out fifth is the same for everybody.
# Of batches that are made together, and lie on the devices together; and how many.
_BLOCK_BYTES = 2**24
_MOST_TOGETHER = 64
_CACHE_BYTES = 2**30  # A split smaller than this is decoded once and kept in memory.

Batch = dict[str, np.ndarray]
Decode = Callable[[np.ndarray], list[tuple[np.ndarray, int]]]


class Source:
    """Random access to the labelled images of a split, or of a part of it.

    `source[i]` is `dict(image=uint8 [H, W, C], label=int, id=int)`. The id is the example's index
    in the split that it comes from: it names the example whatever the order or the part, and
    per-example randomness is folded in from it.
    """

    def __init__(self, name: str, size: int, image_shape: tuple[int, ...], num_classes: int, decode: Decode):
        """Wrap a decoder; `from_arrays` wraps arrays.

        Args:
          name: How errors name the split, say "mnist/train".
          size: The number of examples.
          image_shape: (H, W, C) of each.
          num_classes: Labels are 0..num_classes - 1.
          decode: `decode(ids) -> [(image, label), ...]`, called when an example is first needed,
            from a thread; checked, and kept where all images take less than 1 GiB.
        """
        self.name, self.image_shape, self.num_classes = name, tuple(image_shape), num_classes
        self.ids, self._decode = np.arange(size), decode
        kept = size if size * int(np.prod(image_shape)) <= _CACHE_BYTES else 0
        # np.empty takes no memory before it is written to.
        self._images = np.empty((kept, *image_shape), np.uint8)
        self._labels, self._known = np.empty(kept, np.int32), np.zeros(kept, bool)

    @classmethod
    def from_arrays(
        cls,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        num_classes: int,
        name: str = "train",
    ) -> Source:
        """Wrap arrays: uint8 images 0..255 with 1 or 3 channels, labels 0..num_classes - 1.

        Raises:
          ValueError: Empty, of a wrong type or shape, or a label out of range; names the record.
        """
        shape = np.shape(images)
        if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
            raise ValueError(
                f"{name}: images must be uint8 [N, H, W, C] with N > 0 and C = 1 or 3, not "
                f"{images.dtype} {list(shape)}."
            )
        if np.shape(labels) != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: labels must be integers [{shape[0]}], not {labels!r}.")

        def decode(ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
            return [(images[i], int(labels[i])) for i in ids]

        source = cls(name, shape[0], shape[1:], num_classes, decode)
        source.take(source.ids)
        return source

    def subset(self, positions: Int[np.ndarray, " m"]) -> Source:
        """The examples at `positions`; they keep their ids and share this source's memory."""
        part = object.__new__(Source)
        part.__dict__.update(self.__dict__)
        part.ids = self.ids[positions]
        return part

    def take(self, positions: Int[np.ndarray, " b"]) -> Batch:
        """The examples at `positions`: image uint8 [b, H, W, C], label int32 [b], id int32 [b].

        Raises:
          ValueError: A record that is corrupt, of another shape, or has a label out of range.
        """
        ids = self.ids[positions]
        if len(self._known):
            new = np.unique(ids[~self._known[ids]])
            if len(new):
                # Where two threads decode the same record they write the same bytes.
                self._images[new], self._labels[new] = self._checked(new)
                self._known[new] = True
            images, labels = self._images.take(ids, axis=0), self._labels[ids]  # several times faster than [ids]
        else:
            images, labels = self._checked(ids)
        return {"image": images, "label": labels, "id": ids.astype(np.int32)}

    def _checked(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        records = self._decode(ids)
        for i, (image, label) in zip(ids, records, strict=True):
            if image.shape != self.image_shape or image.dtype != np.uint8:
                raise ValueError(
                    f"{self.name}[{i}] is a {image.dtype} image of shape {list(image.shape)}, "
                    f"expected uint8 {list(self.image_shape)} (height, width, channels)."
                )
            if not 0 <= label < self.num_classes:
                raise ValueError(f"{self.name}[{i}] has label {label}, expected 0..{self.num_classes - 1}.")
        images, labels = zip(*records, strict=True)
        return np.stack(images), np.asarray(labels, np.int32)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """One example."""
        one = {k: v[0] for k, v in self.take(np.asarray([i])).items()}
        return one | {"label": int(one["label"]), "id": int(one["id"])}


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
    """Load a dataset and carve a validation split out of its training split.

    Args:
      name: "digits" (scikit-learn's, 8x8x1; 1,437 to train, 360 to test), or a TFDS name: "mnist",
        "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", or any other with features `image`
        (of one size) and `label` and splits `train` and `test`; "name/config" and "name:version"
        as in TFDS.
      data_dir: The folder of prepared TFDS datasets; None or "" is TFDS's default
        (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
      validation: The fraction of the training split to set aside, 0 <= validation < 1.
      seed: Draws which examples those are.

    Raises:
      ValueError: Unknown name; not prepared (says what to run); TFRecord files (says how to
        convert them); an empty split; images or labels of a kind that cannot be used.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation = {validation} must be a fraction: 0 <= validation < 1.")
    if name == "digits":
        full, test = _digits()
    else:
        full, test = (Source(*records) for records in tfds_source.read(name, data_dir))
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


def _digits() -> tuple[Source, Source]:
    """Intensities v = 0..16 become round(255 v / 16); a fixed stratified fifth is the test split.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    source = Source.from_arrays(images, bunch.target, 10, "digits")
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=_TEST_SEED
    )
    return source.subset(np.sort(train)), source.subset(np.sort(test))


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Endless shuffled batches, of which batch s is a pure function of (seed, s).

    Each epoch is a new permutation of the source; they follow each other without a gap, so a batch
    may lie across two epochs and no example is dropped.

    Args:
      source: What to draw from.
      batch_size: The GLOBAL batch, over all hosts.
      seed: 0 <= seed < 2**32.
      start_step: The first step to yield; any costs the same.
      shard_index: Which host this is: it gets rows `shard_index * b ..` of the global batch.
      shard_count: The number of hosts; `b = batch_size / shard_count`.
      prefetch: How much is made ahead, in a thread, in blocks of some batches; 0 for nothing.

    Yields:
      dict(image uint8 [b, H, W, C], label int32 [b], id int32 [b]).

    Raises:
      ValueError: Empty source, impossible numbers; while iterating, what `Source.take` raises.
    """
    return _split(train_blocks(source, batch_size, seed, start_step, shard_index, shard_count, prefetch))


def train_blocks(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """`train_batches` by several at once, `[n, b, ...]`: work a batch costs more than small batches.

    n is the same for all, as many as take 16 MiB, from 1 to 64.
    """
    rows = _rows(source, batch_size, shard_index, shard_count)
    if start_step < 0 or not 0 <= seed < 2**32:
        raise ValueError(f"{start_step = } must not be negative, {seed = } be in 0..2**32 - 1.")
    size = len(source)
    random = np.random.RandomState(0)  # made once: that takes longer than seeding and a small permutation

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        # RandomState, whose stream NumPy promises never to change; one call is far quicker than grain's one an index.
        random.seed([seed, epoch])
        return random.permutation(size)

    together = max(min(_BLOCK_BYTES // (rows * int(np.prod(source.image_shape))), _MOST_TOGETHER), 1)

    def block(index: int) -> Batch:
        steps = start_step + index * together + np.arange(together)[:, None]
        at = (steps * batch_size + shard_index * rows + np.arange(rows)).reshape(-1)
        epochs, rest = np.divmod(at, size)
        batches = source.take(np.concatenate([order(e)[rest[epochs == e]] for e in range(epochs[0], epochs[-1] + 1)]))
        return {k: v.reshape(together, rows, *v.shape[1:]) for k, v in batches.items()}

    blocks = grain.MapDataset.range(sys.maxsize // (together * batch_size)).map(block)
    return iter(blocks.to_iter_dataset(_read_options(min(prefetch, 2))))


def _split(blocks: Iterator[Batch]) -> Iterator[Batch]:
    for block in blocks:
        for i in range(len(block["label"])):
            yield {k: v[i] for k, v in block.items()}


def first_examples(source: Source, count: int) -> tuple[Float[Array, "n h w c"], Int[Array, " n"]]:
    """The first so many images, as floats in [0, 1], and their labels.

    Raises:
      ValueError: the source has fewer.
    """
    if count > len(source):
        raise ValueError(f"{count} examples are asked for, but {source.name} has {len(source)}.")
    batch = source.take(np.arange(count))
    return to_float(jnp.asarray(batch["image"])), jnp.asarray(batch["label"])


def eval_batches(
    source: Source,
    batch_size: int,
    limit: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """The first `limit` examples (None: all), once and in order.

    The last batch is padded with the last example, so that every host gets equally many batches
    of one size. The other arguments and the errors are those of `train_batches`.

    Yields:
      The same and mask bool [b], False on padding.
    """
    rows = _rows(source, batch_size, shard_index, shard_count)
    if limit is not None and limit <= 0:
        raise ValueError(f"limit = {limit} must be positive, or None for all of {source.name}.")
    size = len(source) if limit is None else min(limit, len(source))

    def batch(step: int) -> Batch:
        positions = step * batch_size + shard_index * rows + np.arange(rows)
        return source.take(np.minimum(positions, size - 1)) | {"mask": positions < size}

    steps = grain.MapDataset.range(-(-size // batch_size))
    return iter(steps.map(batch).to_iter_dataset(_read_options(prefetch)))


def _rows(source: Source, batch_size: int, shard_index: int, shard_count: int) -> int:
    if not len(source):
        raise ValueError(f"{source.name}: this part has no examples to draw batches from.")
    if batch_size <= 0 or shard_count <= 0 or batch_size % shard_count:
        raise ValueError(f"batch_size = {batch_size} must be a positive multiple of shard_count = {shard_count}.")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index = {shard_index} must be in 0..{shard_count - 1}.")
    return batch_size // shard_count


def _read_options(prefetch: int) -> grain.ReadOptions:
    # Decoding small images holds the interpreter's lock: a second thread makes it slower.
    return grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)


def to_float(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """uint8 0..255 to float32 x / 255 in [0, 1]; works inside `jax.jit`.

    Raises:
      ValueError: Not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 images, not {images.dtype}.")
    return jnp.asarray(images, jnp.float32) / 255
