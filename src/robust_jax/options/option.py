"""One option: its type, choices, range and default, and whether a value fits."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax

from robust_jax.extensions import choose
from robust_jax.options.errors import with_path
from robust_jax.options.values import SCHEDULE, SIMPLE, Convert, Range, is_choice

REQUIRED = inspect.Parameter.empty


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
        elif set(SCHEDULE) & set(value) or set(self.kinds) <= set(SIMPLE):
            raise ValueError(f"{what}={dict(value)}: this option takes no schedule, give one value.")

    def _check_type(self, what: str, value: Any) -> None:
        """Of ``Literal["a", "b"] | float`` a choice and a number pass; of types that are not simple, anything."""
        choices, types_ = _split(self.kinds)
        if not all(kind in SIMPLE for kind in types_):
            if self.range and isinstance(value, str):
                self.range.check(what, value)
        elif not types_:
            choose(what, value, choices)
        elif self.range and float in types_ and not choices:
            self.range.check(what, value)  # whose message says how numbers are written
        elif not (is_choice(choices, value) or any(SIMPLE[kind][0](value) for kind in types_)):
            expected = " or ".join([*map(repr, choices), *(kind.__name__ for kind in types_)])
            raise ValueError(f"{what}={value!r} is of type {type(value).__name__}, not {expected}.")


def _split(kinds: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The choices that `Literal` lists, and the types beside them and None."""
    literal = [get_origin(kind) is Literal for kind in kinds]
    choices = [choice for kind, lists in zip(kinds, literal, strict=True) if lists for choice in get_args(kind)]
    others = [kind for kind, lists in zip(kinds, literal, strict=True) if not lists]
    return choices, [kind for kind in others if kind is not type(None)]


def option_of(name: str, hint: Any, default: Any) -> Option:
    """A parameter as an option."""
    option = Option(name, hint, default, _notes(hint))
    return dataclasses.replace(option, default=REQUIRED) if option.range and option.range.required else option


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
