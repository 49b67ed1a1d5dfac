"""What objects say of themselves in a line: shapes, counts and settings instead of arrays, as notebooks show them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def shape(arrays: Any) -> str:
    """``[B, H, W, C]`` of an array, ``([B, H, W, 2], [B, H, W, C])`` of a tuple of arrays."""
    if isinstance(arrays, tuple):
        return f"({', '.join(map(shape, arrays))})"
    return f"[{', '.join(map(str, np.shape(arrays)))}]"


def share(mask: Any) -> str:
    """``20 of 32``: how many are true; only the shape while JAX traces."""
    if isinstance(mask, jax.core.Tracer):
        return shape(mask)
    return f"{int(np.sum(mask))} of {np.size(mask)}"


def numbers(arrays: Any) -> str:
    """``12,345 numbers``: how many a pytree holds."""
    return f"{sum(np.size(leaf) for leaf in jax.tree.leaves(arrays)):,} numbers"


def short(value: Any) -> str:
    """A number in four digits, or a tuple of them; a traced one by its type."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, jax.core.Tracer):
        value = np.asarray(value).tolist()
    if isinstance(value, tuple | list):
        return f"({', '.join(map(short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
