"""Draws the δ that sends all images to a class, for each class and several models (Wang et al. 2021).

python benchmarks/universal_pictures.py --workdirs=runs/standard,runs/rat --names=standard,RAT --radius=0.3 --out=u.png

A column is a class: above an image of it, and below for each model the additive δ, within linf, made from the first
training images.
"""

from __future__ import annotations

import jax
import numpy as np
from absl import flags

import robust_jax as rj
from robust_jax import cli
from robust_jax.evaluation import pictures
from robust_jax.workdir import runs
from universal_rates import towards

flags.DEFINE_list("workdirs", None, "Finished runs, all on the same data.", required=True)
flags.DEFINE_list("names", None, "What the picture calls them.", required=True)
flags.DEFINE_float("radius", None, "Of the linf ball.", required=True)
flags.DEFINE_integer("examples", 100, "Training images that each δ is made from.")
flags.DEFINE_string("out", "universal.png", "The picture.")
flags.DEFINE_string("data_dir", None, "The folder of the prepared data sets.")


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Draws one picture."""
    threat, rows = rj.ThreatModel("additive", "linf", options.radius), {}
    for name, workdir in zip(options.names, options.workdirs, strict=True):
        trained = runs.load(workdir, data_dir=options.data_dir)
        logits_fn = rj.bind(trained.model, trained.variables)
        images, labels = trained.examples(options.examples, "train")
        classes = range(trained.dataset.num_classes)
        # Of every image, but the same for all.
        rows[name] = np.stack([towards(logits_fn, images, c, threat, jax.random.key(c))[0] for c in classes])
    one_each = np.stack([np.asarray(images)[np.asarray(labels) == c][0] for c in classes])
    title = f"One δ towards each class, linf {options.radius:g}, from {options.examples} images"
    pictures.perturbation_grid(one_each, rows, path=options.out, title=title)
    print(f"Written to {options.out}")


if __name__ == "__main__":
    cli.run(main)
