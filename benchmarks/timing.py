"""How the benchmarks measure: the first call, then the median of further ones; and the FLOPs of a program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timed(NamedTuple):
    """The result of the last call, the seconds of the first, and the median of the others, or the first if alone."""

    result: Any
    first: float
    median: float


def timed(run: Callable[[], Any], repeats: int) -> Timed:
    """Calls ``run``, which returns when its work is done, once and then ``repeats`` times."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return Timed(result, seconds[0], statistics.median(seconds[1:] or seconds))


def flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the program as traced, before XLA rewrites it; arguments may be shapes."""
    cost = jax.jit(function).lower(*args).cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])
