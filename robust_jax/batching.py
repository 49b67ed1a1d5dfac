"""Batches of examples on their way to a model: only those that are wanted, in sizes that memory holds.

A batch is a dict of arrays of one length: image, label, id, and mask, False on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool

Batch = Mapping[str, Any]
Rows = dict[str, np.ndarray]


def filled(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches with images as floats, and id and mask where they have none."""
    seen = 0
    for batch in batches:
        images, labels = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        ids = jnp.asarray(batch.get("id", np.arange(seen, seen + len(labels))))
        mask = np.asarray(batch.get("mask", np.ones(len(labels), bool)))
        seen += int(mask.sum())
        yield {"image": images, "label": labels, "id": ids, "mask": mask}


def only(batches: Iterable[Batch], wanted: Bool[np.ndarray, " n"]) -> Iterator[Batch]:
    """The wanted ones among the n examples of some batches (padding does not count), in their order and closed up.

    All that come are of one size: the first batch's, halved (and rounded up to a multiple of 8, which splits over the
    devices of any usual host) as long as that leaves their number the same. Where all examples are wanted the batches
    come as they are.
    """
    if wanted.all():
        yield from batches
        return
    left, seen, size = int(wanted.sum()), 0, 0
    waiting: dict[str, np.ndarray] = {}
    for batch in batches:
        if not left and not waiting:
            return
        mask = np.asarray(batch["mask"])
        if not size:
            size = len(mask)
            while (half := -(-size // 16) * 8) < size and -(-left // half) == -(-left // size):
                size = half
        rows = np.flatnonzero(mask)
        rows, seen = rows[wanted[seen : seen + len(rows)]], seen + len(rows)
        if len(rows):
            taken = {k: np.asarray(v)[rows] for k, v in batch.items()}
            waiting = {k: np.concatenate([waiting[k], v]) for k, v in taken.items()} if waiting else taken
            left -= len(rows)
        while waiting and (len(waiting["mask"]) >= size or not left):
            yield _padded({k: v[:size] for k, v in waiting.items()}, size)
            waiting = {k: v[size:] for k, v in waiting.items()} if len(waiting["mask"]) > size else {}


def _padded(batch: Batch, size: int) -> Batch:
    """The batch with its last example repeated up to a size, and False in the mask there."""
    missing = size - len(batch["mask"])
    if not missing:
        return batch
    longer = {k: np.concatenate([v, np.repeat(np.asarray(v)[-1:], missing, 0)]) for k, v in batch.items()}
    longer["mask"][-missing:] = False
    return longer


def in_parts(run: Callable[[Batch], Rows], batch: Batch, size: int | None) -> tuple[Rows, int]:
    """What ``run`` returns for a batch, put together from smaller parts where memory does not hold it whole.

    Args:
      run: batch -> arrays with a row for each of its examples, padding left out.
      batch: of any size.
      size: of the parts at first, all equally large; None: the whole batch.

    Returns:
      The rows, and the size that fitted, to begin with next time.

    Raises:
      jax.errors.JaxRuntimeError: what ``run`` raises, if it is not RESOURCE_EXHAUSTED, or is at a single example.
    """
    count = len(batch["mask"])
    size = min(size or count, count)
    while True:
        try:
            if size == count:
                return run(batch), size
            slices = [{k: np.asarray(v)[i : i + size] for k, v in batch.items()} for i in range(0, count, size)]
            found = [run(_padded(part, size)) for part in slices]
            return {k: np.concatenate([rows[k] for rows in found]) for k in found[0]}, size
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
        size = -(-size // 2)
        logging.warning("Out of memory: going on with %d examples at a time.", size)
