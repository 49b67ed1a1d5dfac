from __future__ import annotations

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compile():
    """XLA's optimisation passes off: for modules of many small programs, whose time is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
