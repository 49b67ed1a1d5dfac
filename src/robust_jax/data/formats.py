"""Readers of the formats in which datasets are published: IDX, CIFAR's two archives, MATLAB. No file runs code.

Each gives split -> (images uint8 ``[N, H, W, C]``, name -> labels ``[N]``), and raises a ValueError that names a file
which is not what it should be.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

Examples = tuple[np.ndarray, dict[str, np.ndarray]]
_MOST_BYTES = 2**29  # of a member of an archive; the largest is 154 MB


def idx(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> dict[str, Examples]:
    """MNIST's format: big-endian sizes, then bytes; compressed by gzip."""
    made = {}
    for split, pictures, classes in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        images, labels = _idx(pictures, 3), _idx(classes, 1)
        made[split] = _examples(pictures, images[..., None], {"label": labels})
    return made


def _idx(path: Path, axes: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no gzip file, or damaged: {error}") from error
    shape = np.frombuffer(content[4 : 4 + 4 * axes], ">u4").tolist()
    values = np.frombuffer(content, np.uint8, offset=min(4 + 4 * axes, len(content)))
    if content[:4] != bytes((0, 0, 8, axes)) or len(shape) != axes or values.size != np.prod(shape):
        raise ValueError(f"{path} is not in the IDX format of {axes} axes, or is cut: {len(content):,} bytes.")
    return values.reshape(shape)


def cifar10_binary(path: Path) -> dict[str, Examples]:
    """``cifar-10-binary.tar.gz``: a label and 3,072 pixels per record."""
    return _binary(path, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", ("label",))


def cifar100_binary(path: Path) -> dict[str, Examples]:
    """``cifar-100-binary.tar.gz``: a coarse and a fine label and 3,072 pixels per record."""
    return _binary(path, ["train.bin"], "test.bin", ("coarse_label", "label"))


def cifar10_python(path: Path) -> dict[str, Examples]:
    """``cifar-10-python.tar.gz``, whose pickles are read without running any code."""
    return _pickled(path, [f"data_batch_{i}" for i in range(1, 6)], "test_batch", {"label": b"labels"})


def cifar100_python(path: Path) -> dict[str, Examples]:
    """``cifar-100-python.tar.gz``, whose pickles are read without running any code."""
    return _pickled(path, ["train"], "test", {"coarse_label": b"coarse_labels", "label": b"fine_labels"})


def svhn(train: Path, test: Path) -> dict[str, Examples]:
    """MATLAB files of SVHN's cropped digits, in which a 0 has the label 10."""
    from scipy.io import loadmat

    made = {}
    for split, path in (("train", train), ("test", test)):
        try:
            content = loadmat(path, variable_names=("X", "y"))
            images, labels = content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1) % 10
        except Exception as error:  # SciPy documents no errors for damaged files
            raise ValueError(f"{path} is not SVHN's MATLAB file, or damaged: {error}") from error
        made[split] = _examples(path, images, {"label": labels})
    return made


def _binary(path: Path, train: list[str], test: str, labels: tuple[str, ...]) -> dict[str, Examples]:
    members = _members(path, [*train, test])
    made = {}
    for split, names in (("train", train), ("test", [test])):
        content, size = b"".join(members[name] for name in names), len(labels) + 3072
        if not content or len(content) % size:
            raise ValueError(f"{path}: {names} have {len(content):,} bytes, no multiple of {size}.")
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        made[split] = _examples(
            path, _planes(records[:, len(labels) :]), {name: records[:, i] for i, name in enumerate(labels)}
        )
    return made


def _pickled(path: Path, train: list[str], test: str, labels: dict[str, bytes]) -> dict[str, Examples]:
    members = _members(path, [*train, test])
    made = {}
    for split, names in (("train", train), ("test", [test])):
        batches = [_unpickled(f"{path}: {name}", members[name]) for name in names]
        try:
            images = np.concatenate([np.asarray(batch[b"data"]) for batch in batches]).reshape(-1, 3072)
            classes = {name: np.concatenate([np.asarray(b[key]) for b in batches]) for name, key in labels.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {names} do not hold images and labels of CIFAR: {error}") from error
        made[split] = _examples(path, _planes(images), classes)
    return made


def _planes(rows: np.ndarray) -> np.ndarray:
    """Images of rows that hold all red pixels, then all green ones, then all blue ones."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _members(path: Path, names: list[str]) -> dict[str, bytes]:
    """The files of an archive by their last names; nothing is extracted to the disk."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile():
                    if member.size > _MOST_BYTES:
                        raise ValueError(f"{path}: {member.name} claims to have {member.size:,} bytes.")
                    content = archive.extractfile(member)
                    assert content
                    found[name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} is no .tar.gz archive, or damaged: {error}") from error
    if missing := sorted({*names} - {*found}):
        raise ValueError(f"{path} lacks {missing}.")
    return found


def _examples(path: Path, images: np.ndarray, labels: dict[str, np.ndarray]) -> Examples:
    whole = all(np.issubdtype(each.dtype, np.integer) and each.shape == (len(images),) for each in labels.values())
    if images.dtype != np.uint8 or not len(images) or not whole:
        shapes = {name: list(each.shape) for name, each in labels.items()}
        raise ValueError(f"{path}: {images.dtype} images {list(images.shape)} do not go with labels {shapes}.")
    return images, labels


class _Unpickler(pickle.Unpickler):
    """Makes numbers, text, lists, dicts and NumPy arrays of numbers; anything else that a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy._core", "numpy.core"), name
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _empty,
            ("numpy", "ndarray"): "an array",  # an argument of _reconstruct, which ignores it
            ("numpy", "dtype"): _plain_dtype,
            ("_codecs", "encode"): _encoded,
        }
        if place not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return allowed[place]


def _empty(*_: Any) -> np.ndarray:
    return np.empty((0,), np.int8)


def _plain_dtype(kind: Any, *_: Any) -> np.dtype:
    dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"it holds an array of {dtype}")
    return dtype


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    return str(text).encode("latin1") if encoding == "latin1" else str(text).encode()


def _unpickled(what: str, content: bytes) -> dict[bytes, Any]:
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{what} is not a pickle of CIFAR, or damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} holds a {type(found).__name__}, not CIFAR's table.")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
