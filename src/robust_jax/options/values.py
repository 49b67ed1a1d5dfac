"""What type hints of options add to the type: ranges, conversions, and several options for one argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_origin

import jax
import numpy as np

SCHEDULE = ("start", "end", "epochs")


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


def is_choice(choices: Sequence[Any], value: Any) -> bool:
    """Whether a value is one of the choices, of the same type: 1 is not True."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


SIMPLE: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (is_whole, "a whole number"),
    float: (is_number, "a number"),
    bool: (is_bool, "True or False"),
    str: (lambda value: isinstance(value, str), "text"),
    type(None): (lambda value: value is None, "None"),
}
"""Types that are checked by value: whether a value is of the type, and what messages call it."""


def is_simple(kinds: Sequence[Any]) -> bool:
    """Whether these types are numbers, bools, text, choices or None, which `Option.check` knows all about."""
    return all(kind in SIMPLE or get_origin(kind) is Literal for kind in kinds)
