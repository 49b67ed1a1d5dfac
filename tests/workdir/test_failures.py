"""Errors of Orbax: one line of each, and nothing in the log."""

from __future__ import annotations

import logging
import sys

from robust_jax.workdir import failures


def test_a_summary_has_the_start_and_the_cause():
    text = "DATA_LOSS: it is cut [tensorstore_spec='{" + "x" * 999 + "}']"
    assert failures.summary(ValueError(text)) == "DATA_LOSS: it is cut"
    assert failures.summary(KeyError()) == "KeyError"
    long = failures.summary(ValueError("Error writing " + "x" * 999 + ": No space left on device"))
    assert long.startswith("Error writing") and long.endswith("No space left on device") and len(long) < 320


def test_orbaxs_log_is_off_while_it_is_quiet_and_back_afterwards(capfd):
    hook, filters = sys.unraisablehook, logging.getLogger("absl").filters[:]
    record = logging.LogRecord("absl", logging.ERROR, "/orbax/checkpoint/future.py", 1, "pages", None, None)
    with failures.quiet():
        assert not logging.getLogger("absl").filter(record)
    assert logging.getLogger("absl").filter(record)
    assert (sys.unraisablehook, logging.getLogger("absl").filters) == (hook, filters)
