"""Batches of examples on their way to a model: only the selected ones, in sizes that fit into memory.

A batch is a dict of equally long arrays: image, label, id, and mask, which is False on padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool

from robust_jax.options.hints import described
from robust_jax.spaces import per_example

Batch = Mapping[str, Any]
Rows = dict[str, np.ndarray]
"""Arrays with one row per example."""
Found = TypeVar("Found")


def as_batches(batches: Any, size: int) -> Iterable[Batch]:
    """Batches as dicts of image and label.

    Args:
      batches: dicts; pairs ``(images, labels)``; or one pair or one dict of arrays of all examples, which is cut.
      size: of the batches that are cut.

    Raises:
      ValueError: something else.
    """
    whole = isinstance(batches, tuple) and len(batches) == 2 and all(hasattr(part, "shape") for part in batches)
    if not (whole or isinstance(batches, Mapping)):
        if not isinstance(batches, Iterable) or isinstance(batches, str):
            raise ValueError(f"batches must be arrays (images, labels) or batches of them, got {described(batches)}.")
        return _Dicts(list(batches) if isinstance(batches, Iterator) else batches)
    batch = _as_dict(batches)
    lengths = {len(value) for value in batch.values()}
    if len(lengths) != 1:
        raise ValueError(f"batches: its arrays have {sorted(lengths)} entries; one per example is needed.")
    (n,) = lengths
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, n, size)]


class _Dicts:
    """Batches as dicts, as often as they are wanted."""

    def __init__(self, batches: Iterable[Any]):
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return map(_as_dict, self._batches)


def _as_dict(batch: Any) -> Batch:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return {"image": batch[0], "label": batch[1]}
    if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
        got = sorted(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"batches must be pairs (images, labels) or dicts with the arrays image and label, got {got}.")
    return batch


def pixels_of(batch: Batch) -> np.ndarray:
    """A checksum of each image, padding left out: batches that are drawn again may be augmented in another way."""
    images = np.asarray(batch["image"])[np.asarray(batch["mask"])]
    return np.array([zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images], np.uint32)


def with_ids_and_masks(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches with images as floats in [0, 1], and with id and mask added if they have none.

    Args:
      batches: dicts of image ``[B, H, W, C]`` (uint8, or float in [0, 1]), label ``[B]``, and optionally id ``[B]``
        (default: the position among all examples) and mask ``[B]`` (default: True).
    """
    seen = 0
    for batch in batches:
        images, labels = _numbers("image", batch["image"]), _numbers("label", batch["label"])
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"batches: image must be [B, H, W, C] and label [B], got {images.shape} and {labels.shape}."
            )
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        images = per_example.widened(images)  # in half precision x + δ is rounded out of the ball
        mask = np.asarray(batch.get("mask", np.ones(len(labels), bool)))
        position = seen + np.cumsum(mask) - 1 if mask.dtype == bool else mask
        given = batch.get("id", np.maximum(position, 0))
        ids = _numbers("id", given)
        if ids.shape == np.shape(given) and (np.asarray(ids) != np.asarray(given)).any():
            raise ValueError(f"batches: an id does not fit into {ids.dtype}: number the examples from 0 on.")
        if (
            not jnp.issubdtype(ids.dtype, jnp.integer)
            or mask.dtype != bool
            or not ids.shape == mask.shape == labels.shape
        ):
            raise ValueError(
                f"batches: id must be integers and mask bools, one for each of the {len(labels)} labels, got "
                f"{described(ids)} and {described(mask)}."
            )
        seen += int(mask.sum())
        yield {"image": images, "label": labels, "id": ids, "mask": mask}


def _numbers(name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"batches: {name} must be an array of numbers, got {described(value)}.") from error


