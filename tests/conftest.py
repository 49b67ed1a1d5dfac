from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

from compilation import compiled

# The workers, the programs that tests start, the next run and other clones share what was compiled: half of the time of
# most tests. JAX reads this when imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from hypothesis import settings

# A shell's background jobs and nohup ignore some signals, which tests and the programs that they start send.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# Compiling is most of the time, a third as long without these emitters. XLA aborts at flags that it does not know.
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

# Tracing makes many objects and few cycles: the collector's defaults would look for them in 6% of the time.
gc.set_threshold(50_000, 20, 20)

# The same examples each time, and none kept: pytest --hypothesis-profile=thorough draws new ones.
settings.register_profile("default", deadline=None, database=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, database=None, derandomize=False, max_examples=100)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def few_programs():
    """Drops compiled programs before Linux runs out of mappings for a process, 65,530: XLA would crash.

    A program has three for each of its kernels if it was kept from another process; that of an attack 200 to 700.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compile():
    """XLA's optimisation passes off: for modules of many small programs, whose time is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
