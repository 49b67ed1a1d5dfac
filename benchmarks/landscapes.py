"""The papers' pictures of trained models, and a check of the bounds of a flow's damage.

python benchmarks/landscapes.py --workdirs=runs/standard,runs/fgr --names=standard,FGR --out=docs --prefix=mnist

For the same test images of all models, which all of them classify correctly, it draws

    PREFIX_surfaces.png    the loss along a flow attack and at random, and PREFIX_surfaces_additive.png
    PREFIX_gradients.png   input and flow gradients
    PREFIX_distances.png   distances to the boundary, additive l2, as DDN finds them
    PREFIX_norms.png       L2 norms of the input gradient

and writes docs/results/PREFIX_flow_bounds.json: for flows within several radii, the change of the loss that PGD
finds (20 steps, 2 restarts, the point of the highest loss), and the bounds of `flow_bounds.flow_bounds`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.stats import spearmanr

import robust_jax as rj
from origin import keep, source
from robust_jax import cli
from robust_jax.evaluation import flow_bounds, landscape_pictures, landscapes
from robust_jax.workdir import runs
from runs import classified_by_all

flags.DEFINE_list("workdirs", [], "Of train.py, all on the same data.")
flags.DEFINE_list("names", [], "What the pictures call them.")
flags.DEFINE_string("out", "docs", "The folder of the pictures; that of the JSON is its folder results.")
flags.DEFINE_string("prefix", "mnist", "Of the files' names.")
flags.DEFINE_string("data_dir", None, "The folder of the prepared data sets.")
flags.DEFINE_integer("images", 500, "The first test images; those that all models classify correctly are taken.")
flags.DEFINE_integer("shown", 6, "Images of the grids.")
flags.DEFINE_list("radii", ["0.05", "0.25", "0.5"], "Of flows in linf, in pixels, for the bounds.")
flags.DEFINE_float("additive", 0.2, "The radius of the additive attack along which surfaces are drawn.", lower_bound=0)

PGD = dict(steps=20, restarts=2, keep="highest_loss")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    start, out, origin = time.perf_counter(), Path(options.out), source()
    loaded = [runs.load(workdir, data_dir=options.data_dir) for workdir in options.workdirs]
    models = {name: run.logits_fn for name, run in zip(options.names, loaded, strict=True)}
    images, labels = map(jnp.asarray, classified_by_all(loaded, options.images))
    distances = draw(models, images, labels, options, out)

    found = {
        radius: {name: bounds(f, images, labels, rj.ThreatModel("flow", "linf", float(radius)))
                 for name, f in models.items()}
        for radius in options.radii
    }  # fmt: skip
    whole = origin | {
        "attack": f"pgd, {PGD}", "images": len(images), "of the first": options.images,
        "workdirs": {name: run.config.to_dict()["terms"] for name, run in zip(options.names, loaded, strict=True)},
        "seconds": round(time.perf_counter() - start), "median distances": distances, "radii": found,
    }  # fmt: skip
    path = out / "results" / f"{options.prefix}_flow_bounds.json"
    keep(path, whole)
    print(f"Written to {path}")


def bounds(logits_fn: Any, images: Any, labels: Any, threat: rj.ThreatModel) -> dict[str, float]:
    """How the two bounds compare with the change of the loss that an attack finds."""
    delta = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), **PGD).delta
    change = np.asarray(flow_bounds.loss_change(logits_fn, images, labels, threat, delta))
    limits = flow_bounds.flow_bounds(logits_fn, images, labels, threat)
    gradients = landscapes.loss_gradients(logits_fn, images, labels)
    return {
        **flow_bounds.shares_within(change, limits),
        "median change": float(np.median(change)),
        "median flow bound": float(np.median(limits.flow)),
        "median image bound": float(np.median(limits.image)),
        "median forward bound": float(np.median(limits.forward)),
        "rank correlation of change and flow bound": float(spearmanr(change, limits.flow)[0]),
        "rank correlation of change and image bound": float(spearmanr(change, limits.image)[0]),
        "median L2 norm of the flow gradient": float(np.median(rj.norms.norm(gradients.flow, "l2"))),
        "median L2 norm of the input gradient": float(np.median(rj.norms.norm(gradients.image, "l2"))),
    }


def draw(models: dict[str, Any], images: Any, labels: Any, options: flags.FlagValues, out: Path) -> dict[str, float]:
    """Draws the pictures, each model attacked by its own δ; returns the median distances to the boundary."""
    few, of_few = images[: options.shown], labels[: options.shown]

    def path(kind: str) -> Path:
        return out / f"{options.prefix}_{kind}.png"

    spaces = {"": rj.ThreatModel("flow", "linf", float(options.radii[-1])),
              "_additive": rj.ThreatModel("additive", "linf", options.additive)}  # fmt: skip
    for kind, threat in spaces.items():
        surfaces = {}
        for name, f in models.items():
            delta = rj.attacks.pgd(f, few, of_few, threat, key=jax.random.key(0), **PGD).delta
            surfaces[name] = landscapes.loss_surface(f, few, of_few, threat, delta, key=jax.random.key(1))
        title = f"cross-entropy: up along PGD, {threat.perturbation.name} linf {threat.radius:g}; across at random"
        landscape_pictures.surface_grid(
            surfaces, path=path(f"surfaces{kind}"), labels=np.asarray(of_few).tolist(), title=title
        )
    gradients = {name: landscapes.loss_gradients(f, images, labels) for name, f in models.items()}
    shown = {name: landscapes.Gradients(*(g[: options.shown] for g in one)) for name, one in gradients.items()}
    landscape_pictures.gradient_grid(np.asarray(few), shown, path=path("gradients"), title="gradients of the loss")
    lengths = {name: rj.norms.norm(one.image, "l2") for name, one in gradients.items()}
    landscape_pictures.histograms(lengths, xlabel="L2 norm of the input gradient", path=path("norms"), log=True)
    ball, key = rj.ThreatModel("additive", "l2", 10.0), jax.random.key(0)
    distances = {}
    for name, f in models.items():
        found = landscapes.boundary_distances(f, images, labels, ball, key=key, attack=rj.attacks.ddn)
        distances[name] = ball.radius * found.distance
    landscape_pictures.histograms(
        distances, xlabel="distance to the boundary, additive l2, found by DDN", path=path("distances")
    )
    return {name: float(np.median(one)) for name, one in distances.items()}


if __name__ == "__main__":
    cli.run(main)
