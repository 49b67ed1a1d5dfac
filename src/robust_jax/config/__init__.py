"""One experiment as plain data: every key with its default, checked before anything runs, and built from."""

from robust_jax.config.defaults import STATISTICS, base
from robust_jax.config.validation import complete

__all__ = ["STATISTICS", "base", "complete"]
