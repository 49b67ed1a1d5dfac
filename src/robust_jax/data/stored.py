"""Images of one's own in files: ``data.name="folder:PATH"`` and ``"npz:PATH"``, each one function of this file.

A relative path starts in ``data.data_dir``, or in the current folder if that is empty.
"""

from __future__ import annotations

import re
import unicodedata
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from robust_jax.data import pixels
from robust_jax.data.own import from_arrays
from robust_jax.data.parts import split_off
from robust_jax.data.sources import Source

_SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
_LIKE_A_SPLIT = re.compile("|".join(names[0] for names in _SPLITS.values()), re.IGNORECASE)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def npz(path: str, *, data_dir: str | Path | None = None, test: float = 0.2) -> tuple[Source, ...]:
    """The arrays of an ``.npz`` file: ``images`` and ``labels``, or those of splits.

    Splits are named ``train_images`` and ``train_labels``, or ``x_train`` and ``y_train``, and likewise with ``val``
    (or ``validation``) and ``test``. An array ``class_names`` gives names. What an array may be, see
    `robust_jax.data.own.from_arrays`.

    Args:
      path: of the file.
      data_dir: where a relative path starts.
      test: the fraction set aside if there is no test split.

    Returns:
      (train, test) or (train, validation, test).

    Raises:
      ValueError: no such file, a damaged one, Python objects in it, or arrays that are missing; names the file.
    """
    file = _found(path, data_dir)
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as .npz: {error}") from error
    pairs = {split: pair for split in _SPLITS if (pair := _pair(arrays, split))}
    if "train" not in pairs:
        raise ValueError(
            f"{file} has the arrays {sorted(arrays)}: it needs images and labels, or train_images and train_labels (or "
            f"x_train and y_train), and the same with val and test if it has such splits."
        )
    used = {name for pair in pairs.values() for name in pair} | {"class_names"}
    looks_like_one = re.compile(r"(^|_)(x|y|images?|labels?)(_|$)", re.IGNORECASE)
    if others := sorted(name for name in arrays.keys() - used if looks_like_one.search(name)):
        raise ValueError(
            f"{file} has the arrays {others} beside {sorted(used & arrays.keys())}: they are no split by their names. "
            f"Splits are x_SPLIT and y_SPLIT, or SPLIT_images and SPLIT_labels, with SPLIT one of {_known_names()}."
        )
    names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
    train = from_arrays(*map(arrays.get, pairs["train"]), class_names=names, name=f"{file}/train")
    made = {
        split: from_arrays(
            *map(arrays.get, pair), num_classes=train.num_classes, class_names=names, name=f"{file}/{split}"
        )
        for split, pair in pairs.items()
        if split != "train"
    }
    return _with_test({"train": train, **made}, test)


