"""Statistics of proportions: confidence intervals, and paired comparisons."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from robust_jax.options.signatures import checks_arguments


@checks_arguments
def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; (0, 1) if n = 0.

    ``(p + z²/2n ± z sqrt(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`` with p = successes / n: unlike
    p ± z s it stays inside [0, 1] and keeps a positive width at p = 0 and p = 1.

    Args:
      successes: from 0 to n.
      n: the number of trials.
      confidence: the probability that the interval covers the true proportion, in (0, 1).

    Returns:
      The lower and the upper end.

    Raises:
      ValueError: successes outside 0..n, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(
            f"wilson_interval({successes}, {n}, {confidence}): successes must be in 0..n, and "
            "confidence between 0 and 1"
        )
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def significant_lead(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> int:
    """How many more examples the first attack breaks than the other; 0 if the difference may be noise.

    McNemar's test (1947) on the same n examples: only those that exactly one of the two breaks count, and the
    difference is significant if it exceeds two standard deviations, ``2 sqrt(only one + only other)``.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    lead = only_one - only_other
    return lead if lead > 2 * (only_one + only_other) ** 0.5 else 0
