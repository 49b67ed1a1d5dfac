"""TFDS datasets: one built here by TFDS's own machinery, broken ones, and real ones if present."""

from __future__ import annotations

import http.server
import importlib.util
import io
import itertools
import json
import os
import socket
import sys
import threading
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from robust_jax import data
from robust_jax.data import originals
from robust_jax.data import tfds as tfds_source


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def picture(i, channels=3):
    shape = (6, 5, 3) if channels == 3 else (6, 5)
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


GOOD = {
    "train": [(png(picture(i)), i % 4) for i in range(20)],
    "test": [(png(picture(100 + i)), i % 4) for i in range(8)],
}


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Encoded PNGs given as files need no TensorFlow to be written."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent
    records = GOOD
    features = None

    def _info(self):
        features = self.features or {
            "image": tfds.features.Image(shape=(6, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.records}

    def _generate_examples(self, split):
        for i, (image, label) in enumerate(self.records[split]):
            yield i, {"image": io.BytesIO(image), "label": label}


@pytest.fixture
def build(tmp_path, monkeypatch):
    def run(records=GOOD, features=None):
        monkeypatch.setattr(TinyPictures, "records", records)
        monkeypatch.setattr(TinyPictures, "features", features)
        builder = TinyPictures(data_dir=str(tmp_path), file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_path)

    return run


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def load(folder, **options):
    return data.load("tiny_pictures", folder.parents[1], **{"validation": 0.2, **options})


def drain(dataset):
    for part in (dataset.train, dataset.validation, dataset.test):
        for _ in data.eval_batches(part, 4):
            pass


def test_images_and_labels_are_those_written(build):
    dataset = load(build())
    assert dataset.num_classes == 4 and dataset.image_shape == (6, 5, 3)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (16, 4, 8)
    for part, offset in ((dataset.train, 0), (dataset.validation, 0), (dataset.test, 100)):
        for batch in data.eval_batches(part, 3):
            for image, label, i in zip(batch["image"], batch["label"], batch["id"], strict=True):
                np.testing.assert_array_equal(image, picture(i + offset))
                assert label == i % 4
    assert "tensorflow" not in sys.modules


def foreign(kind):
    """A change of features.json that names a class of another module, in the form of today or of old versions."""

    def change(content):
        if kind == "nested":
            content["featuresDict"]["features"]["image"]["pythonClassName"] = "evil_features.Image"
        elif kind == "whole":
            content["pythonClassName"] = "evil_features.Features"
        else:
            content.clear()
            content.update(type="evil_features.Features", content={})

    return change


@pytest.mark.parametrize("kind", ["nested", "whole", "legacy"])
def test_a_description_that_names_python_classes_runs_no_code(build, tmp_path, monkeypatch, kind):
    folder = build()
    (tmp_path / "evil_features.py").write_text("from pathlib import Path\n(Path(__file__).parent / 'ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder / "features.json", foreign(kind))
    with pytest.raises(
        ValueError, match=r"description of tiny_pictures in .* names the class 'evil_features\."
    ) as error:
        load(folder)
    assert "to import 'evil_features' would run its code" in str(error.value)
    assert not (tmp_path / "ran").exists() and "evil_features" not in sys.modules
    original = vars(tfds.features.FeatureConnector)["cls_from_name"]
    assert isinstance(original, classmethod) and original.__module__ == tfds.features.FeatureConnector.__module__


def test_classes_that_the_user_has_imported_are_read(build):
    class OwnText(tfds.features.Scalar):
        def __init__(self):
            super().__init__(dtype=np.int64)

        @classmethod
        def from_json_content(cls, value):
            return cls()

    folder = build()

    def change(content):
        named = f"{OwnText.__module__}.{OwnText.__name__}"
        content["featuresDict"]["features"]["extra"] = {"pythonClassName": named, "jsonFeature": {"json": "{}"}}

    edit(folder / "features.json", change)
    assert load(folder).num_classes == 4


def test_validation_is_disjoint_and_train_and_validation_cover_the_split(build):
    dataset = load(build())
    np.testing.assert_array_equal(np.sort(np.concatenate([dataset.train.ids, dataset.validation.ids])), np.arange(20))


def test_gray_images(build):
    records = {s: [(png(picture(i, 1)), 0) for i in range(5)] for s in ("train", "test")}
    features = {
        "image": tfds.features.Image(shape=(6, 5, 1)),
        "label": tfds.features.ClassLabel(num_classes=4),
    }
    dataset = load(build(records, features))
    assert dataset.image_shape == (6, 5, 1)
    np.testing.assert_array_equal(dataset.test[3]["image"][..., 0], picture(3, 1))


def with_record(split, i, record):
    return {s: [*r[:i], record, *r[i + 1 :]] if s == split else r for s, r in GOOD.items()}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"this is no PNG", "is corrupt: cannot identify image file"),
        (GOOD["train"][7][0][:60], "is corrupt"),
        (b"", "is corrupt"),
        (png(picture(0, 1)), r"image of shape \[6, 5, 1\], expected uint8 \[6, 5, 3\]"),
        (png(np.zeros((6, 5, 4), np.uint8)), r"image of shape \[6, 5, 4\]"),
        (png(np.zeros((7, 5, 3), np.uint8)), r"image of shape \[7, 5, 3\]"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_bad_image_is_named(build, split, image, message):
    dataset = load(build(with_record(split, 7, (image, 0))))
    with pytest.raises(ValueError, match=rf"tiny_pictures/{split}\[7\] .*{message}"):
        drain(dataset)


def test_a_bad_record_stops_training_too(build):
    dataset = load(build(with_record("train", 7, (b"broken", 0))), validation=0.0)
    with pytest.raises(ValueError, match=r"tiny_pictures/train\[7\] is corrupt"):
        for _ in itertools.islice(data.train_batches(dataset.train, 4, seed=0), 6):
            pass


def test_a_label_out_of_range_is_named(build):
    folder = build()
    edit(
        folder / "features.json",
        lambda c: c["featuresDict"]["features"]["label"]["classLabel"].update(numClasses="3"),
    )
    with pytest.raises(ValueError, match=r"tiny_pictures/train\[3\] has label 3, expected 0..2"):
        load(folder, validation=0.0).train.take(np.arange(5))


def test_bytes_changed_on_disk_are_named(build):
    folder = build()
    path = next(folder.glob("*train*"))
    content = bytearray(path.read_bytes())
    where = content.index(GOOD["train"][7][0])
    content[where + 20 : where + 40] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tiny_pictures/train\[7\] is corrupt"):
        drain(load(folder))


def test_truncated_file(build):
    folder = build()
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"tiny_pictures/train\[\d+\] is corrupt"):
        drain(load(folder))


def test_missing_file(build):
    folder = build()
    next(folder.glob("*test*")).unlink()
    with pytest.raises(ValueError, match="tiny_pictures/test is incomplete: .*is missing"):
        load(folder)


def test_empty_split(build):
    folder = build()
    edit(folder / "dataset_info.json", lambda c: c["splits"][1].update(shardLengths=["0"]))
    with pytest.raises(ValueError, match=r"/(test|train) is empty: .* examples of \['t"):
        load(folder)


def test_missing_split(build):
    with pytest.raises(ValueError, match=r"tiny_pictures/test is empty: .* \['train'\] only"):
        load(build({"train": GOOD["train"]}))


@pytest.mark.parametrize(
    "features",
    [
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        },
        {
            "image": tfds.features.Image(shape=(6, 5, 4)),
            "label": tfds.features.ClassLabel(num_classes=4),
        },
        {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.Scalar(np.int64)},
    ],
)
def test_datasets_of_another_kind(build, features):
    with pytest.raises(ValueError, match="tiny_pictures cannot be used: it needs"):
        load(build(features=features))


def test_tfrecord_files_get_the_conversion_command(build):
    folder = build()
    edit(folder / "dataset_info.json", lambda c: c.update(fileFormat="tfrecord"))
    for path in folder.glob("*array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(ValueError) as error:
        load(folder)
    command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    assert command in str(error.value) and "holds tfrecord files" in str(error.value)


def test_broken_description(build):
    folder = build()
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="description of tiny_pictures in .* is unreadable"):
        load(folder)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped"])
def test_not_prepared_says_at_once_what_to_run(name, tmp_path):
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        data.load(name, tmp_path)
    assert time.monotonic() - start < 5
    files = [file.name for form in originals.ORIGINALS[name].forms for file in form.files]
    for part in (f"robust-jax prepare {name} --data_dir={tmp_path}", "--from FILES", *files):
        assert part in str(error.value)


def test_other_datasets_need_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install tensorflow\n  python -c .*builder.*kmnist"):
        data.load("kmnist", tmp_path)


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch, build):
    folder = build()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder.parents[1]))
    for default in (None, ""):
        assert len(data.load("tiny_pictures", default).test) == 8


