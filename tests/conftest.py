from __future__ import annotations

import os

import jax
import pytest

# Compiling is most of the time, a third as long without these emitters. XLA aborts at flags that it does not know.
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module")
def quick_compile():
    """XLA's optimisation passes off: for modules of many small programs, whose time is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
