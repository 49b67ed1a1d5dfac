"""A function's signature as the schema of its options: types, choices, ranges and defaults, and their errors.

The options of a part (a point, a term, an attack) are its keyword-only parameters. Their type hints say which values
are valid::

    def uniform(model, images, labels, keys, *, threat: Threat, steps: Count = 10, mode: Literal["eval", "train"]): ...

`Literal` lists choices, `Range` bounds numbers, `Convert` turns a name into an object, and `Spread` makes one argument
out of several options: ``threat: Annotated[ThreatModel, Spread(ThreatModel)]`` is given by the parameters of
`ThreatModel`. Hints are resolved, so that files with and without ``from __future__ import annotations`` are read alike.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np

from robust_jax.extensions import choose, find

GIVEN = ("key", "memory", "steps_done")  # arguments of the caller, which a config never gives
SCHEDULE = ("start", "end", "epochs")
REQUIRED = inspect.Parameter.empty

_LIBRARIES = [Path(jax.__file__).parents[1] / name for name in ("jax", "jaxlib", "numpy", "flax", "optax")]


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an option takes: finite ones within bounds.

    Attributes:
      above: the exclusive lower bound.
      least: the inclusive lower bound.
      below: the exclusive upper bound.
      most: the inclusive upper bound.
      tuples: whether tuples of numbers are valid too, one per axis or part.
      schedule: whether a training objective may change the value over epochs, see `robust_jax.objectives.objective`.
      required: whether a config must give the option even if the function has a default.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    tuples: bool = False
    schedule: bool = False
    required: bool = False

    def __str__(self) -> str:
        bounds = (("above", self.above), ("at least", self.least), ("below", self.below), ("at most", self.most))
        return " and ".join(f"{words} {bound:.10g}" for words, bound in bounds if bound is not None)

    def check(self, what: str, value: Any) -> None:
        """Raises ValueError unless the value is a number in range; values that JAX traces pass."""
        if isinstance(value, jax.core.Tracer):
            return
        if isinstance(value, tuple | list) and self.tuples:
            for entry in value:
                self.check(what, entry)
            return
        an_array = self.tuples and isinstance(value, np.ndarray | jax.Array)
        if not (is_number(value) or an_array) or not _is_finite(value):
            raise ValueError(
                f"{what}={value!r}: give a finite number, or one as 8/255{', or a tuple' if self.tuples else ''}."
            )
        values = np.asarray(value, float)
        for bound, holds, words in (
            (self.above, np.greater, "above"), (self.least, np.greater_equal, "at least"),
            (self.below, np.less, "below"), (self.most, np.less_equal, "at most"),
        ):  # fmt: skip
            if bound is not None and not holds(values, bound).all():
                raise ValueError(f"{what}={value!r} must be {words} {bound:.10g}.")

    def check_schedule(self, what: str, schedule: Mapping[str, Any]) -> None:
        """Raises ValueError unless the schedule goes between two values in range in more than 0 epochs."""
        numbers = sorted(schedule) == sorted(SCHEDULE) and all(map(is_number, schedule.values()))
        if not numbers or not schedule["epochs"] > 0:
            raise ValueError(
                f"{what}={dict(schedule)}: a schedule has the numbers {list(SCHEDULE)}, and epochs is above 0."
            )
        for end in ("start", "end"):
            self.check(f"{what}.{end}", schedule[end])


@dataclasses.dataclass(frozen=True)
class Convert:
    """Marks an option that is given by name: ``function(value)`` is the argument, or raises the ValueError to show."""

    function: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Marks an argument that several options give: ``function``, called with them by name, returns the argument."""

    function: Callable[..., Any]


