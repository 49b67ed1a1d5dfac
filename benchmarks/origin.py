"""Files of numbers, and where these come from: the command, the code's revision, the hardware, versions of packages."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robust_jax import parallel
from robust_jax.evaluation.measure import versions
from robust_jax.files import write_atomically


def kept(path: Path | None, empty: dict[str, Any]) -> dict[str, Any]:
    """What a file of numbers holds; ``empty`` if there is none yet."""
    found: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else empty
    return found


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Writes a file of numbers, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())


def packed(bits: np.ndarray) -> str:
    """A bit for each image as hexadecimal digits, the first image in the highest bit."""
    return np.packbits(bits).tobytes().hex()


def unpacked(digits: str, count: int) -> np.ndarray:
    """The inverse of `packed`: ``[count]``, bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count).astype(bool)


def trace(module: str = "") -> dict[str, Any]:
    """What is written beside every number; ``module`` if that is how the program is started."""
    program = ["-m", module] if module else sys.argv[:1]
    return {
        "command": portable(shlex.join(["python", *program, *sys.argv[1:]])),
        "hardware": f"{parallel.device_count()} × {parallel.device_kind()}, {os.cpu_count()} CPU cores",
        "revision": revision(),
    }


def source(*packages: str, module: str = "") -> dict[str, Any]:
    """`trace` with the versions of what computes, and of further packages. Taken at the start: the code may change."""
    named = {name: importlib.metadata.version(name) for name in packages}
    return trace(module) | {"versions": versions() | named}


def refuse_others(found: Mapping[str, Any], today: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if the numbers that a file holds under a name were measured with other settings."""
    other = {key: found[key] for key, value in today.items() if key in found and found[key] != value}
    if other:
        raise ValueError(
            f"{where} was measured with {other}, and now has {dict(today)}: these do not belong into one table. "
            f"Give the settings of then, or another file to --out."
        )


def also(found: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The source of a table's numbers once more are measured: commands and revisions are added to those it names."""
    joined = {"command": "; ", "revision": ", "}
    before = {key: found[key].split(mark) if key in found else [] for key, mark in joined.items()}
    return dict(source) | {key: mark.join(dict.fromkeys([*before[key], source[key]])) for key, mark in joined.items()}


def portable(command: str) -> str:
    """A command without what is of one machine: the data's folder, and the folders that absolute paths are in.

    What is left of a path begins with runs, benchmarks or docs, or is its last two names.
    """
    known, two = r"[^\s,]*?/(?=(?:runs|benchmarks|docs)/)", r"[^\s,]*/(?=[^\s,/]+/[^\s,/]+)"
    return re.sub(rf"(?<=[ =,])/(?:{known}|{two})", "", re.sub(r" --data_dir=\S+", "", command))


def revision() -> str:
    """The commit that the code is of, with a + if it was changed since, or a module is new; unknown without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    changed = [*git, "status", "--porcelain", "--", ":/src", ":/benchmarks"]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        return commit.strip() + ("+" if subprocess.run(changed, capture_output=True, text=True).stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
