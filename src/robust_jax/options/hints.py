"""Type hints and values: whether a value fits a hint, and what messages call both."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, BinaryIO, Literal, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

from robust_jax.options.values import SIMPLE, Range, is_choice

# How the dtypes of a jaxtyping hint are told apart, by one of them, and what messages call them.
_KINDS = (
    ("float32", jnp.floating, "floats"), ("int32", jnp.integer, "integers"), ("bool", np.bool_, "bools"),
    ("prng_key", jax.dtypes.prng_key, "typed keys, made by jax.random.key"), ("uint8", np.uint8, "uint8"),
)  # fmt: skip
_LOOSE = {  # what stands for an abstract type besides its instances, and its name
    Mapping: (lambda value: hasattr(value, "items"), "a dict"),
    dict: (lambda value: hasattr(value, "items"), "a dict"),
    Sequence: (lambda value: is_array(value) and value.ndim, "a tuple or list"),
    Iterable: (lambda value: is_array(value) and value.ndim, "a tuple, list or iterator"),
    Iterator: (lambda value: False, "an iterator"),
    tuple: (lambda value: isinstance(value, list), "a tuple"),
    Callable: (callable, "a function"),
    BinaryIO: (lambda value: hasattr(value, "write"), "an open binary file"),
    os.PathLike: (lambda value: False, "a path"),
}


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or JAX, traced ones included."""
    return isinstance(value, np.ndarray | jax.Array)


def is_float_array(value: Any) -> bool:
    """Whether a value is an array of floats of any precision."""
    return is_array(value) and bool(jnp.issubdtype(value.dtype, jnp.floating))


def described(value: Any) -> str:
    """Type and shape of an array, a number or short text itself, or the type of anything else."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {value.shape}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else f"{value[:100]}...")
    return f"a {type(value).__name__}"


def is_array_hint(hint: Any) -> bool:
    """Whether a hint is one of jaxtyping's, such as ``Float[Array, "b k"]``."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value fits a type hint, as far as that can be seen without consuming or waiting for it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return is_choice(inner, value)
    if origin in (Union, types.UnionType):
        return any(fits(kind, value) for kind in inner)
    if origin is Annotated:
        return fits(inner[0], value) and all(_in_range(note, value) for note in inner[1:])
    if isinstance(hint, type) and hint in SIMPLE:
        return isinstance(value, jax.core.Tracer) and hint in (int, float, bool) or SIMPLE[hint][0](value)
    if is_array_hint(hint):
        return is_array(value) and jnp.issubdtype(value.dtype, _kind(hint)[1]) and _has_rank(hint, value.ndim)
    return _is_instance(origin or hint, value) and _entries_fit(origin or hint, inner, value)


def _is_instance(kind: Any, value: Any) -> bool:
    """Whether a value is of a class, or of what stands for it; anything is of a hint that is no class."""
    if kind in (np.ndarray, jax.Array):
        return is_array(value)
    if kind is Any or not isinstance(kind, type):
        return True
    if isinstance(value, str | bytes) and kind in (Sequence, Iterable):
        return False
    return isinstance(value, kind) or kind in _LOOSE and bool(_LOOSE[kind][0](value))


def _entries_fit(kind: type, entries: tuple[Any, ...], value: Any) -> bool:
    """Whether the entries of a dict, tuple or sequence fit, as far as they can be looked at without consuming it."""
    if kind in (Mapping, dict) and entries:
        return all(fits(entries[0], name) and fits(entries[1], entry) for name, entry in value.items())
    if kind is tuple and entries and entries[-1] is not Ellipsis:
        return len(value) == len(entries) and all(map(fits, entries, value))
    if kind in (tuple, Sequence) and entries and isinstance(value, tuple | list):
        return all(fits(entries[0], entry) for entry in value)
    return True


def _in_range(note: Any, value: Any) -> bool:
    try:
        if isinstance(note, Range):
            note.check("", value)
    except ValueError:
        return False
    return True


def _kind(hint: Any) -> tuple[str, Any, str]:
    return next((kind for kind in _KINDS if kind[0] in hint.dtypes), ("", np.generic, "an array"))


def _has_rank(hint: Any, rank: int) -> bool:
    names = hint.dim_str.split()
    return rank >= len(names) - 1 if "..." in names else rank == len(names)


def words_for(hint: Any) -> str:
    """What messages call a hint."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if isinstance(hint, type) and hint in SIMPLE:
        return SIMPLE[hint][1]
    if is_array_hint(hint):
        dims = ", ".join(hint.dim_str.upper().split())
        if not dims and "prng_key" in hint.dtypes:
            return "one typed key, jax.random.key(0),"
        return f"{_kind(hint)[2]} [{dims}]" if dims else f"{_kind(hint)[2]} of no axis"
    if origin is Annotated:
        return " ".join([words_for(get_args(hint)[0]), *(str(n) for n in get_args(hint)[1:] if isinstance(n, Range))])
    return _words_for_class(origin or hint, get_args(hint))


def _words_for_class(kind: Any, entries: tuple[Any, ...]) -> str:
    if kind in (np.ndarray, jax.Array):
        return "an array"
    if kind not in _LOOSE:
        return f"a {getattr(kind, '__name__', kind)}"
    of = ""
    if kind is tuple:
        of = f" ({', '.join(words_for(entry) for entry in entries if entry is not Ellipsis)})"
    elif kind in (Mapping, Sequence) and entries and entries[-1] not in (Any, Ellipsis):
        of = f", each {words_for(entries[-1])}"
    return _LOOSE[kind][1] + of
