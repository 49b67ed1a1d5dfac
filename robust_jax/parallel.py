"""Devices and hosts: the only file that asks which there are, and how many.

A training step runs on every local device of every host by ``pmap``: examples are split evenly, the state is
replicated. Evaluation is one jitted program whose batch is laid out over the local devices.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from robust_jax import peers

AXIS = "devices"
"""The name of the mapped axis: for `mean`, and for synchronised BatchNorm."""

# Examples per device. Per example a CPU is about 5% slower with chunks this small, but larger ones cost more in the
# end, when fewer active examples are left than a chunk holds. Accelerators have to be filled.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 16, 256


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
    """Watches the other processes of a multi-host run while the block runs, see `robust_jax.peers`.

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
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text.encode(), np.uint8))
    address, port = bytes(np.asarray(told, np.uint8)).decode().split()
    try:
        sockets = peers.connect(index, count, listener, address, int(port), timeout)
    except OSError as error:
        logging.warning("The processes cannot watch each other: %s at %s:%s. Going on.", error, address, port)
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


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.default_backend() == "cpu"


def device_count() -> int:
    """The number of devices of all hosts."""
    return jax.device_count()


def device_kind() -> str:
    """The devices' model, such as "cpu" or "NVIDIA H100 80GB HBM3"."""
    return jax.devices()[0].device_kind


def check_batch_size(batch_size: int, name: str = "batch_size") -> None:
    """Raises ValueError unless the global batch splits evenly over all devices of all hosts."""
    devices = device_count()
    if batch_size < 1 or batch_size % devices:
        raise ValueError(
            f"{name}={batch_size} does not split evenly over {devices} devices: use a multiple of {devices}."
        )


def replicate(tree: Any) -> Any:
    """Copies a tree to every local device, in the layout that `pmap` takes and returns."""
    count = jax.local_device_count()
    return _put(jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *np.shape(x))), tree))


def first(tree: Any) -> Any:
    """The first local device's copy as NumPy arrays on the host, which any process can write to a checkpoint."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def shard(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This host's batch ``[b, ...]`` as ``[local devices, b / local devices, ...]``."""
    count = jax.local_device_count()
    return {k: v.reshape(count, len(v) // count, *v.shape[1:]) for k, v in batch.items()}


def pmap(step: Callable[[Any, Any, jax.Array], Any]) -> Callable[[Any, Any, jax.Array], Any]:
    """``step(state, batch, key)`` on every device, the state's buffers donated; `mean` works inside."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=(0,))


def loop(
    step: Callable[[Any, Any, jax.Array], tuple[Any, Any]],
) -> Callable[[Any, Any, jax.Array, int, int], tuple[Any, Any]]:
    """``run(state, batches, key, first, count)``: ``count`` steps on every device in one dispatch.

    ``batches`` come from `resident`; the steps take those at ``first`` to ``first + count - 1``. The state's buffers
    are donated. Each metric of ``step(state, batch, key) -> (state, metrics)`` is returned as an array with one entry
    per batch, set at these positions only. Other values of ``first`` and ``count`` do not recompile, so a step gives
    the same bits however many are dispatched together.
    """

    def run(state: Any, batches: Any, key: jax.Array, first: jax.Array, count: jax.Array) -> tuple[Any, Any]:
        def batch(i: Any) -> Any:
            return jax.tree.map(lambda v: v[i], batches)

        def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, metrics = step(carry[0], batch(i), key)
            return state, jax.tree.map(lambda kept, new: kept.at[i].set(new), carry[1], metrics)

        length = len(jax.tree.leaves(batches)[0])
        shapes = jax.eval_shape(step, state, batch(0), key)[1]
        metrics = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(first, first + count, body, (state, metrics))

    return jax.pmap(run, axis_name=AXIS, in_axes=(0, 0, None, None, None), donate_argnums=(0,))


def resident(batches: Mapping[str, np.ndarray]) -> Any:
    """Puts several of this host's batches, ``[n, b, ...]``, on its devices, in the layout that `loop` takes."""
    count = jax.local_device_count()
    shards = {k: v.reshape(len(v), count, -1, *v.shape[2:]) for k, v in batches.items()}
    return _put({k: v.swapaxes(0, 1) for k, v in shards.items()})


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` on every local device at once; the leading axis of all arguments and results is the devices'."""
    return jax.pmap(function, axis_name=AXIS)


# Results of `pmap` carry this axis: arguments placed in another way would compile the step a second time.
_put = each(lambda shards: shards)


def mean(tree: Any) -> Any:
    """The mean over all devices of all hosts, inside `pmap`."""
    return jax.lax.pmean(tree, AXIS)


def agreed(tree: Any) -> Any:
    """Process 0's numbers on every process, for decisions that all hosts must make alike despite rounding."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(float, multihost_utils.broadcast_one_to_all(tree))


def spread(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Lays a batch out over the local devices for a jitted function, if its size divides evenly."""
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    if len(devices) == 1 or any(len(v) % len(devices) for v in batch.values()):
        return dict(batch)
    return {k: v if k == "mask" else jax.device_put(jnp.asarray(v), rows) for k, v in batch.items()}


def examples_at_a_time() -> int:
    """How many examples per device a loop over active examples computes at a time, see `attacks.active_loop`."""
    return CHUNK_ON_CPU if on_cpu() else CHUNK_ELSEWHERE


def pieces(count: int) -> int:
    """The number of equal pieces, each on one device, into which `spread` cuts a batch of ``count`` examples."""
    return math.gcd(count, jax.local_device_count())


def everywhere(tree: Any) -> Any:
    """Copies arrays to all local devices, for use with `spread` batches in a jitted function."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
