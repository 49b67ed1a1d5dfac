"""How the benchmarks time: a first call apart, then the median of some more."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """What the last call returned, the seconds of the first, and the median of the others (the first's without)."""

    result: Any
    first: float
    median: float


def timed(run: Callable[[], Any], repeats: int) -> Timed:
    """Calls ``run``, which returns when all is done, once and then so many times."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return Timed(result, seconds[0], statistics.median(seconds[1:] or seconds))
