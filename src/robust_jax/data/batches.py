"""Batches of a source: for training a pure function of (seed, step), for evaluation the examples in order.

grain reads ahead in a thread. Which examples a batch holds is computed here, not by grain's shuffling: batch s of a run
then follows from (seed, s) alone, whatever the grain version, the number of hosts, or the step a run resumed at.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from robust_jax.data import augment
from robust_jax.data.sources import Batch, Source

if TYPE_CHECKING:
    import grain

# Batches are made, and put on the devices, several together: at most this many bytes and this many batches.
_BLOCK_BYTES = 2**24
_MOST_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class Batches:
    """The first n examples as floats in batches of equal size, chosen so that little is padding.

    It can be iterated over any number of times.

    Attributes:
      source: the examples.
      n: the number of examples.
      batch_size: the largest number of examples in a batch, rounded up to a multiple of 8.
      resize: the length that the images' shorter side is resized to before a centre crop; 0 for none.
    """

    source: Source
    n: int
    batch_size: int
    resize: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches from the first."""
        size = -(-self.n // -(-self.n // self.batch_size))
        size += -size % 8  # so that it splits over the devices of any usual host
        for batch in eval_batches(self.source, size, limit=self.n):
            images = to_float(jnp.asarray(batch["image"]))
            yield batch | {"image": augment.resize_and_center_crop(images, self.resize)}


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
      batch_size: The GLOBAL batch size, over all hosts.
      seed: 0 <= seed < 2**32.
      start_step: The first step to yield; all cost the same.
      shard_index: This host's index: it gets rows `shard_index * b` and after of the global batch.
      shard_count: The number of hosts; `b = batch_size / shard_count`.
      prefetch: How many blocks of batches a thread makes ahead; 0 for none.

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
    """`train_batches`, several stacked as `[n, b, ...]`, because the overhead of each small batch exceeds its work.

    n is the same for all blocks: as many batches as take 16 MiB, from 1 to 64.
    """
    rows = _rows(source, batch_size, shard_index, shard_count)
    if start_step < 0 or not 0 <= seed < 2**32:
        raise ValueError(f"{start_step = } must not be negative, {seed = } be in 0..2**32 - 1.")
    size = len(source)
    random = np.random.RandomState(0)  # made once: making it takes longer than seeding it and a small permutation

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        # RandomState, whose stream NumPy promises never to change. One permutation is far quicker than grain's shuffle,
        # which is called once per index.
        random.seed([seed, epoch])
        return random.permutation(size)

    together = max(min(_BLOCK_BYTES // (rows * int(np.prod(source.image_shape))), _MOST_TOGETHER), 1)

    def block(index: int) -> Batch:
        steps = start_step + index * together + np.arange(together)[:, None]
        at = (steps * batch_size + shard_index * rows + np.arange(rows)).reshape(-1)
        epochs, rest = np.divmod(at, size)
        batches = source.take(np.concatenate([order(e)[rest[epochs == e]] for e in range(epochs[0], epochs[-1] + 1)]))
        return {k: v.reshape(together, rows, *v.shape[1:]) for k, v in batches.items()}

    import grain

    blocks = grain.MapDataset.range(sys.maxsize // (together * batch_size)).map(block)
    return iter(blocks.to_iter_dataset(_read_options(min(prefetch, 2))))


def _split(blocks: Iterator[Batch]) -> Iterator[Batch]:
    for block in blocks:
        for i in range(len(block["label"])):
            yield {k: v[i] for k, v in block.items()}


def first_examples(source: Source, count: int, resize: int = 0) -> tuple[Float[Array, "n h w c"], Int[Array, " n"]]:
    """The first ``count`` images, as floats in [0, 1], and their labels.

    Args:
      source: the examples.
      count: how many.
      resize: the length that the images' shorter side is resized to before a centre crop, a run's
        ``config.data.eval_resize``; 0 for none. `Trained.examples` gives it.

    Raises:
      ValueError: if the source has fewer.
    """
    if not 0 <= count <= len(source):
        raise ValueError(f"{count} examples are asked for, but {source.name} has {len(source)}.")
    batch = source.take(np.arange(count))
    images = augment.resize_and_center_crop(to_float(jnp.asarray(batch["image"])), resize)
    return images, jnp.asarray(batch["label"])


def eval_batches(
    source: Source,
    batch_size: int,
    limit: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """The first `limit` examples (None: all), once and in order.

    The last batch is padded with the last example, so that every host gets the same number of batches, all of one
    size. The other arguments and the errors are those of `train_batches`.

    Yields:
      What `train_batches` yields, and mask bool [b], False on padding.
    """
    rows = _rows(source, batch_size, shard_index, shard_count)
    if limit is not None and limit <= 0:
        raise ValueError(f"limit = {limit} must be positive, or None for all of {source.name}.")
    size = len(source) if limit is None else min(limit, len(source))

    def batch(step: int) -> Batch:
        positions = step * batch_size + shard_index * rows + np.arange(rows)
        return source.take(np.minimum(positions, size - 1)) | {"mask": positions < size}

    import grain

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
    import grain

    # Decoding small images holds the interpreter's lock: a second thread makes it slower.
    return grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)


def to_float(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Converts uint8 0..255 to float32 x / 255 in [0, 1]; works inside `jax.jit`.

    Raises:
      ValueError: Images that are not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 images, not {images.dtype}.")
    return jnp.asarray(images, jnp.float32) / 255
