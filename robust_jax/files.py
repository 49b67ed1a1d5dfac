"""Files that are written whole or not at all, and values in the form that JSON has for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


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
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    # A float32 radius has no more than seven digits: 0.155 * 1.5 reads 0.2325.
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else str(value)
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, replacing an older one: whoever reads it sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