def test_unknown_name_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset 'cifar11'.*Did you mean cifar10") as error:
        data.load("cifar11", tmp_path)
    assert all(name in str(error.value) for name in data.NAMES)


@pytest.fixture
def with_tensorflow(monkeypatch):
    """As if TensorFlow were installed; nothing in these tests gets so far as to use it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())


@pytest.mark.parametrize("fault", ["hangs", "refused"])
def test_no_network_fails_within_seconds(fault, tmp_path, monkeypatch, with_tensorflow):
    def urlopen(*args, **options):
        if fault == "refused":
            raise urllib.error.URLError("no route")
        time.sleep(20)
        raise TimeoutError

    assert tfds_source._NETWORK_SECONDS <= 3
    monkeypatch.setattr(tfds_source, "_NETWORK_SECONDS", 0.5)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot be reached") as error:
        data.load("kmnist", tmp_path)
    assert time.monotonic() - start < 2.5
    assert "array_record" in str(error.value) and "download_and_prepare" in str(error.value)


def test_any_answer_is_network():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert not tfds_source._unreachable(f"http://127.0.0.1:{server.server_port}/file")
    finally:
        server.shutdown()
        server.server_close()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "refused" in tfds_source._unreachable(f"http://127.0.0.1:{port}/file")


def test_preparing_by_tfds(tmp_path, with_tensorflow):
    assert len(data.load("tiny_pictures", tmp_path).test) == 8
    assert list(tmp_path.glob("tiny_pictures/1.0.0/*.array_record*"))
    assert (tmp_path / "downloads" / "tiny_pictures").exists()


def test_failed_preparation_is_one_error(tmp_path, monkeypatch, with_tensorflow):
    monkeypatch.setattr(TinyPictures, "_split_generators", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="Preparing tiny_pictures failed: .*division"):
        data.load("tiny_pictures", tmp_path)


def prepared(name):
    default = Path(__file__).resolve().parents[3] / "shared" / "tfds"
    folder = Path(os.environ.get("ROBUST_JAX_TFDS") or default)
    if not (folder / name).is_dir():
        pytest.skip(f"no prepared {name} in {folder}; set ROBUST_JAX_TFDS to a folder that has it")
    return folder


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [("mnist", (28, 28, 1), (54000, 6000, 10000)), ("cifar10", (32, 32, 3), (45000, 5000, 10000))],
)
def test_real_datasets(name, shape, sizes):
    dataset = data.load(name, prepared(name))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == sizes
    assert dataset.image_shape == shape and dataset.num_classes == 10
    tested = np.concatenate([b["label"] for b in data.eval_batches(dataset.test, 500, limit=2000)])
    assert np.all(np.bincount(tested, minlength=10) > 150)
    batch = next(data.train_batches(dataset.train, 64, seed=0, start_step=10**6))
    builder = tfds.builder_from_directory(str(next((prepared(name) / name).iterdir())))
    reference = builder.as_data_source("train")
    for i in range(4):
        example = reference[int(batch["id"][i])]
        np.testing.assert_array_equal(batch["image"][i], example["image"])
        assert batch["label"][i] == example["label"]
