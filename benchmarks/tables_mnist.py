"""The tables on MNIST: smooth activations, local flatness, region adversarial training, and the family of Lyu et al."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from table_types import Choice, Row, Table

ACTIVATIONS = {"relu": "ReLU", "silu": "SiLU", "gelu": "GELU"}
# Row -> what is printed, a method, its weight and the values that are tried, the largest first.
REGULARISERS: dict[str, tuple[str, str, str, tuple[float, ...]]] = {
    "igr_l2": ("IGR, l2", "igr", "terms.igr.weight", (3.0, 1.0, 0.3, 0.1)),
    "fgr": ("FGR", "fgr", "terms.fgr.weight", (10.0, 3.0, 1.0, 0.3)),
    "igr_l1": ("IGR, l1", "family", "terms.gain.weight", (2.0, 1.0, 0.5, 0.25)),
    "lfr": ("LFR", "lfr", "terms.lfr.weight", (0.03, 0.01, 0.003, 0.001)),
}


def smooth_rows(config: str, regularisers: Mapping[str, Any], options: str = "") -> dict[str, Row]:
    """Standard training and each regulariser, each with each activation, in an order in which a part makes sense."""
    rows = {
        activation: Row(f"{name}, standard", f"{config}:standard:model.options.activation={activation}")
        for activation, name in ACTIVATIONS.items()
    }
    for row, (label, method, key, values) in regularisers.items():
        extra = options if method == "lfr" else ""
        for activation, name in ACTIVATIONS.items():
            rows[f"{activation}_{row}"] = Row(
                f"{name}, {label}",
                f"{config}:{method}:model.options.activation={activation}{extra}",
                Choice(key, values, like=activation),
            )
    return rows


def _both(steps: int, restarts: int, flow: float, additive: float) -> dict[str, dict[str, Any]]:
    """PGD and APGD over flows and over intensities."""
    search = dict(norm="linf", steps=steps, restarts=restarts, early_stop=True)
    balls = {"flow": dict(perturbation="flow", radius=flow), "additive": dict(perturbation="additive", radius=additive)}
    return {f"{s}_{kind}": dict(kind=kind, **search, **ball) for s, ball in balls.items() for kind in ("pgd", "apgd")}


WORST = {"worst flow": ("flow_pgd", "flow_apgd"), "worst additive": ("additive_pgd", "additive_apgd")}
SMOOTH = "MNIST: gradient penalties with smooth activations, at about the same clean accuracy"
# Each regulariser with standard training, and each smooth activation with ReLU.
SMOOTH_PAIRS = (
    *((f"{a}_{row}", a) for row in REGULARISERS for a in ACTIVATIONS),
    *((f"{a}_{row}", f"relu_{row}") for row in REGULARISERS for a in ("silu", "gelu")),
    *((a, "relu") for a in ("silu", "gelu")),
)

THREE_STEPS = ":points.roughest.steps=3:points.roughest.step_size=0.1"

smooth = {
    "short": Table(
        SMOOTH, smooth_rows("mnist_short_methods", REGULARISERS, THREE_STEPS),
        ("epochs=1",), _both(20, 2, 0.5, 0.2), WORST, 500, (0,), SMOOTH_PAIRS,
    ),
    "full": Table(
        SMOOTH, smooth_rows("mnist_methods", REGULARISERS), ("epochs=20",), _both(100, 5, 0.5, 0.2), WORST, 10_000,
        (0, 1, 2), SMOOTH_PAIRS,
    ),
}  # fmt: skip
