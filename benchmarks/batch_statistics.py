"""Validation accuracy of a trained model with BatchNorm statistics of clean images, of a point's images, and of both.

python benchmarks/batch_statistics.py --workdir=runs/lfr --point=roughest

Training takes running statistics from one pass per step. An implementation that also updates them at the point's
images, as the reference of local flatness regularisation does, evaluates with a mixture. Statistics are recomputed from
training images, with the model's momentum; for "both" the two kinds of images alternate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import flags

from robust_jax import cli
from robust_jax.objectives import make_objective
from robust_jax.objectives.inputs import Model
from robust_jax.workdir import runs

flags.DEFINE_string("workdir", "", "Of train.py.")
flags.DEFINE_string("point", "roughest", "A point of its config.")
flags.DEFINE_integer("batches", 40, "Batches of training images for the statistics.")
flags.DEFINE_integer("limit", 500, "Validation images.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    trained = runs.load(options.workdir, "latest")
    config, model, variables, _, step = trained
    params = variables["params"]
    points = {options.point: config.points[options.point].to_dict()}
    objective = make_objective(points, {"ce": dict(kind="cross_entropy", at=options.point)})

    @jax.jit
    def moved_to(images, labels, key):
        seen = Model(lambda x: (model.apply(variables, x, train=False), {}), lambda x: model.apply(variables, x))
        keys = jax.random.split(key, len(images))
        return objective.find(seen, images, labels, keys)[options.point].images

    @jax.jit
    def updated(statistics, images):
        given = {"params": params, "batch_stats": statistics}
        return model.apply(given, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    images, labels = trained.examples(options.batches * config.batch_size, "train")
    found = {name: variables["batch_stats"] for name in ("clean", "point", "both")}
    for i in range(options.batches):
        part = slice(i * config.batch_size, (i + 1) * config.batch_size)
        point = moved_to(images[part], labels[part], jax.random.key(i))
        found["clean"] = updated(found["clean"], images[part])
        found["point"] = updated(found["point"], point)
        found["both"] = updated(updated(found["both"], images[part]), point)

    images, labels = trained.examples(options.limit, "validation")
    print(f"{options.workdir}, step {step}: accuracy on {len(images)} validation images")
    for name, statistics in {"of training": variables["batch_stats"], **found}.items():
        logits = model.apply({"params": params, "batch_stats": statistics}, images, train=False)
        print(f"{name:12s} {100 * jnp.mean(logits.argmax(-1) == labels):.1f}%")


if __name__ == "__main__":
    cli.run(main)
