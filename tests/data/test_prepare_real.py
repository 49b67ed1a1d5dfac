"""`prepare` on MNIST's and CIFAR-10's files, rebuilt in their original formats from what TFDS prepared, if present."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from robust_jax import data
from robust_jax.data import prepare

SHARED = Path(os.environ.get("ROBUST_JAX_TFDS") or Path(__file__).resolve().parents[3] / "shared" / "tfds")
pytestmark = pytest.mark.slow


def in_original_order(source, split):
    """TFDS orders examples by a hash of their numbers in the original files."""
    order = sorted(range(len(source)), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
    batch = source.take(np.argsort(order))
    return batch["image"], batch["label"]


def write_mnist(folder, splits):
    for split, (images, labels) in splits.items():
        start = {"train": "train", "test": "t10k"}[split]
        sizes = np.array(images.shape[:3], ">u4").tobytes()
        content = bytes((0, 0, 8, 3)) + sizes + images.tobytes()
        (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
        content = bytes((0, 0, 8, 1)) + sizes[:4] + labels.astype(np.uint8).tobytes()
        (folder / f"{start}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content, 1))


def write_cifar10(folder, splits):
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for split, (images, labels) in splits.items():
            pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            records = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            for i in range(5 if split == "train" else 1):
                content = records[10000 * i : 10000 * (i + 1)].tobytes()
                member = tarfile.TarInfo(
                    f"cifar-10-batches-bin/{f'data_batch_{i + 1}' if split == 'train' else 'test_batch'}.bin"
                )
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(("name", "write"), [("mnist", write_mnist), ("cifar10", write_cifar10)])
def test_the_same_images_and_labels_in_the_same_order(name, write, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no prepared {name} in {SHARED}; set ROBUST_JAX_TFDS to a folder that has it")
    reference = data.load(name, SHARED, validation=0.0)
    splits = {split: getattr(reference, split) for split in ("train", "test")}
    write(tmp_path, {split: in_original_order(source, split) for split, source in splits.items()})
    with pytest.raises(ValueError, match="is not the published"):
        prepare.prepare(name, [tmp_path], tmp_path / "made", progress=False)
    prepare.prepare(name, [tmp_path], tmp_path / "made", unverified=True, progress=False)
    made = data.load(name, tmp_path / "made", validation=0.0)
    assert made.class_names == reference.class_names
    for split, source in splits.items():
        again = getattr(made, split)
        assert len(again) == len(source)
        everything = np.arange(len(source))
        for key, value in source.take(everything).items():
            assert value.tobytes() == again.take(everything)[key].tobytes()
