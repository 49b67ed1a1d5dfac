"""Robust accuracy over flows against the radius, and against the number of steps: two signs of masked gradients.

python benchmarks/radii.py --workdirs=runs/standard,runs/fgr [--names=standard,FGR] [--images=300] [--data_dir=DIR]
    [--out=docs/results/NAME.json] [--picture=docs/NAME.png]

A ball that is large enough must leave no image, and more steps must not leave more of them. PGD over flows in linf,
from one random start, on the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

import robust_jax as rj
from measurements import Row, report
from origin import source
from robust_jax import cli
from robust_jax.evaluation import curves

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_list("names", None, "Of the workdirs; default: those of their folders.")
flags.DEFINE_string("data_dir", None, "The folder of the prepared data sets; default: as the workdirs say.")
flags.DEFINE_integer("images", 300, "The first test images.")
flags.DEFINE_float("radius", 0.155, "Of the flows of all numbers of steps, in pixels.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")
flags.DEFINE_string("picture", "", "A PNG file for the curves.")

MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STEPS = (10, 40, 160)


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints accuracies by radius and by the number of steps, and draws the former."""
    origin = source()
    ball = dict(kind="pgd", perturbation="flow", norm="linf", radius=options.radius, early_stop=True)
    attacks = {f"steps_{steps}": dict(steps=steps, **ball) for steps in STEPS}
    attacks["steps_40"]["curve"] = MULTIPLES
    # Workdirs of reproduce.py name a perturbation of benchmarks/tables.py.
    reports = rj.evaluate(options.workdirs, attacks, limit=options.images, data_dir=options.data_dir, checks=0,
                          pictures=0, trust=("tables",))  # fmt: skip
    found = dict(zip(options.names or [Path(name).name for name in reports], reports.values(), strict=True))
    by_radius = {name: one["attacks"]["steps_40"]["curve"] for name, one in found.items()}
    first = f"The first {options.images} test images"
    tables = {
        f"{first}, 40 steps": [_by_radius(*one) for one in by_radius.items()],
        f"{first}, {options.radius:g} px": [_by_steps(name, one["attacks"]) for name, one in found.items()],
    }
    report(tables, options.out, origin)
    if options.picture:
        curves.accuracy_curves(
            by_radius,
            Path(options.picture),
            title=f"PGD over flows, linf, 40 steps, {options.images} test images",
            xlabel="radius, pixels per axis",
            highlight=options.radius,
        )


def _by_radius(name: str, curve: Mapping[str, Any]) -> Row:
    pairs = zip(curve["radius"], curve["accuracy"], strict=True)
    return {"training": name} | {f"{radius:g} px": 100 * accuracy for radius, accuracy in pairs}


def _by_steps(name: str, measured: Mapping[str, Any]) -> Row:
    return {"training": name} | {f"{steps} steps": 100 * measured[f"steps_{steps}"]["accuracy"] for steps in STEPS}


if __name__ == "__main__":
    cli.run(main)
