"""How the benchmarks measure: a first call apart, then the median of some more; and the FLOPs of a program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


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


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Of the program as traced, before XLA rewrites it; arguments may be shapes."""
    cost = jax.jit(function).lower(*args).cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])
