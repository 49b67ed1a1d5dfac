"""Prepares well-known datasets from their original files, without TensorFlow: ``robust-jax prepare NAME``.

The result is what TFDS's own builders write, as array_record: the same examples in the same order, which is that of a
hash of their numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from robust_jax.data import originals
from robust_jax.data.known import KNOWN
from robust_jax.extensions import choose

_SECONDS = 30.0  # without an answer, after which the next address is tried


def prepare(
    name: str,
    source: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    *,
    unverified: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a dataset as array_record, from which `robust_jax.data.load` reads it.

    A dataset that is there already is left unchanged. The files are checked against their published checksums.

    Args:
      name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "svhn_cropped".
      source: the original files, or folders that hold them; none: they are downloaded.
      data_dir: where prepared datasets are; default: TFDS's, `TFDS_DATA_DIR` or ``~/tensorflow_datasets``.
      unverified: whether files with another checksum are taken.
      progress: whether to show bars and what was done.

    Returns:
      The folder of the dataset.

    Raises:
      ValueError: an unknown name; a file that is missing, damaged, or cannot be downloaded; a folder in the way.
    """
    from tensorflow_datasets.core import constants

    choose("prepare", name, originals.ORIGINALS)
    original = originals.ORIGINALS[name]
    root = Path(data_dir or constants.DATA_DIR).expanduser()
    target = root / name / original.version
    if target.exists():
        if not (target / "dataset_info.json").is_file():
            raise ValueError(f"{target} is in the way: it holds no dataset. Remove it.")
        _say(progress, f"{name} is prepared already, in {target}, and left unchanged. Remove it to prepare it again.")
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}_", dir=root) as temporary:
        if source:
            form, files = _given(name, [Path(each).expanduser() for each in source])
        else:
            form = original.forms[0]
            files = [_downloaded(file, Path(temporary), progress) for file in form.files]
        if not unverified:
            for file, path in zip(form.files, files, strict=True):
                _verify(file, path)
        written = _write(name, form.read(*files), Path(temporary) / "data", progress)
        target.parent.mkdir(exist_ok=True)
        written.rename(target)  # whole or not at all
    _say(progress, f"{name} is prepared in {target}. Cite: {original.citation}")
    return target


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text)


def _given(name: str, source: Sequence[Path]) -> tuple[originals.Form, list[Path]]:
    """The form of a dataset all of whose files are among the given ones, and these files."""
    if missing := [path for path in source if not path.exists()]:
        raise ValueError(f"--from: there is no {missing[0]}.")
    found = {p.name: p for path in source for p in (sorted(path.rglob("*")) if path.is_dir() else [path])}
    for form in originals.ORIGINALS[name].forms:
        if all(file.name in found for file in form.files):
            return form, [found[file.name] for file in form.files]
    lacking = [f.name for f in originals.ORIGINALS[name].forms[0].files if f.name not in found]
    raise ValueError(
        f"{name} needs the files {originals.wanted(name)}, under these names; of those, "
        f"{', '.join(map(str, source))} lacks {', '.join(lacking)}."
    )


def _downloaded(file: originals.File, folder: Path, progress: bool) -> Path:
    """A file from the first of its addresses that has it undamaged."""
    path, problems = folder / file.name, []
    for url in file.urls:
        try:
            with (
                urllib.request.urlopen(url, timeout=_SECONDS) as answer,
                path.open("wb") as out,
                tqdm(
                    total=int(answer.headers.get("Content-Length") or 0) or None, desc=file.name, unit="B",
                    unit_scale=True, disable=not progress,
                ) as bar,
            ):  # fmt: skip
                while part := answer.read(2**20):
                    out.write(part)
                    bar.update(len(part))
            _verify(file, path)
            return path
        except (OSError, ValueError) as error:
            problems.append(f"{url}: {error}")
    raise ValueError(
        f"{file.name} cannot be downloaded.\n  " + "\n  ".join(problems) + "\nWhere there is network fetch it by hand, "
        "and give it by --from."
    )


def _verify(file: originals.File, path: Path) -> None:
    """Raises ValueError for a file with another checksum than the published one."""
    kind, _, expected = file.checksum.partition(":")
    with path.open("rb") as content:
        found = hashlib.file_digest(content, kind).hexdigest()
    if found == expected:
        return
    other = [
        name for name, original in originals.ORIGINALS.items() for form in original.forms for each in form.files
        if each.checksum == f"{kind}:{found}"
    ]  # fmt: skip
    hint = f" It is the file of {other[0]}." if other else ""
    raise ValueError(
        f"{path} is not the published {file.name}: {kind} {expected} expected, {found} found.{hint} It is damaged, or "
        f"another file; --unverified takes it nevertheless."
    )


def _write(name: str, splits: dict[str, originals.Examples], folder: Path, progress: bool) -> Path:
    """The splits as TFDS writes them, in a new folder."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    original, facts = originals.ORIGINALS[name], KNOWN[name]
    features: dict[str, Any] = {
        "image": tfds.features.Image(shape=facts.image_shape),
        "label": tfds.features.ClassLabel(names=facts.class_names),
        **{label: tfds.features.ClassLabel(num_classes=count) for label, count in original.labels.items()},
        **({"id": tfds.features.Text()} if original.digits else {}),
    }
    described = tfds.features.FeaturesDict(features)
    folder.mkdir()
    described_splits = []
    for split, (images, labels) in splits.items():
        _check(name, split, images, labels)
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer, size = ArrayRecordWriter(str(path), "group_size:1"), 0
        for i in tqdm(_order(split, len(images)), desc=f"{name}/{split}", unit=" images", disable=not progress):
            example = {"image": io.BytesIO(_png(images[i])), **{key: int(each[i]) for key, each in labels.items()}}
            if original.digits:
                example["id"] = f"{split}_{i:0{original.digits}d}"
            record = described.serialize_example(described.encode_example(example))
            writer.write(record)
            size += len(record)
        writer.close()
        described_splits.append(
            {
                "name": split, "numBytes": str(size), "shardLengths": [str(len(images))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )  # fmt: skip
    described.save_config(str(folder))
    info = {
        "name": name, "version": original.version, "fileFormat": "array_record", "citation": original.citation,
        "splits": described_splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    return folder


def _check(name: str, split: str, images: np.ndarray, labels: dict[str, np.ndarray]) -> None:
    facts = KNOWN[name]
    counts = {"label": facts.num_classes, **originals.ORIGINALS[name].labels}
    if images.shape[1:] != facts.image_shape:
        raise ValueError(f"{name}/{split} has images {list(images.shape[1:])}, {list(facts.image_shape)} expected.")
    for label, count in counts.items():
        if labels[label].min() < 0 or labels[label].max() >= count:
            raise ValueError(f"{name}/{split} has {label} {labels[label].max()}, 0..{count - 1} expected.")


def _order(split: str, count: int) -> Sequence[int]:
    """The examples' numbers in the order of TFDS: by a hash of the split and the number."""
    return sorted(range(count), key=lambda i: hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest())


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)).save(content, "PNG")
    return content.getvalue()
