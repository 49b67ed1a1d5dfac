"""Tiny originals in each published format: prepared as they are, and refused by name where they are damaged."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from scipy.io import savemat

from robust_jax import commands, data
from robust_jax.data import known, originals, prepare


def status(arguments):
    """The exit status of a command."""
    try:
        commands.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


COUNTS = {"train": 10, "test": 5}


def examples(name, split):
    shape, classes = data.IMAGE_SHAPES[name]
    draw, count = np.random.default_rng(len(name + split)), COUNTS[split]
    return draw.integers(0, 256, (count, *shape), np.uint8), draw.integers(0, classes, count).astype(np.uint8)


def idx(values):
    sizes = np.array(values.shape, ">u4").tobytes()
    return gzip.compress(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes())


def archive(path, members):
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def cifar_parts(name, split, python):
    """The names of the files of a split, each with the images' rows and the labels."""
    images, labels = examples(name, split)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    end = "" if python else ".bin"
    if name == "cifar100":
        return {f"{split}{end}": (rows, labels)}
    if split == "test":
        return {f"test_batch{end}": (rows, labels)}
    return {f"data_batch_{i + 1}{end}": (rows[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2]) for i in range(5)}


def write(name, form, folder):
    folder.mkdir()
    if "mnist" in name:
        for split, start in (("train", "train"), ("test", "t10k")):
            images, labels = examples(name, split)
            (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(idx(images[..., 0]))
            (folder / f"{start}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    elif name == "svhn_cropped":
        for split in COUNTS:
            images, labels = examples(name, split)
            labels = np.where(labels, labels, 10)[:, None]
            savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels})
    else:
        python, members = form == 1, {}
        for split in COUNTS:
            for member, (rows, labels) in cifar_parts(name, split, python).items():
                coarse = [(labels % 20)] if name == "cifar100" else []
                if python:
                    key = b"fine_labels" if coarse else b"labels"
                    table = {b"data": rows, key: labels.tolist(), b"coarse_labels": (labels % 20).tolist()}
                    members[member] = pickle.dumps(table, protocol=2)
                else:
                    columns = [*coarse, labels]
                    members[member] = np.concatenate([np.stack(columns, 1), rows], 1).tobytes()
        archive(folder / originals.ORIGINALS[name].forms[form].files[0].name, members)
    return folder


@pytest.fixture
def published(monkeypatch):
    """Makes the files of a folder the published ones, at the given address."""

    def publish(name, form, folder, url="http://localhost:1/"):
        old = originals.ORIGINALS[name]
        files = tuple(
            file._replace(
                checksum=f"sha256:{hashlib.sha256((folder / file.name).read_bytes()).hexdigest()}",
                urls=("http://127.0.0.1:1/gone/" + file.name, url + file.name),
            )
            for file in old.forms[form].files
        )
        forms = tuple(f._replace(files=files) if i == form else f for i, f in enumerate(old.forms))
        monkeypatch.setitem(originals.ORIGINALS, name, old._replace(forms=forms))

    return publish


FORMS = [(name, form) for name, original in originals.ORIGINALS.items() for form in range(len(original.forms))]


def check(name, folder):
    dataset = data.load(name, folder, validation=0.0)
    assert dataset.class_names == known.KNOWN[name].class_names
    for split, count in COUNTS.items():
        order = sorted(range(count), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
        images, labels = examples(name, split)
        batch = getattr(dataset, split).take(np.arange(count))
        np.testing.assert_array_equal(batch["image"], images[order])
        np.testing.assert_array_equal(batch["label"], labels[order])


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_each_format_in_the_order_of_tfds(name, form, tmp_path, published, capsys):
    files = write(name, form, tmp_path / "files")
    published(name, form, files)
    assert status(["prepare", name, "--from", str(files), "--data_dir", str(tmp_path / "made")]) == 0
    check(name, tmp_path / "made")
    assert status(["prepare", name, "--data_dir", str(tmp_path / "made")]) == 0
    assert "is prepared already" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "made").iterdir()] == [name]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_damaged_file_is_refused_by_name(name, form, tmp_path, published, capsys):
    files = write(name, form, tmp_path / "files")
    published(name, form, files)
    file = files / originals.ORIGINALS[name].forms[form].files[0].name
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    arguments = ["prepare", name, "--from", str(files), "--data_dir", str(tmp_path / "made")]
    assert status(arguments) == 2
    message = capsys.readouterr().err
    assert str(file) in message and expected in message and "found" in message
    assert status([*arguments, "--unverified"]) == 2
    assert str(file) in capsys.readouterr().err
    assert not list((tmp_path / "made").iterdir())


def test_files_that_are_missing_are_named(tmp_path, capsys):
    files = write("mnist", 0, tmp_path / "files")
    (files / "t10k-labels-idx1-ubyte.gz").unlink()
    assert status(["prepare", "mnist", "--from", str(files), "--data_dir", str(tmp_path / "made")]) == 2
    assert "lacks t10k-labels-idx1-ubyte.gz" in capsys.readouterr().err
    assert status(["prepare", "mnits", "--data_dir", str(tmp_path)]) == 2
    assert "Did you mean 'mnist'" in capsys.readouterr().err


def test_the_file_of_another_dataset_is_told(tmp_path, published, capsys):
    other = write("fashion_mnist", 0, tmp_path / "files")
    published("fashion_mnist", 0, other)
    assert status(["prepare", "mnist", "--from", str(other), "--data_dir", str(tmp_path)]) == 2
    assert "It is the file of fashion_mnist" in capsys.readouterr().err


class Planted:
    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return (type(self.ran).touch, (self.ran,))


def test_a_pickle_runs_no_code(tmp_path, capsys):
    ran = tmp_path / "ran"
    members = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    archive(tmp_path / "cifar-10-python.tar.gz", {m: pickle.dumps(Planted(ran), protocol=2) for m in members})
    arguments = ["prepare", "cifar10", "--from", str(tmp_path), "--data_dir", str(tmp_path), "--unverified"]
    assert status(arguments) == 2
    assert "which could run code" in capsys.readouterr().err and not ran.exists()


def test_files_are_downloaded_from_the_first_address_that_has_them(tmp_path, published):
    files = write("mnist", 0, tmp_path / "files")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        published("mnist", 0, files, f"http://127.0.0.1:{server.server_port}/")
        prepare.prepare("mnist", data_dir=tmp_path / "made", progress=False)
        check("mnist", tmp_path / "made")
        file = files / "train-labels-idx1-ubyte.gz"
        file.write_bytes(file.read_bytes() + b"x")
        with pytest.raises(
            ValueError, match=r"train-labels-idx1-ubyte.gz cannot be downloaded.[^$]*sha256 .* expected"
        ):
            prepare.prepare("mnist", data_dir=tmp_path / "again", progress=False)
    finally:
        server.shutdown()
        server.server_close()
