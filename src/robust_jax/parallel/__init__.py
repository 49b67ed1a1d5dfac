"""Devices and hosts: the only package that asks which there are, and how many."""

from robust_jax.parallel.devices import (
    AXIS,
    check_batch_size,
    device_count,
    device_kind,
    each,
    everywhere,
    examples_at_a_time,
    first,
    following,
    has_mean,
    loop,
    mean,
    on_cpu,
    pieces,
    pmap,
    replicate,
    resident,
    shard,
    spread,
)
from robust_jax.parallel.hosts import (
    agreed,
    agreed_to_stop,
    gathered,
    has_peers,
    host,
    initialize,
    is_main,
    leave,
    watched,
)

__all__ = [
    "AXIS", "agreed", "agreed_to_stop", "check_batch_size", "device_count", "device_kind", "each", "everywhere",
    "examples_at_a_time", "first", "following", "gathered", "has_mean", "has_peers", "host", "initialize", "is_main",
    "leave", "loop", "mean", "on_cpu", "pieces", "pmap", "replicate", "resident", "shard", "spread", "watched",
]  # fmt: skip
