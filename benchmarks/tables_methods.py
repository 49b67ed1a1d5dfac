"""The tables of the configs that the package comes with: the digits and MNIST, and training methods on both.

Most have one size: what they mean to show fits two CPU cores. Their attacks are those of the configs, and some more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robust_jax import cli
from robust_jax.config.methods import METHODS, SIZES
from table_types import BALL, Row, Table, Universal, against, in_ball_of


def _attacks(config: str) -> dict[str, dict[str, Any]]:
    """Those of a config, at their own radii alone."""
    attacks: dict[str, dict[str, Any]] = cli.load_config(config).attacks.to_dict()
    return {name: {k: v for k, v in attack.items() if k != "curve"} for name, attack in attacks.items()}


def _worst(
    attacks: dict[str, dict[str, Any]], points: int, **more: Any
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """The attacks, each with a second one in its ball, and more; and the worst of each ball.

    With a grid where δ has three parameters, as ascent misses many there (docs/optimality.md), else with APGD on the
    margin, which does not fail where PGD's cross-entropy is flat.

    Args:
      attacks: PGD in several balls.
      points: of the grid, along the angle; 5 along each shift.
      more: further attacks.
    """
    found = dict(attacks)
    for name, attack in attacks.items():
        ball = {key: attack[key] for key in BALL}
        if attack["perturbation"] == "affine":
            second, kind = f"{name}_grid", dict(kind="grid", points=(points, 5, 5))
        else:
            second, kind = f"{name}_apgd", dict(kind="apgd", loss="margin", steps=40, restarts=2, early_stop=True)
        found[second] = kind | ball
    found |= more
    return found, {f"worst {name}": in_ball_of(name, found) for name in attacks}


def _digits() -> Table:
    """FGR, its control, and input-gradient regularisation, each with every weight that was tried."""
    rows = {
        "standard": Row("standard", "digits_standard"),
        "random_start": Row("random start alone (FGR with λ = 0)", "digits_fgr:terms.fgr.weight=0.0"),
        **{f"igr_{w:g}": Row(f"input-gradient regularisation, λ = {w:g}", f"digits_igr:terms.igr.weight={w}")
           for w in (0.3, 1.0, 3.0)},
        **{f"fgr_{w:g}": Row(f"FGR, λ = {w:g}", f"digits_fgr:terms.fgr.weight={w}") for w in (1.0, 3.0, 10.0)},
    }  # fmt: skip
    attacks, worst = _worst(_attacks("digits_standard"), 31)
    pairs = (("fgr_3", "random_start"), *(("fgr_3", f"igr_{w}") for w in ("1", "3")), ("fgr_10", "igr_3"))
    title = "The digits: flow-gradient regularisation, σ = 0.155 px"
    return Table(title, rows, (), attacks, worst, 360, (0, 1, 2), pairs)


def _region() -> Table:
    """By the number of examples that the universal perturbations are made from; larger radii than those of images."""
    rows = {"standard": Row("none: standard", "digits_rat:0")}
    rows |= {f"rat_{count}": Row(f"{count} examples", f"digits_rat:{count}") for count in (10, 50, 100, 500)}
    title = "The digits: region adversarial training (Wang et al. 2021), by the number of examples"
    return Table(title, rows, (), _attacks("digits_rat"), {}, 360, (0, 1, 2), against(rows, "standard"),
                 _universal("digits"))  # fmt: skip


def _mnist(images: int, seeds: tuple[int, ...]) -> Table:
    """The configs as they are, five epochs on all images. Table `mnist_smooth` has weights of equal clean accuracy."""
    rows = {
        "standard": Row("standard", "mnist_standard"),
        "random_start": Row("random start alone (FGR with λ = 0)", "mnist_fgr:terms.fgr.weight=0.0"),
        "igr": Row("input-gradient regularisation, λ = 1", "mnist_igr"),
        "fgr": Row("FGR, λ = 3, σ = 0.3 px", "mnist_fgr"),
        "adt": Row("adversarial deformation training", "mnist_adt"),
    }
    flow = dict(perturbation="flow", norm="linf", radius=0.5)
    attacks = _attacks("mnist_standard") | {
        "flow_apgd": dict(kind="apgd", steps=40, restarts=3, early_stop=True, **flow),
        "flow_square": dict(kind="square", queries=1000, **flow),
    }
    worst = {"worst flow 0.5": in_ball_of("flow_0_5", attacks)}
    pairs = (*against(rows, "standard"), ("fgr", "random_start"), ("fgr", "igr"), ("adt", "fgr"))
    return Table("MNIST, five epochs: flow-gradient regularisation", rows, (), attacks, worst, images, seeds, pairs)


def _universal(sizes: str) -> dict[str, Universal]:
    spaces = zip(("additive", "flow"), SIZES[sizes].universal, strict=True)
    return {f"{space} {radius}": Universal(space, radius) for space, radius in spaces}


def _methods(
    title: str,
    config: str,
    images: int,
    seeds: tuple[int, ...],
    points: int,
    universal: Mapping[str, Universal],
    methods: Iterable[str] = tuple(METHODS),
    **more: Any,
) -> Table:
    """Methods, all by default; ``more`` are further attacks."""
    rows = {method: Row(method, f"{config}:{method}") for method in methods}
    pairs = (("fgr", "igr"), ("fgr", "random_flow"), ("n_fgsm", "fgsm_rs"), ("lfr", "pgd"))
    attacks, worst = _worst(_attacks(config), points, **more)
    return Table(title, rows, (), attacks, worst, images, seeds, pairs, universal)


# Those that train at a flow or an intensity change, or penalise its gradient; all others take hours more.
ON_MNIST = ("standard", "random_flow", "igr", "fgr", "pgd", "fgsm_rs", "n_fgsm", "adt", "trades", "trades_flow", "lfr",
            "lfr_flow")  # fmt: skip
# A method that is trained at a single step can overfit it: FGSM is a column beside PGD.
SINGLE = dict(kind="fgsm", perturbation="additive", norm="linf", radius=SIZES["mnist_short"].intensity)

TABLES: dict[str, dict[str, Table]] = {
    "digits": {"short": _digits()},
    "digits_rat": {"short": _region()},
    "digits_methods": {
        "short": _methods("The digits: all methods", "digits_methods", 360, (0, 1, 2), 31, _universal("digits"))
    },
    "mnist": {"short": _mnist(1000, (0,)), "full": _mnist(10_000, (0, 1, 2))},
    # Universal perturbations would take as long as all else together: they are in the table mnist_rat.
    "mnist_methods": {
        "short": _methods(
            "MNIST: training methods", "mnist_short_methods", 500, (0,), 11, {}, ON_MNIST, additive_fgsm=SINGLE
        )
    },
}