def selected(batches: Iterable[Batch], chosen: Bool[np.ndarray, " n"], largest: int) -> Iterator[Batch]:
    """The chosen ones of n examples, in their order and repacked into full batches.

    All batches yielded have one size: that of the largest batch, halved (and rounded up to a multiple of 8, which
    splits over the devices of usual hosts) as long as that leaves the number of batches unchanged. If all examples are
    chosen the batches are yielded unchanged.

    Args:
      batches: with masks; together n examples, padding not counted.
      chosen: ``[n]``, in the order of the batches.
      largest: the size of the largest batch.
    """
    if chosen.all():
        yield from batches
        return
    left, seen, size = int(chosen.sum()), 0, _smallest_size(largest, int(chosen.sum()))
    waiting: dict[str, np.ndarray] = {}
    for batch in batches:
        if not left and not waiting:
            return
        mask = np.asarray(batch["mask"])
        rows = np.flatnonzero(mask)
        rows, seen = rows[chosen[seen : seen + len(rows)]], seen + len(rows)
        if len(rows):
            taken = {k: np.asarray(v)[rows] for k, v in batch.items()}
            waiting = {k: np.concatenate([waiting[k], v]) for k, v in taken.items()} if waiting else taken
            left -= len(rows)
        while waiting and (len(waiting["mask"]) >= size or not left):
            yield _padded({k: v[:size] for k, v in waiting.items()}, size)
            waiting = {k: v[size:] for k, v in waiting.items()} if len(waiting["mask"]) > size else {}


def _smallest_size(size: int, count: int) -> int:
    """The batch size halved, to multiples of 8, while ``count`` examples still take the same number of batches."""
    while (half := -(-size // 16) * 8) < size and -(-count // half) == -(-count // size):
        size = half
    return size


def _padded(batch: Batch, size: int) -> Batch:
    """The batch extended to a size by copies of its last example, with a mask of False there."""
    missing = size - len(batch["mask"])
    if not missing:
        return batch
    longer = {k: np.concatenate([v, np.repeat(np.asarray(v)[-1:], missing, 0)]) for k, v in batch.items()}
    longer["mask"][-missing:] = False
    return longer


def in_parts(run: Callable[[Batch], Rows], batch: Batch, size: int | None) -> tuple[Rows, int | None]:
    """The result of ``run`` for a batch, concatenated from those of smaller parts if the whole exceeds the memory.

    Args:
      run: batch -> arrays with one row per example, padding left out.
      batch: of any size.
      size: the largest size of a part; None: the whole batch. It is halved until the memory suffices.

    Returns:
      The rows, and the largest size for the next batch: None as long as the memory has sufficed for whole batches.

    Raises:
      jax.errors.JaxRuntimeError: any error of ``run`` but RESOURCE_EXHAUSTED, or that one for a single example.
    """
    count = len(batch["mask"])
    while True:
        part = count if size is None else min(size, count)
        try:
            if part == count:
                return run(batch), size
            slices = [{k: np.asarray(v)[i : i + part] for k, v in batch.items()} for i in range(0, count, part)]
            found = [run(_padded(few, part)) for few in slices]
            return {k: np.concatenate([rows[k] for rows in found]) for k in found[0]}, size
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or part == 1:
                raise
        size = -(-part // 2)
        logging.warning("Out of memory: continuing with %d examples at a time.", size)


def as_many_as_fit(run: Callable[[int], Found], count: int) -> tuple[Found, int]:
    """The result of ``run`` for a number of examples, which is halved until the memory suffices, and that number.

    Raises:
      jax.errors.JaxRuntimeError: any error of ``run`` but RESOURCE_EXHAUSTED, or that one for a single example.
    """
    while True:
        try:
            return run(count), count
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or count <= 1:
                raise
        count //= 2


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether the memory did not suffice."""
    return "RESOURCE_EXHAUSTED" in str(error)


def on_host(found: Mapping[str, Array], real: Bool[np.ndarray, " b"]) -> Rows:
    """The rows of real examples as NumPy arrays, padding left out."""
    return {name: np.asarray(value)[real] for name, value in found.items()}


def joined(batches: Sequence[Rows]) -> Rows:
    """The rows of all batches."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
