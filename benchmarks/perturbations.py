"""Draws the steepest perturbations r of a trained model for several norms, below their images (Lyu et al. 2015).

python benchmarks/perturbations.py --workdir=runs/maxout_l2 --norms=1,1.5,2,3,inf

r is the same for every radius except for its length; each is drawn on its own scale.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

import robust_jax as rj
from robust_jax import cli
from robust_jax.config.validation import number
from robust_jax.evaluation import pictures
from robust_jax.workdir import runs

flags.DEFINE_string("workdir", "", "Of train.py; the picture goes there, as perturbations.png.")
flags.DEFINE_list("norms", ["1", "1.5", "2", "3", "inf"], "Of r.")
flags.DEFINE_integer("count", 10, "Test images.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    trained = runs.load(options.workdir)
    logits_fn, (images, labels) = trained.logits_fn, trained.examples(options.count)

    @jax.jit
    def steepest(logits_fn, images, threat):
        return rj.steepest(lambda x: rj.losses.cross_entropy(logits_fn(x), labels), images, threat)

    norms = {name: float(number(name)) for name in options.norms}
    rows = {f"p = {name}": steepest(logits_fn, images, rj.ThreatModel("additive", p, 1.0)) for name, p in norms.items()}
    path = Path(options.workdir) / "perturbations.png"
    pictures.perturbation_grid(images, rows, path=path, title=f"r of {Path(options.workdir).name}")
    print(f"Written to {path}")


if __name__ == "__main__":
    cli.run(main)
