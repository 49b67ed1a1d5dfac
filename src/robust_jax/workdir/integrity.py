"""What is saved beside a state, so that a damaged checkpoint is never restored as other numbers.

Orbax's files carry no checksums of their own: a flipped bit in them is another number, or another shape. A checkpoint
therefore holds notes: a checksum (XXH3) of every leaf, its dtype and shape; its step; the config of its run. The
notes are in Orbax's ``_CHECKPOINT_METADATA``, so that they are written and renamed together with the state, and have a
checksum themselves.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

FILE, KEY = "_CHECKPOINT_METADATA", "robust_jax"


class DamagedError(Exception):
    """A checkpoint that cannot be restored, or not to what was saved; the message says why."""


def notes(
    step: int, state: Any, config: Mapping[str, Any], pending: Mapping[str, Any], validated: bool = True
) -> dict[str, Any]:
    """What is saved beside a state, in the form that JSON has for it.

    Args:
      step: the number of steps done.
      state: a pytree of NumPy arrays.
      config: of the run, as `robust_jax.workdir.saved_config.plain` gives it.
      pending: the metrics of the steps since the last log step.
      validated: whether nothing that is due after this step is left to do.
    """
    content = {"step": step, "leaves": checksums(state), "config": dict(config), "pending": dict(pending)}
    content |= {"validated": validated, "hash": "xxh3_64"}
    return content | {"checksum": _of_json(content)}


_HASHES: dict[str, Callable[[Any], int | str]] = {
    "xxh3_64": xxhash.xxh3_64_hexdigest,  # seven times as fast as
    "crc32": zlib.crc32,  # which checkpoints have that do not name their hash
}


def checksums(state: Any, hash_name: str = "xxh3_64") -> dict[str, list[Any]]:
    """Of every leaf, by its path such as "params/Dense_0/kernel": its dtype, shape and checksum."""
    leaves = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    found = {n: [str(leaf.dtype), list(leaf.shape), _HASHES[hash_name](_bytes(leaf))] for n, leaf in leaves.items()}
    return dict(sorted(found.items()))


def read(folder: Path) -> dict[str, Any] | None:
    """The notes of a checkpoint; None if it was saved by an earlier version, which wrote none.

    Raises:
      DamagedError: the file that holds them is missing or not what was written; a pipe or device in the folder.
    """
    if odd := [path for path in (folder, *folder.rglob("*")) if not (path.is_file() or path.is_dir())]:
        raise DamagedError(f"{odd[0].name} is no file")  # to read a pipe is to wait for ever
    try:
        metadata = json.loads((folder / FILE).read_bytes())["custom_metadata"] or {}
        content = metadata.get(KEY)
        if content is None:
            return None
        right = content.pop("checksum") == _of_json(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{FILE} is missing or cut: {type(error).__name__}") from error
    if not right:
        raise DamagedError(f"{FILE} is not what was saved: its checksum is wrong")
    return content


def check_shapes(shapes: Any, content: Mapping[str, Any] | None) -> None:
    """Looks at what a checkpoint declares before it is read: a planted one may ask for any amount of memory.

    Args:
      shapes: of its leaves, a tree of tuples.
      content: its notes, if it has any.

    Raises:
      DamagedError: a leaf of another shape than the one that was saved, or more numbers than there is memory for.
    """
    found = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))[0]
    for path, shape in found:
        expected = content["leaves"].get(_name(path)) if content else None
        if expected and tuple(expected[1]) != shape:
            raise DamagedError(f"{_name(path)} has shape {shape}, and was saved with {tuple(expected[1])}")
    numbers = sum(math.prod(shape) for _, shape in found)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if numbers > memory:
        raise DamagedError(f"it declares {numbers:.1e} numbers, for which {memory:.1e} bytes of memory are too few")


def verify(state: Any, content: Mapping[str, Any], step: int) -> None:
    """Compares a restored state with its notes.

    Raises:
      DamagedError: names the first leaf whose bits are not those that were saved, or the step that the folder's name
        does not say.
    """
    if content["step"] != step:
        raise DamagedError(f"it was saved at step {content['step']}")
    expected, found = content["leaves"], checksums(state, content.get("hash", "crc32"))
    for name in sorted({*expected} | {*found}):
        if expected.get(name) != found.get(name):
            state_of = "is missing" if name not in found else "is not what was saved: its checksum is wrong"
            raise DamagedError(f"{name} {state_of}")


def other_structure(content: Mapping[str, Any], template: Any) -> str:
    """The first leaf that a checkpoint and a template do not both have, in the same shape; empty if there is none."""
    return other_shape({name: tuple(shape) for name, (_, shape, _) in content["leaves"].items()}, shapes_of(template))


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its path."""
    return {_name(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def other_shape(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> str:
    """The first leaf that does not have the same shape in both; empty if there is none."""
    for name in sorted({*there} | {*here}):
        if there.get(name) != here.get(name):
            return f"{name} has shape {there.get(name, 'none')} there and {here.get(name, 'none')} here"
    return ""


def _bytes(leaf: np.ndarray) -> memoryview:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def _of_json(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _name(path: tuple[Any, ...]) -> str:
    """The same for a state and for the nested dicts that it is restored as without a template."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
