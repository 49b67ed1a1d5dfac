"""Files of a workdir, written whole or not at all and read without trust; values in the form that JSON has for them.

A workdir may come from anyone. Nothing is written through a symbolic link in it, nothing is unpickled, and a file of
absurd size, depth or shape is one message.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

_MOST_BYTES = 2**24  # of a JSON file
_MOST_DEPTH = 50


def plain(value: Any) -> Any:
    """A value in the form that JSON has for it: functions as their names, arrays and tuples as lists.

    Floats are rounded to seven digits, and those that are not finite become strings.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, functools.partial):
        given = [*map(plain, value.args), *(f"{k}={plain(v)}" for k, v in value.keywords.items())]
        return f"{plain(value.func)}({', '.join(map(str, given))})"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    # A float32 radius has no more than seven digits: 0.155 * 1.5 reads 0.2325.
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else str(value)
    return value


def checksum(weights: Any) -> str:
    """Eight hexadecimal digits that depend on every bit of the arrays of a pytree; what is no array does not count."""
    total = 0
    for leaf in jax.tree.leaves(weights):
        total = total if callable(leaf) else zlib.crc32(np.asarray(leaf).tobytes(), total)
    return f"{total:08x}"


def printable(text: str) -> str:
    """Text that a terminal shows unchanged: control characters, such as escapes, are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def file_name(name: str) -> str:
    """What a name of the user's, such as that of an attack, becomes in the name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def folder_name(what: str, path: Any) -> str:
    """The path as text, with ``~`` expanded.

    Raises:
      ValueError: what is no path, or none that a file system can hold; begins with ``what``.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise ValueError(f"{what}={path!r} must be a folder: text or a path, not {type(path).__name__}.")
    text = os.path.expanduser(os.fspath(path))
    if not text or "\0" in text:
        raise ValueError(f"{what}={text!r} is no name of a folder.")
    if len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(f"{what}={text[:50]!r}... is too long for a file system: 255 bytes a name, 4,000 in all.")
    return text


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, replacing an older one: whoever reads it sees the old content or the new, never a part.

    A symbolic link of that name is replaced too: what it leads to stays unchanged.

    Raises:
      ValueError: a folder or a pipe of that name.
    """
    refuse_other(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # x: never through a link
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_to_append(path: Path) -> IO[str]:
    """A text file, made if it does not exist, opened to append to it.

    Raises:
      ValueError: a symbolic link, or no file.
    """
    refuse_link(path)
    refuse_other(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a")


def refuse_other(path: Path) -> None:
    """Raises ValueError where a file is to be and something else is: a folder, or a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        what = "folder" if path.is_dir() else "pipe or device"
        raise ValueError(f"{path} is a {what}, where a file has to be: move it away, and start again.")


def refuse_link(path: Path) -> None:
    """Raises ValueError for a symbolic link, through which nothing in a workdir is written."""
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link to {os.readlink(path)}: nothing is written through the links of a workdir, "
            f"which may lead anywhere. Remove it, or make the workdir itself the link."
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: not JSON, more than 16 MiB, or nested more than 50 deep; begins with the path.
    """
    refuse_other(path)
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes: at most {_MOST_BYTES:,} are read.")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path} is nested too deep: at most {_MOST_DEPTH} levels are read.") from None
    except ValueError as error:
        raise ValueError(f"{path} is {'no JSON' if size else 'empty'}: {error}.") from None
    level, depth = [content] if isinstance(content, dict | list) else [], 0
    while level := [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]:
        if (depth := depth + 1) >= _MOST_DEPTH:
            raise ValueError(f"{path} is nested too deep: at most {_MOST_DEPTH} levels are read.")
    return content


def read_arrays(path: Path, unpacked: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a file that `numpy.savez` wrote.

    Args:
      path: the file.
      unpacked: the most bytes that arrays of `numpy.savez_compressed` may take; 0: compressed ones are refused.

    Raises:
      ValueError: another file, a damaged one, one with Python objects (a pickle), or one whose arrays claim to be
        larger than the file, or than ``unpacked``; begins with the path.
    """
    refuse_other(path)
    try:
        with path.open("rb") as start:
            if start.read(1) == b"\x80":
                raise ValueError("it is a pickle, which could run code and is never loaded")
        with zipfile.ZipFile(path) as file:
            if (claimed := sum(info.file_size for info in file.infolist())) > max(unpacked, path.stat().st_size):
                raise ValueError(f"it claims to hold {f'{claimed:,} bytes' if unpacked else 'more than its size'}")
            allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[: 2 if unpacked else 1]
            return {info.filename.removesuffix(".npy"): _read_array(file, info, allowed) for info in file.infolist()}
    except (OSError, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}.") from error


def _read_array(file: zipfile.ZipFile, info: zipfile.ZipInfo, allowed: Sequence[int]) -> np.ndarray:
    if info.compress_type not in allowed:
        raise ValueError(f"{info.filename} is compressed")
    with file.open(info) as member:
        if (version := np.lib.format.read_magic(member)) != (1, 0):
            raise ValueError(f"{info.filename} is of version {version}")
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects (a pickle), which could run code; none is loaded")
        claimed, held = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if claimed != held or min(shape, default=1) < 0:
            raise ValueError(
                f"{info.filename} claims the shape {shape} of {dtype}, {claimed:,} bytes, and has {held:,}"
            )
        array = np.frombuffer(member.read(), dtype)
    return array.reshape(shape, order="F" if column_major else "C")
