"""Means over steps, the same bits if some of the steps were before a restart."""

from __future__ import annotations

import json

import numpy as np

from robust_jax import parallel
from robust_jax.training.metrics import Metrics


def test_an_average_over_a_restart_is_the_average():
    losses = np.random.default_rng(0).normal(size=7).astype(np.float32)
    on_devices = parallel.replicate({"loss": losses})
    whole, first = Metrics(), Metrics()
    whole.add(on_devices, slice(0, 4))
    whole.add(on_devices, slice(4, 7))
    first.add(on_devices, slice(0, 3))
    resumed = Metrics(json.loads(json.dumps(first.pending())))
    resumed.add(on_devices, slice(3, 7))
    assert resumed.average() == whole.average() == {"loss": float(losses.mean())}
    assert resumed.pending() == {"loss": losses.tolist()} and Metrics().pending() == {}
