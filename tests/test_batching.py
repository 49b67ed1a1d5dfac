"""Batches of what is wanted: in order, closed up, of one size."""

import numpy as np
import pytest

from robust_jax.batching import only

N = 50


def cut(size, n=N):
    for start in range(0, n, size):
        index = np.arange(start, start + size)
        label = np.minimum(index, n - 1)
        image = np.float32(label)[:, None, None, None]
        yield {"image": image, "label": label, "id": label + 100, "mask": index < n}


@pytest.mark.parametrize("size", [8, 16, 50, 64])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 1.0])
def test_what_is_wanted_comes_once_in_order_and_in_one_size(size, share):
    wanted = np.random.default_rng(0).random(N) < share
    if share == 0.02:
        wanted = np.arange(N) == N - 1
    found = list(only(cut(size), wanted))
    real = {k: np.concatenate([b[k][b["mask"]] for b in found] or [[]]) for k in ("image", "label", "id")}
    np.testing.assert_array_equal(real["label"], np.flatnonzero(wanted))
    np.testing.assert_array_equal(real["id"], np.flatnonzero(wanted) + 100)
    np.testing.assert_array_equal(real["image"].ravel(), np.flatnonzero(wanted))
    assert len({len(b["mask"]) for b in found}) <= 1
    if share < 1:  # no more batches than needed, and less than half of them padding
        assert len(found) == -(-wanted.sum() // size)
        assert all(len(b["mask"]) <= size for b in found)
        assert sum(len(b["mask"]) for b in found) < 2 * wanted.sum() + 8
