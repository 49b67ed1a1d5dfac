"""Values as people write them in a config: fractions such as "8/255" are numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any


def number(value: Any) -> Any:
    """The number that a string spells, "8/255" or "0.5"; other values unchanged, tuples entry by entry."""
    if isinstance(value, tuple | list):
        return tuple(map(number, value))
    if not isinstance(value, str):
        return value
    text = value.replace(" ", "")
    try:  # a fraction is made of whole numbers: that of 1e1000000000 would fill the memory
        found = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return value
    return found if math.isfinite(found) else value  # no number, or one that no float holds
