"""Errors of one part of a config, which begin with its path, and errors that are left to a library."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = [Path(jax.__file__).parents[1] / name for name in ("jax", "jaxlib", "numpy", "flax", "optax")]


class PathError(ValueError):
    """A mistake in one part of a config; the message begins with the part's path."""


def with_path(path: str, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """``function(*given, **options)``; its own ValueErrors become PathErrors, which begin with the path.

    Errors that a library raises, such as JAX's about shapes, pass unchanged, with their traceback.
    """
    try:
        return function(*given, **options)
    except ValueError as error:
        if raised_by_library(error):
            raise
        message, name = str(error), re.split(r"[ .]", path)[-1]
        separator = "" if message.startswith(f"{name}=") else ": "  # loss='hinge' of attacks.mine.loss is named once
        raise PathError(f"{path}{separator}{message if separator else message.removeprefix(name)}") from error


def raised_by_library(error: BaseException) -> bool:
    """Whether JAX or another library raised an error; to be asked before `jax.jit` and others return.

    They remove their own frames from the traceback of what leaves them.
    """
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    file = Path(innermost.f_code.co_filename)
    return any(file.is_relative_to(folder) for folder in _LIBRARIES)
