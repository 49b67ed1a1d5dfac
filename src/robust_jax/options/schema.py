"""A function's signature as the schema of its options.

The options of a part (a point, a term, an attack) are its keyword-only parameters. Their type hints say which values
are valid::

    def uniform(model, images, labels, keys, *, threat: Threat, steps: Count = 10, mode: Literal["eval", "train"]): ...

`Literal` lists choices, `Range` bounds numbers, `Convert` turns a name into an object, and `Spread` makes one argument
out of several options: ``threat: Annotated[ThreatModel, Spread(ThreatModel)]`` is given by the parameters of
`ThreatModel`. Hints are resolved, so that files with and without ``from __future__ import annotations`` are read alike.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from robust_jax.extensions import find
from robust_jax.options.errors import with_path
from robust_jax.options.option import REQUIRED, Option, option_of
from robust_jax.options.values import Convert, Spread

GIVEN = ("key", "memory", "steps_done")  # arguments of the caller, which a config never gives


@functools.cache
def arguments_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The keyword-only parameters of a function, without those of its caller (`GIVEN`); `Spread` ones are one each.

    Raises:
      ValueError: hints that cannot be resolved.
    """
    hints = hints_of(function)
    return {
        name: option_of(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in GIVEN
    }


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a function, resolved, with what `Annotated` adds.

    Raises:
      ValueError: hints that cannot be resolved.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        name = getattr(function, "__qualname__", function)
        raise ValueError(
            f"the type hints of {name} cannot be resolved: {error}. Import or define the types that they name at the "
            f"top of {getattr(function, '__module__', 'the module')}."
        ) from error


@functools.cache
def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The options that a config can give: keyword-only parameters, with several options in place of a `Spread` one.

    Raises:
      ValueError: hints that cannot be resolved.
    """
    options: dict[str, Option] = {}
    for name, option in arguments_of(function).items():
        spread = _spread(option)
        if spread is None:
            options[name] = option
            continue
        hints, parameters = hints_of(spread.function), inspect.signature(spread.function).parameters
        options |= {n: option_of(n, hints.get(n, Any), p.default) for n, p in parameters.items()}
    return options


def _spread(option: Option) -> Spread | None:
    return next((note for note in option.notes if isinstance(note, Spread)), None)


def arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that options stand for: names converted, `Spread` options put together.

    Example::

        arguments(points.uniform, {"perturbation": "flow", "radius": 0.1})   # {"threat": ThreatModel("flow", ...)}
    """
    made: dict[str, Any] = {}
    for name, option in arguments_of(function).items():
        if spread := _spread(option):
            parts = set(inspect.signature(spread.function).parameters) & set(given)
            made[name] = spread.function(**{part: given[part] for part in parts})
            continue
        convert = next((note.function for note in option.notes if isinstance(note, Convert)), None)
        if convert and name not in given and isinstance(option.default, str):  # a default is a name as well
            made[name] = convert(option.default)
        elif name in given:
            made[name] = convert(given[name]) if convert and given[name] is not None else given[name]
    return made


def check_options(
    path: str, given: Mapping[str, Any], function: Callable[..., Any], own: Mapping[str, Option] | None = None
) -> None:
    """Raises ValueError unless all options are the function's, valid, and complete.

    Args:
      path: of the options in the config, for messages.
      given: ``dict(kind=..., **options)``.
      function: whose keyword-only parameters are the options.
      own: options that every entry of the section has.
    """
    options = {**(own or {}), **with_path(path, options_of, function)}
    valid, kind = sorted({"kind", *options}), f" (kind {given['kind']})" if "kind" in given else ""
    if unknown := sorted(set(given) - set(valid)):
        raise ValueError(f"{path}{kind} has no option {unknown}: valid are {valid}.")
    if missing := [name for name, option in options.items() if option.default is REQUIRED and name not in given]:
        raise ValueError(f"{path}{kind} lacks {missing}: valid options are {valid}.")
    for name, option in options.items():
        if name in given:
            option.check(f"{path}.{name}", given[name])


def check_call(path: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError, beginning with ``path``, for keyword arguments of a wrong type, choice or range."""
    for name, option in arguments_of(function).items():
        if name in settings and not _spread(option):
            option.check(f"{path}: {name}", settings[name])


def function_of(what: str, name: Any, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function of that name, built-in or ``module:name``, see `robust_jax.extensions.find`.

    Raises:
      ValueError: an unknown name, or that of something that cannot be called.
    """
    found = find(what, name, known)
    if not callable(found):
        raise ValueError(f"{what}={name!r} is of type {type(found).__name__}, not a function.")
    return found
