"""Values as people write them in a config: fractions such as "8/255" are numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any


def number(value: Any) -> Any:
    """The number that a string spells, "8/255" or "0.5"; other values unchanged, tuples entry by entry."""
    if isinstance(value, tuple | list):
        return tuple(map(number, value))
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):  # no number, or one that no float holds
        return value
