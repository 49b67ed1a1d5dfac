"""Images: sources with random access, batches that are a pure function of (seed, step), augmentation."""

from robust_jax.data.batches import Batches, eval_batches, first_examples, to_float, train_batches, train_blocks
from robust_jax.data.datasets import DATASETS, Dataset, load
from robust_jax.data.known import IMAGE_SHAPES, NAMES, STATISTICS
from robust_jax.data.own import (
    dataset,
    fingerprint,
    from_arrays,
    from_huggingface,
    from_iterable,
    from_torch,
    statistics,
)
from robust_jax.data.sources import Batch, Source

__all__ = [
    "DATASETS", "IMAGE_SHAPES", "NAMES", "STATISTICS", "Batch", "Batches", "Dataset", "Source", "dataset",
    "eval_batches", "fingerprint", "first_examples", "from_arrays", "from_huggingface", "from_iterable", "from_torch",
    "load", "statistics", "to_float", "train_batches", "train_blocks",
]  # fmt: skip