Count = Annotated[int, Range(least=1)]
"""A whole number, at least 1."""
Positive = Annotated[float, Range(above=0)]
"""A number above 0."""
NotNegative = Annotated[float, Range(least=0)]
"""A number, at least 0."""
Fraction = Annotated[float, Range(least=0, most=1)]
"""A number from 0 to 1."""
Length = Annotated[Any, Range(above=0, tuples=True)]
"""A length above 0 in units of δ: one number, or one per axis of δ; for a composition a tuple with one per part."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a part.

    Attributes:
      name: its key in a config.
      hint: its type.
      default: its value if it is not given; REQUIRED if it must be given.
      notes: `Range`, `Convert` and others, from `Annotated`.
    """

    name: str
    hint: Any
    default: Any
    notes: tuple[Any, ...] = ()

    @property
    def range(self) -> Range | None:
        """Its `Range`, if it has one."""
        return next((note for note in self.notes if isinstance(note, Range)), None)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The alternatives of its type."""
        return _alternatives(self.hint)

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole: ints or bools."""
        return bool({int, bool} & set(self.kinds))

    @property
    def is_text(self) -> bool:
        """Whether it takes text: a string that looks like a number stays a string."""
        return str in self.kinds

    def check(self, what: str, value: Any) -> None:
        """Raises ValueError, beginning with ``what``, unless the value has the type, is a choice, and is in range."""
        if isinstance(value, jax.core.Tracer) or (value is None and type(None) in self.kinds):
            return
        if isinstance(value, Mapping):
            self._check_mapping(what, value)
            return
        self._check_type(what, value)
        if self.range and not isinstance(value, str):
            self.range.check(what, value)
        for note in self.notes:
            if isinstance(note, Convert):
                with_path(what, note.function, value)

    def _check_mapping(self, what: str, value: Mapping[str, Any]) -> None:
        if self.range and self.range.schedule:
            self.range.check_schedule(what, value)
        elif set(SCHEDULE) & set(value) or set(self.kinds) <= {*_SIMPLE, type(None)}:
            raise ValueError(f"{what}={dict(value)}: this option takes no schedule, give one value.")

    def _check_type(self, what: str, value: Any) -> None:
        """Of ``Literal["a", "b"] | float`` a choice and a number pass; of types that are not simple, anything."""
        choices = [choice for kind in self.kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        others = [kind for kind in self.kinds if get_origin(kind) is not Literal and kind is not type(None)]
        if not all(kind in _SIMPLE for kind in others):
            if self.range and isinstance(value, str):
                self.range.check(what, value)
            return
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return
        if not others:
            choose(what, value, choices)
        elif self.range and float in others and not choices:
            self.range.check(what, value)  # whose message says how numbers are written
        elif not any(_SIMPLE[kind](value) for kind in others):
            expected = " or ".join([*map(repr, choices), *(kind.__name__ for kind in others)])
            raise ValueError(f"{what}={value!r} is of type {type(value).__name__}, not {expected}.")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python, NumPy or JAX; bools are not."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0 and is_number(value.dtype.type(0))
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(np.asarray(value, float)).all())
    except OverflowError:  # an int beyond the largest float
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number by its type; bools are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_bool(value: Any) -> bool:
    """Whether a value is True or False, of Python or NumPy."""
    return isinstance(value, bool | np.bool_)


_SIMPLE: dict[Any, Callable[[Any], bool]] = {
    int: is_whole,
    float: is_number,
    bool: is_bool,
    str: lambda value: isinstance(value, str),
}


def is_simple(kinds: Sequence[Any]) -> bool:
    """Whether these types are numbers, bools, text, choices or None, which `Option.check` knows all about."""
    return all(kind in _SIMPLE or kind is type(None) or get_origin(kind) is Literal for kind in kinds)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _alternatives(part))
    return _alternatives(get_args(hint)[0]) if get_origin(hint) is Annotated else (hint,)


def _notes(hint: Any) -> tuple[Any, ...]:
    """What `Annotated` adds to the type, or to alternatives of it: ``Length | None`` has the range of Length."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(note for part in get_args(hint) for note in _notes(part))
    return (*_notes(get_args(hint)[0]), *get_args(hint)[1:]) if get_origin(hint) is Annotated else ()


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


def option_of(name: str, hint: Any, default: Any) -> Option:
    """A parameter as an option."""
    option = Option(name, hint, default, _notes(hint))
    return dataclasses.replace(option, default=REQUIRED) if option.range and option.range.required else option


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
