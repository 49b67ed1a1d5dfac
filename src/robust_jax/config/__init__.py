"""One experiment as plain data: every key with its default, checked before anything runs, and built from."""

from robust_jax.config.defaults import base
from robust_jax.config.validation import complete
from robust_jax.data.known import STATISTICS

__all__ = ["STATISTICS", "base", "complete"]
