"""The metrics of the steps since the last log step, carried over a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from robust_jax import parallel


class Metrics:
    """The metrics of the steps since the last log step; those before a restart come from the checkpoint."""

    def __init__(self, pending: Mapping[str, Any] = {}):
        self._before = {name: np.asarray(values, np.float32) for name, values in pending.items()}
        self._blocks: list[tuple[dict[str, jax.Array], slice]] = []

    def add(self, values: dict[str, jax.Array], at: slice) -> None:
        """Adds the steps of one dispatch; each value is a mean over devices already."""
        self._blocks.append((values, at))

    def pending(self) -> dict[str, list[float]]:
        """All of them, to be saved."""
        return {name: values.tolist() for name, values in self._fetched().items()}

    def average(self) -> dict[str, float]:
        """Means over the steps."""
        return {name: float(np.mean(values)) for name, values in self._fetched().items()}

    def _fetched(self) -> dict[str, np.ndarray]:
        parts = [self._before] if self._before else []
        for values, at in self._blocks:
            parts.append({k: v[at].astype(np.float32) for k, v in parallel.first(values).items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]} if parts else {}
