"""Reads TFDS image-classification datasets, and prepares them if TensorFlow is installed.

Reading needs array_record files and no TensorFlow; TFDS prepares TFRecord files unless it is asked
otherwise. Nothing here uses the network unless a dataset is missing on disk and TensorFlow is
installed to prepare it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_jax.data import originals
from robust_jax.data.known import NAMES, facts

_NETWORK_SECONDS = 3.0


class Records(NamedTuple):
    """A split on disk; `decode(ids)` returns a list of (uint8 image as stored, label), not yet checked."""

    name: str
    size: int
    image_shape: tuple[int, ...]
    num_classes: int
    decode: Callable[[np.ndarray], list[tuple[np.ndarray, int]]]
    class_names: tuple[str, ...] | None = None


def read(name: str, data_dir: str | Path | None = None) -> tuple[Records, Records]:
    """The train and test split of a TFDS dataset; arguments and errors are those of `data.load`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    try:
        with _known_classes_only():
            builder = read_only_builder.builder_from_files(name, data_dir=str(root))
    except tfds.core.DatasetNotFoundError:
        builder = _prepare(name, root)
    except Exception as error:
        raise ValueError(f"The description of {name} in {root} is unreadable: {error}") from error
    folder, info = builder.data_path, builder.info
    if "array_record" not in {f.value for f in info.available_file_formats()}:
        raise ValueError(
            f"{folder} holds {info.file_format.value} files; random access needs array_record. "
            f"Convert them, once, with\n  tfds convert_format --dataset_version_dir={folder} "
            "--out_file_format=array_record\n(needs TensorFlow: pip install tensorflow)."
        )
    features = dict(info.features)
    image, label = features.get("image"), features.get("label")
    shape: Any = getattr(image, "shape", ())
    classes = getattr(label, "num_classes", None)
    fixed = isinstance(image, tfds.features.Image) and None not in shape and shape[-1] in (1, 3)
    if not (classes and fixed and getattr(image, "np_dtype", None) == np.uint8):
        raise ValueError(
            f"{name} cannot be used: it needs a feature 'image' (uint8, all of one size, 1 or 3 "
            f"channels) and a feature 'label' (classes), but {folder} has {features}."
        )
    train, test = (_split(builder, name, split, shape, classes) for split in ("train", "test"))
    return train, test


@contextlib.contextmanager
def _known_classes_only() -> Iterator[None]:
    """Keeps TFDS from importing the classes that a dataset's description names, which may come from anyone.

    TFDS's own classes, and those of modules that are imported already, are found as ever.
    """
    from tensorflow_datasets.core.features.feature import FeatureConnector

    original = vars(FeatureConnector)["cls_from_name"]

    def cls_from_name(cls: type, name: str) -> Any:
        if name not in FeatureConnector._registered_features and not name.startswith("tensorflow_datasets."):
            module = name.rpartition(".")[0]
            raise ValueError(
                f"it names the class {name!r}, and to import {module!r} would run its code. If you trust it, import "
                f"the module first, in your --config file for example."
            )
        return original.__get__(None, cls)(name)

    FeatureConnector.cls_from_name = classmethod(cls_from_name)
    try:
        yield
    finally:
        FeatureConnector.cls_from_name = original


def _split(builder: Any, name: str, split: str, shape: tuple[int, ...], classes: int) -> Records:
    import tensorflow_datasets as tfds
    from PIL import Image

    title, splits = f"{name}/{split}", builder.info.splits
    if split not in splits or not splits[split].num_examples:
        filled = [s for s in splits if splits[s].num_examples]
        raise ValueError(f"{title} is empty: {builder.data_path} has examples of {filled} only.")
    source = builder.as_data_source(
        split,
        file_format="array_record",
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    missing = [str(f) for f in builder.info.splits[split].filepaths if not f.exists()]
    if missing:
        raise ValueError(f"{title} is incomplete: {missing[0]} is missing. Prepare it again.")
    features, as_bytes = builder.info.features, {"image": tfds.decode.SkipDecoding()}

    def decode_one(i: int, record: bytes | None) -> tuple[np.ndarray, int]:
        try:
            record = source[i] if record is None else record
            example = features.deserialize_example_np(record, decoders=as_bytes)
            with Image.open(io.BytesIO(example["image"])) as picture:
                pixels = np.asarray(picture)
                return (pixels[..., None] if picture.mode == "L" else pixels), int(example["label"])
        except Exception as error:
            raise ValueError(f"{title}[{i}] is corrupt: {error} Prepare {builder.data_path} again.") from error

    def decode(ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
        try:
            # One call for all records is many times faster than one call per record.
            records = source.__getitems__(ids.tolist())
        except Exception:  # one of them cannot be read; reading them one by one finds which
            records = [None] * len(ids)
        return [decode_one(int(i), record) for i, record in zip(ids, records, strict=True)]

    names = tuple(features["label"].names)
    known = facts(name)
    if names == tuple(map(str, range(classes))) and known and known.num_classes == classes:  # TFDS makes these up
        names = known.class_names
    return Records(title, splits[split].num_examples, tuple(shape), classes, decode, names)


def _prepare(name: str, root: Path) -> Any:
    """Downloads and prepares with TFDS's own builder: needs TensorFlow and network, shows progress.

    Each dataset gets its own download folder: MNIST's and Fashion-MNIST's files have the same
    names, and in a shared folder TFDS's extraction cache may take one for the other.
    """
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    if base not in known:
        close = difflib.get_close_matches(base, ["digits", *known], n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"Unknown dataset '{name}', and none of that name is in {root}.{hint} The choices are "
            f"{', '.join(NAMES)}, the image-classification datasets of "
            "https://www.tensorflow.org/datasets/catalog, and 'module:name' of your own."
        )
    absent = f"{name} is not prepared in {root}"
    if base in originals.ORIGINALS:
        raise ValueError(
            f"{absent}. Prepare it once, with\n  {originals.command(base, root)}\nwhich downloads its files, or, where "
            f"there is no network, is given them by --from FILES: {originals.wanted(base)}. Or pass the data_dir of a "
            "folder that has it."
        )
    builder_call = f"tfds.builder({name!r}, data_dir={str(root)!r}, file_format='array_record')"
    command = "python -c " + shlex.quote(f"import tensorflow_datasets as tfds; {builder_call}.download_and_prepare()")
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{absent}, and preparing it needs TensorFlow, once. Run, here or elsewhere,\n"
            f"  pip install tensorflow\n  {command}\n"
            "or pass the data_dir of a folder that has it."
        )
    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    for url in list(builder.url_infos or ())[:1]:
        if problem := _unreachable(url):
            raise ValueError(
                f"{absent}, and its source {url} cannot be reached ({problem}). Where there is "
                f"network run\n  {command}\nand copy the folder, or pass the data_dir that has it."
            )
    try:
        builder.download_and_prepare(download_dir=str(root / "downloads" / base))
    except Exception as error:
        raise ValueError(f"Preparing {name} failed: {error}\nBy hand:\n  {command}") from error
    return builder


def _unreachable(url: str) -> str:
    """Why nothing answers at `url`, or "" if something does; TFDS itself retries for minutes."""
    problem = [f"no answer within {_NETWORK_SECONDS:g} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
            problem[0] = ""
        except urllib.error.HTTPError:
            problem[0] = ""  # a refusal is an answer too
        except OSError as error:
            problem[0] = str(error)

    # In a thread: the time-out does not cover a name server that never answers.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_SECONDS + 1)
    return problem[0]
