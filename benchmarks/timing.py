"""How the benchmarks measure: the first call, then the median of further ones; and the FLOPs of a program."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval


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


def traced_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the convolutions and matrix products of a function, without compiling it.

    A loop with a fixed number of iterations counts as many times, where XLA's own analysis counts it once; a
    `while_loop`, whose number of iterations is unknown, counts once here too.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _of_jaxpr(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])  # without what nothing needs


def _of_jaxpr(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parts = [getattr(p, "jaxpr", p) for v in equation.params.values() for p in (v if type(v) is tuple else (v,))]
        inner = [_of_jaxpr(part) for part in parts if hasattr(part, "eqns")]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
        if products := _PRODUCTS.get(equation.primitive.name):
            total += 2 * products(*(v.aval.shape for v in (*equation.invars[:2], *equation.outvars)), equation.params)
    return total


def _dot(a: Any, b: Any, out: Any, params: Any) -> int:
    return math.prod(out) * math.prod(a[axis] for axis in params["dimension_numbers"][0][0])


def _convolution(images: Any, kernel: Any, out: Any, params: Any) -> int:
    channels_and_space = params["dimension_numbers"].rhs_spec[1:]
    return math.prod(out) * math.prod(kernel[axis] for axis in channels_and_space)


# Multiplications of an operation from the shapes of its two arguments and of its result; the last two are those of
# robust_jax.models.cpu_convolution, whose kernels end in their output channels.
_PRODUCTS: dict[str, Callable[..., int]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "robust_jax_conv": lambda images, kernel, out, _: math.prod(out) * math.prod(kernel[:-1]),
    "robust_jax_correlate": lambda images, gradient, out, _: math.prod(gradient) * math.prod(out[:-1]),
}
