"""Checks the arguments of public functions by their type hints: one message instead of an error from inside.

    @checks_arguments
    def margin(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]: ...

    margin(logits, labels[:1])  # ValueError: margin: labels must be integers [B], B=4 as in logits; got int32 (1,).

Arrays are checked by their type, rank and named lengths, numbers by `robust_jax.options`, all else by its class. Values
of arrays are not looked at, so that nothing waits for a device, and under `jax.jit` a check costs a moment of tracing.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

from robust_jax.options import Option, Range, hints_of, is_bool, is_number, is_simple, is_whole, option_of

Function = TypeVar("Function", bound=Callable[..., Any])

# How the dtypes of a jaxtyping hint are told apart, by one of them, and what messages call them.
_KINDS = (
    ("float32", jnp.floating, "floats"), ("int32", jnp.integer, "integers"), ("bool", np.bool_, "bools"),
    ("prng_key", jax.dtypes.prng_key, "typed keys, made by jax.random.key"), ("uint8", np.uint8, "uint8"),
)  # fmt: skip
_SIMPLE: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (is_whole, "a whole number"),
    float: (is_number, "a number"),
    bool: (is_bool, "True or False"),
    str: (lambda value: isinstance(value, str), "text"),
    type(None): (lambda value: value is None, "None"),
}
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


def checks_arguments(function: Function) -> Function:
    """Makes a function raise one ValueError, with its own name, for an argument that does not fit its type hint."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        check_arguments(function, given, named)
        return function(*given, **named)

    return call  # type: ignore[return-value]


def check_arguments(
    function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any], called: str = ""
) -> None:
    """Raises ValueError for the first argument that does not fit its type hint.

    Arguments that are missing or too many are left to the call itself, which names them. Messages begin with
    ``called``, by default the function's name.
    """
    signature, options = _schema(function)
    try:
        arguments = signature.bind_partial(*given, **named).arguments
    except TypeError:
        return
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in arguments.items():
        option = options.get(name)
        if option is not None and value is not option.default:
            _check(f"{called or function.__name__}: {name}", name, option, value, sizes)


@functools.cache
def _schema(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Option]]:
    hints, signature = hints_of(function), inspect.signature(function)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return signature, {
        name: option_of(name, hints[name], parameter.default)
        for name, parameter in signature.parameters.items()
        if name in hints and hints[name] is not Any and parameter.kind not in variadic
    }


def _check(what: str, name: str, option: Option, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    if option.notes or any(get_origin(kind) is Literal for kind in option.kinds):
        option.check(what, value)
        if is_simple(option.kinds) or option.kinds == (Any,):
            return
    for hint in option.kinds:
        if _fits(hint, value):
            if isinstance(hint, type) and issubclass(hint, AbstractArray):
                _bind(what, name, hint, value, sizes)
            return
    raise ValueError(f"{what} must be {' or '.join(dict.fromkeys(map(_words, option.kinds)))}, got {described(value)}.")


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


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(_fits(kind, value) for kind in get_args(hint))
    if origin is Annotated:
        return _fits(get_args(hint)[0], value) and all(_in_range(note, value) for note in get_args(hint)[1:])
    if isinstance(hint, type) and hint in _SIMPLE:
        return isinstance(value, jax.core.Tracer) and hint in (int, float, bool) or _SIMPLE[hint][0](value)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return is_array(value) and jnp.issubdtype(value.dtype, _kind(hint)[1]) and _has_rank(hint, value.ndim)
    kind = origin or hint
    if kind in (np.ndarray, jax.Array):
        return is_array(value)
    if kind is Any or not isinstance(kind, type):
        return True
    if isinstance(value, str | bytes) and kind in (Sequence, Iterable):
        return False
    if not (isinstance(value, kind) or kind in _LOOSE and bool(_LOOSE[kind][0](value))):
        return False
    return _entries_fit(kind, get_args(hint), value)


def _entries_fit(kind: type, entries: tuple[Any, ...], value: Any) -> bool:
    """Whether the entries of a dict, tuple or sequence fit, as far as they can be looked at without consuming it."""
    if kind in (Mapping, dict) and entries:
        return all(_fits(entries[0], name) and _fits(entries[1], entry) for name, entry in value.items())
    if kind is tuple and entries and entries[-1] is not Ellipsis:
        return len(value) == len(entries) and all(map(_fits, entries, value))
    if kind in (tuple, Sequence) and entries and isinstance(value, tuple | list):
        return all(_fits(entries[0], entry) for entry in value)
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


def _bind(what: str, name: str, hint: Any, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """Compares the lengths of an array's axes with those of the arguments before it."""
    dims = hint.dim_str.split()
    before = dims[: dims.index("...")] if "..." in dims else dims
    after = dims[len(before) + 1 :] if "..." in dims else []
    pairs = [*zip(before, value.shape, strict=False), *zip(after[::-1], value.shape[::-1], strict=False)]
    for dim, length in pairs:
        fixed = (int(dim), "") if dim.isdigit() else sizes.setdefault(dim, (length, name))
        if length != fixed[0]:
            why = f", {dim.upper()}={fixed[0]} as in {fixed[1]}" if fixed[1] else ""
            raise ValueError(f"{what} must be {_words(hint)}{why}; got {described(value)}.")


def _words(hint: Any) -> str:
    """What messages call a hint."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if isinstance(hint, type) and hint in _SIMPLE:
        return _SIMPLE[hint][1]
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        dims = ", ".join(hint.dim_str.upper().split())
        return f"{_kind(hint)[2]} [{dims}]" if dims else f"{_kind(hint)[2]} of no axis"
    kind = origin or hint
    if kind in (np.ndarray, jax.Array):
        return "an array"
    if origin is Annotated:
        return " ".join([_words(get_args(hint)[0]), *(str(n) for n in get_args(hint)[1:] if isinstance(n, Range))])
    if kind in _LOOSE:
        of = ""
        if kind is tuple:
            of = f" ({', '.join(_words(entry) for entry in get_args(hint) if entry is not Ellipsis)})"
        elif kind in (Mapping, Sequence) and get_args(hint) and get_args(hint)[-1] not in (Any, Ellipsis):
            of = f", each {_words(get_args(hint)[-1])}"
        return _LOOSE[kind][1] + of
    return f"a {getattr(kind, '__name__', kind)}"
