"""What benchmarks take from a finished run."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from robust_jax import data, experiment, models


def correctly_classified(
    workdir: Path, count: int
) -> tuple[experiment.Restored, models.BoundModel, np.ndarray, np.ndarray]:
    """The run, its model, and the first so many test images that it classifies right, with their labels.

    They are looked for among the first ``2 * count``, and may be fewer.
    """
    run = experiment.restore(workdir)
    bound = models.bind(run.model, run.variables)
    images, labels = (
        np.asarray(v) for v in data.first_examples(run.dataset.test, min(2 * count, len(run.dataset.test)))
    )
    right = np.flatnonzero(np.asarray(jax.jit(bound)(images)).argmax(-1) == labels)[:count]
    return run, bound, images[right], labels[right]
