"""Batches of what is wanted: in order, closed up, of one size, and cut where memory runs out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.evaluation.batching import in_parts, selected, with_ids_and_masks

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
    found = list(selected(cut(size), wanted, size))
    real = {k: np.concatenate([b[k][b["mask"]] for b in found] or [[]]) for k in ("image", "label", "id")}
    np.testing.assert_array_equal(real["label"], np.flatnonzero(wanted))
    np.testing.assert_array_equal(real["id"], np.flatnonzero(wanted) + 100)
    np.testing.assert_array_equal(real["image"].ravel(), np.flatnonzero(wanted))
    assert len({len(b["mask"]) for b in found}) <= 1
    if share < 1:  # no more batches than needed, and less than half of them padding
        assert len(found) == -(-wanted.sum() // size)
        assert all(len(b["mask"]) <= size for b in found)
        assert sum(len(b["mask"]) for b in found) < 2 * wanted.sum() + 8


def small_memory(limit, message="RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."):
    sizes = []

    def run(batch):
        sizes.append(len(batch["mask"]))
        if sizes[-1] > limit:
            raise jax.errors.JaxRuntimeError(message)
        return {k: np.asarray(batch[k])[batch["mask"]] for k in ("id", "image")}

    return run, sizes


@pytest.mark.parametrize("limit, fits", [(50, None), (49, 25), (13, 13), (12, 7), (1, 1)])
def test_what_does_not_fit_is_cut_and_put_together_again(limit, fits):
    (batch,) = cut(50)
    batch["mask"] = batch["mask"] & (batch["label"] < 45)
    run, sizes = small_memory(limit)
    rows, size = in_parts(run, batch, None)
    assert size == fits and set(sizes[-2:]) == {fits or 50}
    np.testing.assert_array_equal(rows["id"], np.arange(45) + 100)
    np.testing.assert_array_equal(rows["image"].ravel(), np.arange(45))
    sizes.clear()
    rows, size = in_parts(run, batch, size)
    assert size == fits and len(sizes) == -(-50 // (fits or 50))  # nothing is tried again


def test_one_small_batch_does_not_cut_the_others():
    run, sizes = small_memory(100)
    size = None
    for count in (2, 50, 8, 50):
        _, size = in_parts(run, next(cut(count)), size)
    assert sizes == [2, 50, 8, 50] and size is None
    run, sizes = small_memory(30)
    for count in (2, 50, 8, 50):
        _, size = in_parts(run, next(cut(count)), size)
    assert sizes == [2, 50, 25, 25, 8, 25, 25] and size == 25
    first, *rest = cut(25)
    small = ({k: v[i : i + 5] for k, v in first.items()} for i in range(0, 25, 5))
    found = selected([*small, *rest], np.arange(N) > 0, 25)
    assert [len(batch["mask"]) for batch in found] == [25, 25]


def test_other_errors_and_no_memory_for_one_are_raised():
    (batch,) = cut(50)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"):
        in_parts(small_memory(0)[0], batch, None)
    run, sizes = small_memory(10, "INTERNAL: other")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        in_parts(run, batch, None)
    assert len(sizes) == 1


def test_this_is_how_memory_runs_out_in_jax():
    run = jax.jit(lambda n: jax.numpy.sort(jax.random.uniform(jax.random.key(n), (2**22, 2**22))).sum())
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        run(0).block_until_ready()


def examples(count=4, **more):
    return {"image": np.full((count, 2, 2, 1), 0.5, np.float32), "label": np.zeros(count, int)} | more


def test_images_in_half_precision_are_widened():
    (batch,) = with_ids_and_masks([examples(image=jnp.full((4, 2, 2, 1), 0.5, jnp.bfloat16))])
    assert batch["image"].dtype == jnp.float32


def test_default_ids_are_positions_wherever_the_padding_is():
    batches = with_ids_and_masks([examples(mask=np.array([False, True, True, True])), examples(), examples()])
    real = [np.asarray(batch["id"])[batch["mask"]] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(real), np.arange(11))


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="an id does not fit into int32"):
        list(with_ids_and_masks([examples(id=np.arange(4) * 2**32)]))
