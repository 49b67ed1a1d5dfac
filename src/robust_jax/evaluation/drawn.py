"""Which examples of an evaluation are drawn: the first of each class, and those whose loss rose most."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from robust_jax.evaluation.batching import Batch, Rows
from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.stored import DRAWN
from robust_jax.files import read_arrays, write_atomically

HARDEST = 5
KINDS = ("sample", "hardest")
MOST_BYTES = 2**22  # stored per attack and kind

Examples = dict[str, Any]


def first_of_each_class(batch: Batch, images: Array, delta: Any, before: np.ndarray, after: np.ndarray) -> Examples:
    """Up to ten examples of a batch to draw: the first of each class, not the most impressive."""
    labels = np.asarray(batch["label"])[batch["mask"]]
    return _picked(batch, images, delta, before, after, np.unique(labels, return_index=True)[1][:10])


def hardest(kept: Examples, batch: Batch, images: Array, delta: Any, rows: Rows, measured: PerExample) -> Examples:
    """The broken examples whose loss rose most, of those kept so far and of one more batch, in decreasing order.

    Args:
      kept: of the batches before, at first {}.
      batch: its examples, with ids and a mask.
      images: the adversarial images.
      delta: their δ.
      rows: predictions and losses of the adversarial images, padding left out.
      measured: the clean results.
    """
    ids, labels = (np.asarray(batch[name])[batch["mask"]] for name in ("id", "label"))
    order = np.argsort(measured.id, kind="stable")
    place = order[np.searchsorted(measured.id, ids, sorter=order)]
    rise = rows["loss"] - measured.loss[place]
    broken = measured.correct[place] & (rows["prediction"] != labels) & np.isfinite(rise)
    broken &= ~np.isin(ids, kept.get("id", []))  # a batch is tried twice if the memory runs out
    picked = np.flatnonzero(broken)[np.argsort(-rise[broken], kind="stable")[:HARDEST]]
    full = len(kept.get("id", ())) == HARDEST
    if not len(picked) or (full and rise[picked[0]] <= kept["rise"][-1]):
        return kept
    new = _picked(batch, images, delta, measured.prediction[place], rows["prediction"], picked)
    new |= {"id": ids[picked], "rise": rise[picked]}
    both = jax.tree.map(lambda *parts: np.concatenate(parts), kept, new) if kept else new
    best = np.argsort(-both["rise"], kind="stable")[:HARDEST]
    found: Examples = jax.tree.map(lambda leaf: leaf[best], both)
    return found


def _picked(
    batch: Batch, images: Array, delta: Any, before: np.ndarray, after: np.ndarray, picked: np.ndarray
) -> Examples:
    """Some examples of a batch, as arguments of `pictures.adversarial_grid`."""
    device = {"clean": batch["image"], "adversarial": images, "delta": delta}
    found: Examples = jax.tree.map(lambda x: np.asarray(x)[batch["mask"]][picked], device)
    return found | {
        "labels": np.asarray(batch["label"])[batch["mask"]][picked],
        "clean_predictions": before[picked],
        "adversarial_predictions": after[picked],
    }


def flow_of(delta: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """δ if it is a flow of images of this shape, or the first part of a composition that is one; otherwise None."""
    parts = delta if isinstance(delta, tuple | list) else (delta,)
    for part in parts:
        if not isinstance(part, Mapping) and np.shape(part) == (*shape[:3], 2):
            return np.asarray(part)
    return None


def write(folder: Path, measured: PerExample, count: int) -> None:
    """Writes ``examples.npz``, from which a page draws them: ``NAME/sample/clean``, ``NAME/hardest/rise``, ...

    Images and flows are float16, which pictures need no more than; of large images fewer are kept.

    Args:
      folder: of the evaluation.
      measured: the results per example.
      count: of the examples of each kind, at most; 0: no file.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, outcome in measured.attacks.items():
        for kind in KINDS:
            arrays |= {f"{name}/{kind}/{k}": v for k, v in _compact(getattr(outcome, kind), count).items()}
    (folder / DRAWN).unlink(missing_ok=True)  # of an evaluation before
    if arrays:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        write_atomically(folder / DRAWN, content.getvalue())


def _compact(examples: Examples, count: int) -> dict[str, np.ndarray]:
    if not count or not examples or examples["clean"].shape[-1] not in (1, 3):
        return {}
    count = min(count, max(1, MOST_BYTES // (4 * examples["clean"][0].size)))
    flow = flow_of(examples["delta"], examples["clean"].shape)
    kept = {k: np.asarray(v) for k, v in examples.items() if k != "delta"} | ({} if flow is None else {"flow": flow})
    short = {k: v[:count] for k, v in kept.items()}
    return {k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in short.items()}


def read(folder: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The content of ``examples.npz``: attack -> kind -> arrays; {} if there is none.

    Raises:
      ValueError: a damaged file.
    """
    if not (folder / DRAWN).is_file():
        return {}
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, array in read_arrays(folder / DRAWN, 2**28).items():
        name, kind, what = key.rsplit("/", 2)
        found.setdefault(name, {}).setdefault(kind, {})[what] = array
    return found
