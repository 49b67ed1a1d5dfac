"""Square beside PGD and APGD on the same images: is a robustness to intensity changes a matter of masked gradients?

python benchmarks/gradient_free.py --workdirs=runs/relu_igr,runs/silu_igr --out=docs/results/NAME.json

Additive linf; each attack sees all images.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

import robust_jax as rj
from origin import keep, trace
from robust_jax import cli

flags.DEFINE_list("workdirs", [], "Of train.py.")
flags.DEFINE_string("out", "", "The JSON file.")
flags.DEFINE_string("data_dir", None, "The folder of the prepared data sets.")
flags.DEFINE_integer("images", 200, "The first test images.")
flags.DEFINE_integer("queries", 1000, "Of Square.")
flags.DEFINE_float("radius", 0.2, "Of additive linf.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    ball = dict(perturbation="additive", norm="linf", radius=options.radius)
    search = ball | dict(steps=20, restarts=2, early_stop=True)
    attacks = {
        "square": dict(kind="square", queries=options.queries, **ball),
        "pgd": dict(kind="pgd", **search),
        "apgd": dict(kind="apgd", **search),
    }
    start, traced = time.perf_counter(), trace()
    reports = rj.evaluate(
        options.workdirs, attacks, limit=options.images, data_dir=options.data_dir, checks=0, pictures=0
    )
    found = {Path(workdir).name: report for workdir, report in reports.items()}
    whole = traced | {"seconds": round(time.perf_counter() - start), "evaluations": found}
    keep(Path(options.out), whole)


if __name__ == "__main__":
    cli.run(main)
