"""Options of parts: a function's signature as their schema, with its types, choices, ranges, defaults and errors."""

from robust_jax.options.errors import PathError, raised_by_library, with_path
from robust_jax.options.option import REQUIRED, Option, option_of
from robust_jax.options.schema import (
    GIVEN,
    arguments,
    arguments_of,
    check_call,
    check_options,
    function_of,
    hints_of,
    options_of,
)
from robust_jax.options.values import SCHEDULE, Convert, Count, Fraction, Length, NotNegative, Positive, Range, Spread

__all__ = [
    "GIVEN", "REQUIRED", "SCHEDULE", "Convert", "Count", "Fraction", "Length", "NotNegative", "Option", "PathError",
    "Positive", "Range", "Spread", "arguments", "arguments_of", "check_call", "check_options", "function_of",
    "hints_of", "option_of", "options_of", "raised_by_library", "with_path",
]  # fmt: skip
