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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_origin

from robust_jax.options import Option, hints_of, option_of
from robust_jax.options.hints import described, fits, is_array_hint, words_for
from robust_jax.options.values import is_simple

Function = TypeVar("Function", bound=Callable[..., Any])


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
        if fits(hint, value):
            if is_array_hint(hint):
                _bind(what, name, hint, value, sizes)
            return
    expected = " or ".join(dict.fromkeys(map(words_for, option.kinds)))
    raise ValueError(f"{what} must be {expected}, got {described(value)}.")


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
            raise ValueError(f"{what} must be {words_for(hint)}{why}; got {described(value)}.")
