"""SIGTERM, SIGHUP and Ctrl-C: training finishes the steps that are under way, saves, and ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from robust_jax import parallel

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


Part = TypeVar("Part")


class Stopped(KeyboardInterrupt):
    """Training ended because it was asked to by a signal, after it saved; the message says what.

    Attributes:
      exit_code: of the program: 128 and the signal's number, so 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


class Unfinished(Exception):
    """What was under way when a signal asked for an end is left unfinished, see `Requests.between`."""


class Requests:
    """Whether a signal has asked for an end; made by `listening`."""

    def __init__(self) -> None:
        self.number = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; the next ends the process as it would have without this handler."""
        self.number = number
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing the steps under way, then saving; once more to end at once.\n".encode())
        for other in SIGNALS:
            if signal.getsignal(other) == signal.SIG_IGN:
                continue
            if other == signal.SIGINT:
                signal.signal(other, signal.default_int_handler)
            elif not (other == signal.SIGTERM and parallel.has_peers()):
                signal.signal(other, signal.SIG_DFL)
        if parallel.has_peers():
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX notices and tells all processes

    def agreed(self) -> bool:
        """Whether to save and end after this step; in a multi-host run all processes get the same answer."""
        return parallel.agreed_to_stop(bool(self.number))

    def between(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts of something that takes long, such as batches; raises `Unfinished` once a signal has come.

        In a multi-host run all of them: the hosts must stop at the same step.
        """
        for part in parts:
            if self.number and not parallel.has_peers():
                raise Unfinished
            yield part

    def stopped(self, saved: str) -> Stopped:
        """The exception that ends training."""
        number = self.number or signal.SIGTERM  # another process of a multi-host run got it
        return Stopped(f"{signal.Signals(number).name}: {saved}; start again to resume.", number)


@contextmanager
def listening() -> Iterator[Requests]:
    """Notes signals instead of being ended by them; outside of the main thread, which alone gets them, does nothing."""
    requests, before = Requests(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            jaxs = number == signal.SIGTERM and parallel.has_peers()  # JAX notices it in a multi-host run
            if not jaxs and signal.getsignal(number) != signal.SIG_IGN:  # ignored: by nohup
                before[number] = signal.signal(number, requests.handle)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
