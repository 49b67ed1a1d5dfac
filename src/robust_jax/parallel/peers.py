"""The processes of one multi-host run watch each other: if one of them dies, stops or fails, all end, and say why.

Without this a collective waits for a process that has stopped for as long as it likes, and JAX ends the others with a
C++ stack trace after some minutes. Every process keeps a connection to process 0 and says each second that it is alive.
A connection that closes without a goodbye is a process that died.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

EXIT_CODE = 75
"""The exit code of a process that ends because of another: EX_TEMPFAIL of sysexits.h, "try again"."""

_BEAT = 1.0  # seconds from one sign of life to the next
_LAST = 5.0  # seconds that process 0 waits for the others to end
_VERDICT = 3.0  # seconds that a process with an error waits for the news that another process is its cause


class Watch:
    """One process's view of the others.

    Args:
      index: of this process.
      count: the number of processes.
      sockets: connected to the others: of process 0 one to each of them, of the others one to process 0.
      timeout: seconds without a sign of life after which a process counts as lost.
      describe: what to tell about the run: how far it is, and where its last checkpoint is.
      end: is called with the message, and ends this process.
    """

    def __init__(
        self, index: int, count: int, sockets: dict[int, socket.socket], timeout: float,
        describe: Callable[[], str], end: Callable[[str], None],
    ):  # fmt: skip
        self._index, self._count, self._timeout = index, count, timeout
        self._sockets, self._describe, self._end = dict(sockets), describe, end
        self._watched = set(sockets)  # the processes that have not said goodbye
        self._unread = dict.fromkeys(sockets, b"")
        self._lock = threading.Lock()  # of sending
        self._failing, self._finished = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="robust_jax peers", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Says goodbye: this process has finished."""
        self._tell("bye")
        self._finished.set()
        self._thread.join()

    def fail(self, message: str) -> None:
        """Tells the others that this process ends with an error, unless another process is its cause.

        Where that is so, the news of it ends this process before this function returns.
        """
        self._failing.set()
        time.sleep(_VERDICT)
        first_line = (message.strip().splitlines() or ["an error"])[0][:300]
        self._finished.set()  # first: the others end as soon as they are told, which is no loss
        self._thread.join()
        self._tell(f"failed {self._index} {first_line}")
        self._let_others_end()

    def _tell(self, line: str, but: int | None = None) -> None:
        with self._lock:
            for index, connection in self._sockets.items():
                if index != but:
                    with suppress(OSError):  # its end is noticed by the thread
                        connection.sendall(line.encode() + b"\n")

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        for index, connection in self._sockets.items():
            selector.register(connection, selectors.EVENT_READ, index)
        heard = dict.fromkeys(self._sockets, time.monotonic())
        beat = woken = time.monotonic()
        while self._watched and not self._finished.is_set():
            ready = selector.select(_BEAT / 2)
            now = time.monotonic()
            if now - woken > 5 * _BEAT:  # this process was stopped itself: what it missed is nobody's fault
                heard = dict.fromkeys(heard, now)
            woken = now
            if now - beat >= _BEAT:
                self._tell("alive")
                beat = now
            for key, _ in ready:
                heard[key.data] = now
                self._read(key.data)
                if key.data not in self._watched:
                    selector.unregister(key.fileobj)
            for index in list(self._watched):
                if now - heard[index] > self._timeout:
                    self._lost(index, f"it did not answer for {self._timeout:g} s")

    def _read(self, index: int) -> None:
        """Takes what a process says."""
        try:
            received = self._sockets[index].recv(4096)
        except OSError:
            received = b""
        if not received and not self._finished.is_set():
            self._lost(index, "it ended without a word")
        *lines, self._unread[index] = (self._unread[index] + received).split(b"\n")
        for line in lines:
            kind, _, rest = line.decode(errors="replace").partition(" ")
            who, _, why = rest.partition(" ")
            if kind == "bye" or kind == "failed" and self._failing.is_set():
                self._watched.discard(index)
            elif kind in ("lost", "failed"):
                self._tell(f"{kind} {rest}", but=index)  # process 0 passes it on
                self._stop(f"process {who} of {self._count} {'was lost' if kind == 'lost' else 'failed'}: {why}")

    def _lost(self, index: int, why: str) -> None:
        self._watched.discard(index)
        self._tell(f"lost {index} {why}", but=index)
        self._stop(f"process {index} of {self._count} was lost: {why}")

    def _stop(self, why: str) -> None:
        self._let_others_end()
        self._end(f"{why.rstrip('.')}. {self._describe()} Start all processes again to resume.")

    def _let_others_end(self) -> None:
        """Process 0 ends last: JAX ends the others by a signal, with a C++ stack trace, once it is gone."""
        end = time.monotonic() + _LAST
        for index in self._watched if self._index == 0 else ():
            with suppress(OSError):  # also where the time is up
                while True:
                    self._sockets[index].settimeout(max(end - time.monotonic(), 0.01))
                    if not self._sockets[index].recv(4096):
                        break


def connect(
    index: int, count: int, listener: socket.socket | None, host: str, port: int, timeout: float
) -> dict[int, socket.socket]:
    """The sockets of a `Watch`: process 0 accepts the others at its listener, the others connect to it.

    Raises:
      OSError: a connection that cannot be made within the timeout.
    """
    if listener is None:
        connection = socket.create_connection((host, port), timeout)
        connection.sendall(index.to_bytes(4, "big"))
        connection.settimeout(timeout)
        return {0: connection}
    sockets: dict[int, socket.socket] = {}
    end = time.monotonic() + timeout
    try:
        while len(sockets) < count - 1:
            listener.settimeout(max(end - time.monotonic(), 0.01))
            connection, _ = listener.accept()
            connection.settimeout(timeout)
            told = connection.recv(4, socket.MSG_WAITALL)
            if len(told) == 4 and 0 < (peer := int.from_bytes(told, "big")) < count and peer not in sockets:
                sockets[peer] = connection
            else:  # a stranger, such as a scan of ports
                connection.close()
    except OSError:
        for connection in sockets.values():
            connection.close()
        raise
    finally:
        listener.close()
    return sockets


def end_process(message: str) -> None:
    """Ends this process at once, with the message and `EXIT_CODE`: its main thread may wait for a lost process."""
    with suppress(OSError):
        sys.stdout.flush()
    os.write(2, f"\n{message}\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def ending_in_time(seconds: float, message: str) -> Iterator[None]:
    """Ends this process with the message unless the block is left within that time."""
    timer = threading.Timer(seconds, end_process, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
