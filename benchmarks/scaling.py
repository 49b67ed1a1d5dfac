"""Estimates what data parallelism on a pod costs.

python benchmarks/scaling.py [--rate=2e14] [--bandwidth=5e10]

A step reduces once: gradients, metrics and BatchNorm statistics together, 4 bytes per parameter
(tests/parallel/test_parallel.py counts the all-reduces of the compiled step). On n devices each sends and receives ``2
(n - 1) / n`` times these bytes, and waits ``2 log2(n)`` times for a message. Without overlap the efficiency is compute
/ (compute + reduction); it is better if XLA overlaps the reduction with the backward pass. Compute is the forward-
equivalents of the step (3 plain, 6 FGR) at the rate that the flag gives: measure yours with steps.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from absl import flags

from measurements import report
from origin import source
from robust_jax import cli

flags.DEFINE_float("rate", 2e14, "FLOP/s that a device achieves in a step.")
flags.DEFINE_float("bandwidth", 5e10, "Bytes/s that a device sends over its slowest link: a 400 Gbit/s port.")
flags.DEFINE_float("latency", 5e-6, "Seconds of one message.")
flags.DEFINE_integer("batch", 128, "Images per device.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")


class Network(NamedTuple):
    """The FLOPs of a forward pass of one image, and the number of parameters, which are reduced."""

    flops: float
    parameters: float


NETWORKS = {
    "VGG-11, 32 × 32": Network(2 * 152.9e6, 9.23e6),
    "ResNet-50, 224 × 224": Network(2 * 4.09e9, 25.56e6),
}
STEPS = {"plain": 3, "FGR": 6}
DEVICES = (8, 64, 512)


def reduction_seconds(parameters: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of one all-reduce of float32 numbers."""
    return 2 * (devices - 1) / devices * 4 * parameters / bandwidth + 2 * math.log2(devices) * latency


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints the table."""
    rows = []
    for name, network in NETWORKS.items():
        for step, forwards in STEPS.items():
            compute = forwards * network.flops * options.batch / options.rate
            row: dict[str, Any] = {"network": name, "step": step, "compute, ms": 1e3 * compute}
            row["MB reduced"] = 4e-6 * network.parameters
            for devices in DEVICES:
                reducing = reduction_seconds(network.parameters, devices, options.bandwidth, options.latency)
                row[f"{devices} devices: ms reducing"] = 1e3 * reducing
                row[f"{devices} devices: efficiency, %"] = 100 * compute / (compute + reducing)
            rows.append(row)
    report({"A step on a pod": rows}, options.out, source())


if __name__ == "__main__":
    cli.run(main)
