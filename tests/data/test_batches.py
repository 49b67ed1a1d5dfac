"""Batches, splits, the digits, and datasets of one's own. Reading TFDS datasets is in test_tfds.py."""

from __future__ import annotations

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from robust_jax import data
from robust_jax.config.defaults import base, nominal_shape
from robust_jax.data import known, sources


@pytest.fixture(scope="module")
def digits():
    return data.load()


def source(size=23):
    images = np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2, 1)
    return data.Source.from_arrays(images, np.arange(size) % 3, 3)


def first(batches, count):
    return list(itertools.islice(batches, count))


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_digits_are_scikit_learns(digits):
    bunch = load_digits()
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1293, 144, 360)
    assert digits.image_shape == (8, 8, 1) and digits.num_classes == 10
    for part in (digits.train, digits.validation, digits.test):
        batch = part.take(np.arange(len(part)))
        assert batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["label"], bunch.target[batch["id"]])
        expected = bunch.images[batch["id"]] / 16
        assert np.abs(batch["image"][..., 0] / 255 - expected).max() <= 0.5 / 255
        assert set(np.unique(batch["image"][expected[..., None] == 1])) == {255}
    ids = np.concatenate([digits.train.ids, digits.validation.ids, digits.test.ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1797))


def test_digits_test_split_is_a_stratified_fifth_that_no_seed_changes(digits):
    other = data.load(seed=5, validation=0.2)
    np.testing.assert_array_equal(other.test.ids, digits.test.ids)
    assert digits.test.ids[:8].tolist() == [21, 24, 28, 34, 35, 37, 39, 42]  # Never to change.
    labels = load_digits().target
    share = np.bincount(labels[digits.test.ids]) / np.bincount(labels)
    assert np.all((share > 0.19) & (share < 0.21))
    assert len(other.validation) == 287
    assert set(data.load(seed=1).validation.ids) != set(digits.validation.ids)
    np.testing.assert_array_equal(data.load(seed=0).validation.ids, digits.validation.ids)


def test_no_validation_split(digits):
    whole = data.load(validation=0.0)
    assert len(whole.train) == 1437 and len(whole.validation) == 0
    with pytest.raises(ValueError, match="no examples"):
        data.eval_batches(whole.validation, 8)


@pytest.mark.parametrize("validation", [-0.1, 1.0, 0.9999, 1e-5])
def test_impossible_validation(validation):
    with pytest.raises(ValueError, match=f"validation = {validation}"):
        data.load(validation=validation)


def test_batches_are_a_function_of_seed_and_step():
    reference = first(data.train_batches(source(), 5, seed=3), 20)
    assert same(reference, first(data.train_batches(source(), 5, seed=3, prefetch=0), 20))
    for start in (1, 7, 19):
        resumed = data.train_batches(source(), 5, seed=3, start_step=start)
        assert same(reference[start:], first(resumed, 20 - start))
    assert not same(reference, first(data.train_batches(source(), 5, seed=4), 20))


def test_what_was_read_before_does_not_matter(digits):
    fresh = data.load()
    fresh.train.take(np.arange(5, 600, 7))
    pair = [first(data.train_batches(d.train, 64, seed=1), 25) for d in (digits, fresh)]
    assert same(*pair)


