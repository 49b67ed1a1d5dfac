"""The tables of results: what each one trains, and with which attacks it is measured.

A table has two sizes that are never mixed: `short` fits two CPU cores, `full` needs a GPU. benchmarks/reproduce.py runs
one.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import tables_mnist
from robust_jax.spaces.flow import flow
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.warping import warp
from table_types import Row, Table, against


def _zero_padded(images: Any, delta: Any) -> Any:
    """`warp` with zeros beyond the border, for flows of at most one pixel."""
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    return warp(jnp.pad(images, border), jnp.pad(delta, border))[:, 1:-1, 1:-1]


zero_padded = Perturbation(flow.zeros, _zero_padded, "zero-padded flow", unit="px", moves_pixels=True)
"""Flows as the FGR reference has them: zeros outside of the image, and attacked by the plain derivative."""


PIXELS = 0.155  # 0.01 in the normalised units of the FGR paper, on images of 32 pixels
# The FGR reference's own: all steps of a coordinate together are as long as the radius.
WEAK = dict(kind="pgd", perturbation="tables:zero_padded", norm="linf", radius=PIXELS, steps=100,
            step_size=PIXELS / 100, random_start=False, keep="last")  # fmt: skip
FLOW = dict(perturbation="flow", norm="linf", radius=PIXELS)
ADDITIVE = dict(kind="apgd", perturbation="additive", norm="linf", steps=20, restarts=2)
CIFAR_ATTACKS = {
    "flow_reference": WEAK,
    "flow_pgd": dict(kind="pgd", steps=40, restarts=3, early_stop=True, **FLOW),
    "flow_apgd": dict(kind="apgd", steps=40, restarts=3, early_stop=True, **FLOW),
    "flow_square": dict(kind="square", queries=1000, **FLOW),
    "flow_0_5": dict(kind="pgd", steps=40, restarts=3, early_stop=True) | FLOW | dict(radius=0.5),
    "additive_2_255": ADDITIVE | dict(radius=2 / 255, early_stop=True),
    "additive_8_255": ADDITIVE | dict(radius=8 / 255, early_stop=True),
    "affine": dict(kind="pgd", perturbation="affine", norm="linf", radius=(10.0, 1.0, 1.0), steps=20,
                             restarts=3, early_stop=True),
}  # fmt: skip


def _cifar(model: str, name: str) -> dict[str, Table]:
    title = f"CIFAR-10, {name}: flow-gradient regularisation (Xia & Li 2021)"
    config = "cifar10_reference_methods"
    rows = {
        "standard": Row("standard", f"{config}:standard"),
        "random_start": Row("random start alone (λ = 0)", f"{config}:random_flow"),
        "igr": Row("input-gradient regularisation", f"{config}:igr"),
        # The reference's λ / 128² (31 / 2)², see cifar10_vgg11_fgr.
        "fgr_100": Row("FGR, λ = 100", f"{config}:fgr:terms.fgr.weight=1.47"),
        "fgr_300": Row("FGR, λ = 300", f"{config}:fgr:terms.fgr.weight=4.40"),
        "adt_3": Row("adversarial deformation training, 3 steps", f"{config}:adt:points.attacked.steps=3"),
    }
    full = (f"model.name={model}",)
    short = (*full, "epochs=12", "schedule.name=one_cycle", "schedule.learning_rate=0.1", "checkpoint_every_steps=50")
    worst = {"worst flow": ("flow_pgd", "flow_apgd", "flow_square")}
    return {
        "short": Table(title, rows, short, CIFAR_ATTACKS, worst, 1000, (0,), against(rows, "standard")),
        "full": Table(title, rows, full, CIFAR_ATTACKS, worst, 10000, (0, 1, 2), against(rows, "standard")),
    }


TABLES: dict[str, dict[str, Table]] = {
    "cifar10_vgg11": _cifar("vgg11", "VGG-11"),
    "cifar10_resnet20": _cifar("resnet20", "ResNet-20"),
    "mnist_smooth": tables_mnist.smooth,
}
