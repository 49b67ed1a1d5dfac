"""What Orbax and TensorStore raise and log when a file cannot be read or written, cut down to one message."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the logs of an error, pages from each of Orbax's threads, off the screen: it is raised as well."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and record.name != "asyncio"

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):  # by TensorStore's threads, after a failed read
            before(unraisable)

    loggers, before = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    sys.unraisablehook = hook
    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(others)


def settle() -> None:
    """After a failure: lets threads end and drops tasks, whose errors would be logged later, outside of `quiet`."""
    time.sleep(0.1)
    gc.collect()


def summary(error: BaseException) -> str:
    """The start of a message and its end, where the cause is, without the specifications that TensorStore adds."""
    text = str(error).split(" [tensorstore_spec=")[0].strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"