@pytest.mark.parametrize("batch_size", [4, 5, 23, 50])
def test_every_epoch_has_every_example_once(batch_size):
    batches = first(data.train_batches(source(), batch_size, seed=0), -(-4 * 23 // batch_size))
    ids = np.concatenate([b["id"] for b in batches])[: 4 * 23].reshape(4, 23)
    assert (np.sort(ids, 1) == np.arange(23)).all()
    assert len({tuple(epoch) for epoch in ids}) == 4
    assert all(b["image"].shape == (batch_size, 2, 2, 1) for b in batches)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_make_up_the_global_batch(count):
    whole = first(data.train_batches(source(), 8, seed=1, start_step=3), 9)
    shards = [first(data.train_batches(source(), 8, 1, 3, shard_index=i, shard_count=count), 9) for i in range(count)]
    union = [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*shards, strict=True)]
    assert same(whole, union)


def test_images_labels_and_ids_stay_together():
    part = source().subset(np.array([20, 3, 11, 9]))
    for batch in first(data.train_batches(part, 4, seed=0), 3):
        assert set(batch["id"]) == {20, 3, 11, 9}
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 4 * batch["id"])
        np.testing.assert_array_equal(batch["label"], batch["id"] % 3)
        assert batch["label"].dtype == batch["id"].dtype == np.int32
    assert part[2]["id"] == 11 and part[2]["label"] == 2 and part[2]["image"].max() == 47


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("limit", "size"), [(None, 23), (9, 9), (8, 8), (99, 23)])
def test_evaluation_is_in_order_once_and_padded(limit, size, count):
    shards = [list(data.eval_batches(source(), 4, limit, i, count)) for i in range(count)]
    assert {len(s) for s in shards} == {-(-size // 4)}
    assert all(b["image"].shape == (4 // count, 2, 2, 1) for s in shards for b in s)
    seen = [b["id"][b["mask"]] for step in zip(*shards, strict=True) for b in step]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(size))


def test_records_that_are_too_many_to_keep_are_decoded_each_time(monkeypatch):
    def decoded():
        return data.Source("x", 23, (2, 2, 1), 3, lambda ids: [(kept[i]["image"], kept[i]["label"]) for i in ids])

    kept = source()
    monkeypatch.setattr(sources, "_CACHE_BYTES", 10)
    assert len(decoded()._known) == 0
    assert same(first(data.train_batches(kept, 5, seed=0), 12), first(data.train_batches(decoded(), 5, seed=0), 12))


def test_arrays_are_copied_and_not_taken_apart(monkeypatch):
    """What becomes of the arrays later is not seen; a split of any size is taken at once."""
    monkeypatch.setattr(sources, "_CACHE_BYTES", 10)
    images = np.arange(23 * 4, dtype=np.uint8).reshape(23, 2, 2, 1)
    made = data.Source.from_arrays(images, np.arange(23) % 3, 3)
    monkeypatch.setattr(made, "_decode", None)
    before = images.copy()
    images[:] = 0
    np.testing.assert_array_equal(made.take(np.arange(23))["image"], before)


def test_kept_records_are_decoded_once():
    asked = []

    def decode(ids):
        asked.extend(ids)
        return [(np.zeros((2, 2, 1), np.uint8), 0) for _ in ids]

    counted = data.Source("x", 23, (2, 2, 1), 1, decode)
    first(data.train_batches(counted, 5, seed=0, prefetch=0), 30)
    assert sorted(asked) == list(range(23))


def test_to_float():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = np.asarray(jax.jit(data.to_float)(images))
    np.testing.assert_allclose(out, images / 255, rtol=1e-7)
    assert out.dtype == np.float32 and out.min() == 0 and out.max() == 1
    with pytest.raises(ValueError, match="float32"):
        data.to_float(out)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int), "N > 0"),
        (np.zeros((3, 2, 2), np.uint8), np.zeros(3, int), r"not uint8 \[3, 2, 2\]"),
        (np.zeros((3, 2, 2, 2), np.uint8), np.zeros(3, int), "C = 1 or 3"),
        (np.zeros((3, 2, 2, 1)), np.zeros(3, int), "not float64"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3), "labels must be integers"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(2, int), r"labels must be integers \[3\]"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 7, 1]), r"mine\[1\] has label 7, .* 0..2"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 0, -1]), r"mine\[2\] has label -1"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(ValueError, match=message):
        data.Source.from_arrays(images, labels, 3, "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 5, "shard_count": 2}, "multiple of shard_count = 2"),
        ({"batch_size": 4, "shard_count": 2, "shard_index": 2}, "shard_index = 2"),
        ({"batch_size": 4, "start_step": -1}, "start_step = -1"),
        ({"batch_size": 4, "seed": -1}, "seed = -1"),
    ],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.train_batches(source(), **{"seed": 0, **arguments})
    with pytest.raises(ValueError, match="limit = 0"):
        data.eval_batches(source(), 4, limit=0)