def folder(
    path: str, *, data_dir: str | Path | None = None, size: int = 0, resize: str = "crop", test: float = 0.2
) -> tuple[Source, ...]:
    """A folder of images per class, in folders ``train``, ``val`` and ``test``, or without splits.

    Classes are numbered in the alphabetical order of the training folder's folders, and named after them; other splits
    may lack some. The images are grey if no training image has colour, RGB otherwise; transparency shows white. Files
    and folders whose names start with a dot are passed over. Images are read when they are needed, and kept in memory
    if all take less than 1 GiB.

    Args:
      path: of the folder.
      data_dir: where a relative path starts.
      size: the height and width that images are brought to; 0 if all have one size.
      resize: "crop", "stretch" or "pad", see `robust_jax.data.pixels.resized`.
      test: the fraction set aside if there is no folder ``test``.

    Returns:
      (train, test) or (train, validation, test).

    Raises:
      ValueError: no such folder, no or a single class, folders that look like splits of other names, a class without
        images, sizes that differ without ``size``, a file that is no image, a link to a folder; names the file or
        folder. A file that is damaged further on, when it is read.
    """
    root = _found(path, data_dir)
    files = _files(_split_folders(root))
    names = list(files["train"])
    heads = {split: [(f, *_head(f)) for f, _ in _labelled(found)] for split, found in files.items()}
    channels = 1 if all(grey for _, _, grey in heads["train"]) else 3
    every = [(file, shape) for rows in heads.values() for file, shape, _ in rows]
    height, width = (size, size) if size else pixels.one_shape(every)

    def source(split: str) -> Source:
        examples = _labelled(files[split])

        def decode(ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
            return [(_read(examples[i][0], channels, size, resize), examples[i][1]) for i in ids]

        return Source(f"{root}/{split}", len(examples), (height, width, channels), len(names), decode, names)

    return _with_test({split: source(split) for split in files}, test)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; without such folders, `root` is the training split."""
    there = {split: [root / name for name in names if (root / name).is_dir()] for split, names in _SPLITS.items()}
    if twice := [found for found in there.values() if len(found) > 1]:
        raise ValueError(
            f"{root} has the folders {[p.name for p in twice[0]]}, which are one split: put them together."
        )
    splits = {split: found[0] for split, found in there.items() if found}
    if splits and "train" not in splits:
        raise ValueError(f"{root} has {[p.name for p in splits.values()]}, and no folder train.")
    others = {p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")} - {*splits.values()}
    _check_others(root, splits, others)
    return splits or {"train": root}


def _check_others(root: Path, splits: Mapping[str, Path], others: Collection[Path]) -> None:
    """Raises ValueError for folders beside splits, and for classes that look like splits of other names."""
    if splits and others:
        raise ValueError(
            f"{root} has the folder {min(others).name!r} beside {splits['train'].name!r}: it is no split by its name. "
            f"Known are {_known_names()}; rename it, or put it elsewhere."
        )
    if others and all(_LIKE_A_SPLIT.match(p.name) for p in others):
        raise ValueError(
            f"{root} has the folders {sorted(p.name for p in others)}, which look like splits, not like classes: the "
            f"names of splits are {_known_names()}; rename them."
        )


def _known_names() -> str:
    return ", ".join(name for names in _SPLITS.values() for name in names)


def _found(path: str, data_dir: str | Path | None) -> Path:
    full = Path(data_dir or "").expanduser() / Path(path).expanduser()
    if not path or not full.exists():
        raise ValueError(
            f"data.name: there is no {full} (a relative path starts in data.data_dir, or the current folder)."
        )
    return full


def _with_test(made: Mapping[str, Source], fraction: float) -> tuple[Source, ...]:
    train, test = (made["train"], made["test"]) if "test" in made else split_off(made["train"], fraction)
    return (train, made["validation"], test) if "validation" in made else (train, test)


def _pair(arrays: Mapping[str, Any], split: str) -> tuple[str, str] | None:
    """The names of the images and labels of a split, of all that are common."""
    names = [(f"{s}_images", f"{s}_labels") for s in _SPLITS[split]] + [(f"x_{s}", f"y_{s}") for s in _SPLITS[split]]
    names += [("images", "labels")] if split == "train" else []
    return next(((x, y) for x, y in names if x in arrays and y in arrays), None)


def _files(folders: Mapping[str, Path]) -> dict[str, dict[str, list[Path]]]:
    """The files of each class of the training split, in each split; none of those that a split lacks."""
    found = {split: {name: _images(each) for name, each in _classes(where).items()} for split, where in folders.items()}
    names = list(found["train"])
    for split, classes in found.items():
        if odd := [name for name in classes if name not in names]:
            raise ValueError(f"{folders[split]} has the classes {odd}, and {folders['train']} has not: {names[:10]}.")
        if lacking := [name for name in names if name not in classes]:
            logging.warning("%s has no images of the classes %s.", folders[split], lacking[:10])
    return {split: {name: classes.get(name, []) for name in names} for split, classes in found.items()}


def _labelled(found: Mapping[str, Sequence[Path]]) -> list[tuple[Path, int]]:
    return [(file, label) for label, files in enumerate(found.values()) for file in files]


def _classes(where: Path) -> dict[str, Path]:
    """The folder of each class; letters with accents, of which systems have two forms, are taken in one."""
    if not where.is_dir():
        raise ValueError(f"{where} is no folder: give one with a folder of images per class.")
    there = [p for p in where.iterdir() if p.is_dir() and not p.name.startswith(".")]
    folders = dict(sorted((unicodedata.normalize("NFC", p.name), p) for p in there))
    if len(folders) < len(there):
        raise ValueError(f"{where} has two folders whose names differ only in how accents are stored: make them one.")
    if len(folders) < 2:
        raise ValueError(f"{where} has {len(folders)} folders of classes: it needs one per class, at least 2.")
    return folders


def _images(folder: Path) -> list[Path]:
    """The images of a class."""
    shown = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = sorted(p for p in shown if p.is_file())
    if lost := [p for p in shown if p.is_symlink() and not p.is_file()]:
        raise ValueError(f"{lost[0]} is a link to a folder or to nothing: link each image, or remove it.")
    if odd := [p for p in files if p.suffix.lower() not in _SUFFIXES]:
        raise ValueError(f"{odd[0]} is no image: remove it. Images end in {', '.join(_SUFFIXES)}.")
    if not files:
        raise ValueError(f"{folder} has no images: remove the folder, or put images of the class in it.")
    return files


def _head(file: Path) -> tuple[tuple[int, int], bool]:
    """The height and width of an image, and whether it is grey, from the start of its file."""
    from PIL import Image, UnidentifiedImageError
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with Image.open(file) as picture:
            # Of a PNG without these PIL reads the whole file to know.
            known = picture.format != "PNG" or picture.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp"}
            turned = known and picture.getexif().get(0x0112, 1) >= 5
            size = picture.size
            if isinstance(picture, TiffImageFile):  # whose size PIL has turned already
                size = picture.tag_v2[256], picture.tag_v2[257]
            return (size if turned else size[::-1]), pixels.is_grey(file, picture)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _read(file: Path, channels: int, size: int, resize: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return pixels.decoded(picture, channels, size, resize)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
