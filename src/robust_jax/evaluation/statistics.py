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


LEVEL = 0.025
"""The one-sided level of the tests below: that of two standard deviations."""


def significant_lead(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> int:
    """How many more examples the first attack breaks than the other; 0 if the difference may be noise.

    McNemar's exact test (1947) on the same n examples: only those that exactly one of the two breaks count. If both
    attacks were equally strong, each of these would fall to either with probability 1/2; the difference is significant
    if a binomial draw is that large with a probability of at most `LEVEL`.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one <= only_other or _at_least(only_one, only_one + only_other, 0.5) > LEVEL:
        return 0
    return only_one - only_other


def mcnemar(only_one: int, only_other: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947): 1 if neither has an example that the other has not.

    Args:
      only_one, only_other: the numbers of examples that exactly one of two classifiers gets right.

    Example::

        mcnemar(38, 17)  # 0.0065
    """
    from scipy.stats import binomtest  # takes a second to import

    different = only_one + only_other
    return float(binomtest(only_one, different).pvalue) if different else 1.0


def exceeds(count: int, n: int, share: float) -> bool:
    """Whether ``count`` of ``n`` examples show that more than a ``share`` of all examples are affected.

    The exact binomial test (Clopper & Pearson 1934): were the share of all examples ``share`` or less, n of them would
    have ``count`` or more affected ones with a probability of at most `LEVEL`.
    """
    return bool(count > share * n and _at_least(count, n, share) <= LEVEL)


def _at_least(count: int, n: int, p: float) -> float:
    """The probability of at least ``count`` successes in ``n`` trials of probability ``p``."""
    from scipy.stats import binom  # takes a second to import

    return float(binom.sf(count - 1, n, p))