OWN = """
import numpy as np
from robust_jax.data import Source


def _source(images, classes=3):
    images = np.asarray(images, np.uint8)
    return Source.from_arrays(images, np.arange(len(images)) % classes, classes)


def stripes():
    whole = _source(np.tile(np.arange(20)[:, None, None, None], (1, 4, 4, 1)))
    return whole.subset(np.arange(15)), whole.subset(np.arange(15, 20))


def from_folder(data_dir):
    bright = np.full((10, 2, 2, 3), len(str(data_dir)))
    return _source(bright), _source(bright)


def not_sources():
    return np.zeros((3, 2, 2, 1)), np.zeros(3)


def unlike():
    return _source(np.zeros((5, 4, 4, 1))), _source(np.zeros((5, 4, 4, 3)))


def other_classes():
    return _source(np.zeros((5, 4, 4, 1))), _source(np.zeros((5, 4, 4, 1)), 4)


def no_test_images():
    train, test = stripes()
    return train, test.subset(np.arange(0))
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_datasets.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def test_a_dataset_of_ones_own_is_a_function_in_a_file_outside_of_the_package():
    dataset = data.load("own_datasets:stripes", validation=0.2)
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("own_datasets:stripes", 3, (4, 4, 1))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [12, 3, 5]
    for part in (dataset.train, dataset.validation, dataset.test):
        batch = part.take(np.arange(len(part)))
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"])
    np.testing.assert_array_equal(dataset.validation.ids, data.load("own_datasets:stripes", None, 0.2).validation.ids)


def test_a_dataset_that_declares_data_dir_gets_it():
    assert data.load("own_datasets:from_folder", "some/where").test[0]["image"].max() == len("some/where")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_datasets:striped", "data.name='own_datasets:striped' cannot be imported: .*no attribute 'striped'"),
        ("nowhere:stripes", "data.name='nowhere:stripes' cannot be imported: No module named 'nowhere'"),
        ("own_datasets:not_sources", r"returned \['ndarray', 'ndarray'\]: it must return \(train, test\)"),
        ("own_datasets:unlike", r"5 images \[4, 4, 1\] of 3 classes, 5 images \[4, 4, 3\] of 3 classes"),
        ("own_datasets:other_classes", "of 3 classes, 5 images .* of 4 classes"),
        ("own_datasets:no_test_images", "15 images .*, 0 images"),
    ],
)
def test_mistaken_datasets_of_ones_own(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_what_is_known_of_a_dataset_is_so(digits):
    assert set(data.STATISTICS) == set(data.IMAGE_SHAPES) == set(data.NAMES)
    assert data.IMAGE_SHAPES["digits"] == (digits.image_shape, digits.num_classes)
    images = np.concatenate([part.take(np.arange(len(part)))["image"] for part in (digits.train, digits.validation)])
    found = (images / 255).mean(), (images / 255).std()
    np.testing.assert_allclose(np.ravel(data.STATISTICS["digits"]), found, atol=2e-3)


def test_what_is_known_of_a_dataset_is_known_of_its_versions():
    mnist = known.KNOWN["mnist"]
    assert known.facts("mnist:3.0.1") is mnist and known.facts("mnist/config:3.0.1") is mnist
    assert [known.facts(name) for name in ("mnist:images", "folder:mnist", "imagenet2012")] == [None] * 3
    config = base("mnist:3.0.1")
    assert (config.model.mean, config.model.std) == (mnist.mean, mnist.std)
    assert nominal_shape(config.to_dict()) == (mnist.image_shape, 10)


def test_importing_data_loads_no_reader():
    code = "import sys, robust_jax.data; print({'grain', 'tensorflow_datasets', 'sklearn', 'PIL'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
