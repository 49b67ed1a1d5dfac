from __future__ import annotations

import os

import jax
import pytest
from hypothesis import settings

# Compiling is most of the time, a third as long without these emitters. XLA aborts at flags that it does not know.
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

# The same examples each time, and none kept: pytest --hypothesis-profile=thorough draws new ones.
settings.register_profile("default", deadline=None, database=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, database=None, derandomize=False, max_examples=100)
settings.load_profile("default")


@pytest.fixture(scope="module")
def quick_compile():
    """XLA's optimisation passes off: for modules of many small programs, whose time is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
