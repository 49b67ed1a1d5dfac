"""The processes of a multi-host run: how they join, watch each other, agree, and end."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Int

from robust_jax.parallel import peers


def initialize(address: str, timeout: float = 300.0) -> None:
    """Joins the processes of a multi-host run; call it before anything else uses JAX.

    Args:
      address: "auto" (TPU pods, Slurm, Kubernetes and Open MPI say which processes take part), or
        ``HOST:PORT,COUNT,INDEX``: where process 0 listens, the number of processes, and this one's index.
      timeout: seconds to wait for the other processes. After that this one ends, with `peers.EXIT_CODE`.

    Raises:
      ValueError: if the address has another form, or its host is unknown.
    """
    coordinator, count, index = (None, None, None) if address == "auto" else _parsed(address)
    late = (
        f"distributed={address}: not all processes had joined after {timeout:g} s. Start all of them at about the same "
        f"time, with the same address and count, or give them longer (--join_timeout)."
    )
    with peers.ending_in_time(timeout, late):
        # JAX's own limit is later: it ends the process by a signal, with a C++ stack trace.
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=int(timeout) + 60)


def _parsed(address: str) -> tuple[str, int, int]:
    """The coordinator's HOST:PORT, the number of processes, and the index of this one."""
    try:
        coordinator, count, index = address.split(",")
        host, port = coordinator.rsplit(":", 1)
        if not 0 <= int(index) < int(count):
            raise ValueError(f"INDEX is to be 0 to {int(count) - 1}")
        socket.getaddrinfo(host, int(port))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"distributed={address!r}: give 'auto', or HOST:PORT,COUNT,INDEX such as 10.0.0.1:1234,4,0 ({error})."
        ) from error
    return coordinator, int(count), int(index)


@contextmanager
def watched(timeout: float, describe: Callable[[], str], agreed: type[BaseException]) -> Iterator[None]:
    """Watches the other processes of a multi-host run while the block runs, see `robust_jax.parallel.peers`.

    A process that is lost or fails ends this one, with `peers.EXIT_CODE`. Alone, it does nothing.

    Args:
      timeout: seconds without a sign of life after which a process counts as lost.
      describe: what to say then about the run.
      agreed: the exception by which all processes leave the block together.
    """
    index, count = host()
    if count == 1:
        yield
        return
    listener = socket.create_server(("", 0)) if index == 0 else None
    text = f"{_own_address()} {listener.getsockname()[1] if listener else 0}".ljust(64)
    try:
        told = multihost_utils.broadcast_one_to_all(np.frombuffer(text.encode(), np.uint8))
    except jax.errors.JaxRuntimeError as error:
        peers.end_process(f"Not all of the {count} processes answered: {str(error).splitlines()[0]}. Start all again.")
    address, port = bytes(np.asarray(told, np.uint8)).decode().split()
    sockets, why = _connected(index, count, listener, address, int(port), timeout)
    if any(failed := gathered([int(bool(why))])[:, 0]):  # else those that are connected would take the others for lost
        for connection in sockets.values():
            connection.close()
        why = why or f"process {int(np.argmax(failed))} is not connected"
        logging.warning("The processes cannot watch each other: %s at %s:%s. Going on.", why, address, port)
        yield
        return
    watch = peers.Watch(index, count, sockets, timeout, describe, peers.end_process)
    try:
        yield
    except agreed:
        watch.leave()
        raise
    except BaseException as error:
        watch.fail(f"{type(error).__name__}: {error}")
        raise
    watch.leave()


def _connected(
    index: int, count: int, listener: socket.socket | None, address: str, port: int, timeout: float
) -> tuple[dict[int, socket.socket], str]:
    """The sockets to the other processes; none, and why, if one of them cannot be had."""
    try:
        return peers.connect(index, count, listener, address, port, timeout), ""
    except OSError as error:
        return {}, str(error) or type(error).__name__


def _own_address() -> str:
    """The address by which this machine reaches others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the network interface
            return str(asked.getsockname()[0])
        except OSError:  # no network
            return "127.0.0.1"


def leave(status: int) -> None:
    """Ends this process after an error. In a multi-host run at once: JAX would wait for processes that are gone."""
    if has_peers():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def host() -> tuple[int, int]:
    """This process's index and the number of processes."""
    return jax.process_index(), jax.process_count()


def is_main() -> bool:
    """Whether this is process 0: the one that prints, and that writes logs and results."""
    return jax.process_index() == 0


def has_peers() -> bool:
    """Whether other processes take part in this run."""
    return jax.process_count() > 1


_calls = itertools.count()


def agreed_to_stop(asked: bool) -> bool:
    """Whether to stop now, the same answer on every process; all must call it equally often.

    One process stops when it is asked to. With several, JAX notices a SIGTERM that any of them gets, and the answer is
    yes at the first call that all of them have still to make. That waits for nothing until then.
    """
    if jax.process_count() == 1:
        return asked
    return bool(multihost_utils.reached_preemption_sync_point(next(_calls)))


def agreed(tree: Any) -> Any:
    """Process 0's numbers on every process, for decisions that all hosts must make alike despite rounding."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(float, multihost_utils.broadcast_one_to_all(tree))


def gathered(numbers: Sequence[int]) -> Int[np.ndarray, "processes n"]:
    """The numbers of every process, each from 0 to 2^31 - 1."""
    own = np.asarray(numbers, np.int32)
    return own[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(own))
