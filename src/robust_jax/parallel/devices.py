"""Devices: which there are, and how states and batches are laid out over them.

A training step runs on every local device of every host by ``pmap``: examples are split evenly, the state is
replicated. Evaluation is one jitted program whose batch is laid out over the local devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "devices"
"""The name of the mapped axis: for `mean`, and for synchronised BatchNorm."""

# Examples per device. Per example a CPU is about 5% slower with chunks this small, but larger ones cost more in the
# end, when fewer active examples are left than a chunk holds. Accelerators have to be filled.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 16, 256


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.default_backend() == "cpu"


def device_count() -> int:
    """The number of devices of all hosts."""
    return jax.device_count()


def device_kind() -> str:
    """The devices' model, such as "cpu" or "NVIDIA H100 80GB HBM3"."""
    return jax.devices()[0].device_kind


def check_batch_size(batch_size: int, name: str = "batch_size", parts: int = 1) -> None:
    """Raises ValueError unless the global batch splits evenly over all devices of all hosts, and there into parts."""
    devices = device_count()
    if batch_size < 1 or batch_size % (devices * parts):
        each = f" and there into accumulate={parts} micro-batches" if parts > 1 else ""
        raise ValueError(
            f"{name}={batch_size} does not split evenly over {devices} devices{each}: use a multiple of "
            f"{devices * parts}."
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


def has_mean(leaf: Any) -> bool:
    """Whether a leaf is averaged over devices, micro-batches and steps; whole numbers, such as counts, are not."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def mean(tree: Any) -> Any:
    """The mean over all devices of all hosts, inside `pmap`; whole numbers, such as counts, stay each device's own."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [i for i, leaf in enumerate(leaves) if has_mean(leaf)]
    for i, average in zip(floats, jax.lax.pmean([leaves[i] for i in floats], AXIS), strict=True):
        leaves[i] = average
    return jax.tree.unflatten(structure, leaves)


def following(tree: Any) -> Any:
    """The next example of each in the batch of all devices, of the last one the first, inside `pmap`."""
    count = jax.device_count()
    first = jax.tree.map(lambda x: x[:1], tree)
    after = jax.lax.ppermute(first, AXIS, [((i + 1) % count, i) for i in range(count)])
    return jax.tree.map(lambda x, last: jnp.concatenate([x[1:], last]), tree, after)


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
