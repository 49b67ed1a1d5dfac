"""The papers' pictures of trained models, and a check of the bounds of a flow's damage.

python benchmarks/landscapes.py --workdirs=runs/standard,runs/fgr --names=standard,FGR --out=docs --prefix=mnist

For the same test images of all models, which all of them classify correctly, it draws

    PREFIX_surfaces.png    the loss along a flow attack and at random, and PREFIX_surfaces_additive.png
    PREFIX_gradients.png   input and flow gradients
    PREFIX_distances.png   distances to the boundary, additive l2, as DDN finds them
    PREFIX_norms.png       L2 norms of the input gradient

and writes two tables, PREFIX_flow_bounds.json and PREFIX_flatness.json, to the folder `results` of `--out`: for flows
within several radii, the change of the loss that PGD finds (20 steps, 2 restarts, the point of the highest loss) and
the bounds of `flow_bounds.flow_bounds`; for intensity changes, how much the loss and its gradient change on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.stats import spearmanr

import robust_jax as rj
from measurements import report
from origin import source
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
flags.DEFINE_list("radii", ["0.05", "0.25", "0.5"], "Of flows in linf, in pixels; the last for the surfaces.")
flags.DEFINE_list("additive", ["0.05", "0.1", "0.2"], "Of intensity changes in linf; the last for the surfaces.")

PGD = dict(steps=20, restarts=2, keep="highest_loss")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    out, origin = Path(options.out), source()
    loaded = [runs.load(workdir, data_dir=options.data_dir) for workdir in options.workdirs]
    models = {name: run.logits_fn for name, run in zip(options.names, loaded, strict=True)}
    images, labels = map(jnp.asarray, classified_by_all(loaded, options.images))
    out.mkdir(parents=True, exist_ok=True)
    draw(models, images, labels, options, out)

    measured = {"flow_bounds": (bounds, "flow", options.radii), "flatness": (flatness, "additive", options.additive)}
    for kind, (measure, perturbation, radii) in measured.items():
        rows = [
            {"radius": radius, "training": name, "images": len(images)}
            | measure(f, images, labels, rj.ThreatModel(perturbation, "linf", float(radius)))
            for radius in radii
            for name, f in models.items()
        ]
        terms = {name: run.config.to_dict()["terms"] for name, run in zip(options.names, loaded, strict=True)}
        path = out / "results" / f"{options.prefix}_{kind}.json"
        report({kind: rows}, str(path), origin | {"attack": f"pgd, {PGD}", "terms": terms})


def bounds(logits_fn: Any, images: Any, labels: Any, threat: rj.ThreatModel) -> dict[str, float]:
    """How the two bounds compare with the change of the loss that an attack finds."""
    delta = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), **PGD).delta
    change = np.asarray(flow_bounds.loss_change(logits_fn, images, labels, threat, delta))
    limits = flow_bounds.flow_bounds(logits_fn, images, labels, threat)
    shares = flow_bounds.shares_within(change, limits)
    return {
        **{f"{name}, %": round(100 * shares[name]) for name in ("within the flow bound", "within the image bound")},
        "median change": float(np.median(change)),
        "median flow bound": float(np.median(limits.flow)),
        "median image bound": float(np.median(limits.image)),
        "median forward bound": float(np.median(limits.forward)),
        "median of image / flow": shares["median of image / flow"],
        "rank correlation of change and flow bound": float(spearmanr(change, limits.flow)[0]),
        "rank correlation of change and image bound": float(spearmanr(change, limits.image)[0]),
    }


def flatness(logits_fn: Any, images: Any, labels: Any, threat: rj.ThreatModel) -> dict[str, float]:
    """What the loss changes by towards an attack's point and in a random direction as long, and its slope at both ends.

    The slope is the L1 norm of the input gradient, of which local flatness regularisation penalises the largest nearby.
    """
    delta = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), **PGD).delta
    random = landscapes.orthogonal(threat, delta, jax.random.key(1))
    there = jnp.clip(threat.perturbation.apply(images, delta), 0, 1)

    def change(delta: Any) -> float:
        return float(np.median(flow_bounds.loss_change(logits_fn, images, labels, threat, delta)))

    def slope(images: Any) -> float:
        return float(np.median(rj.norms.norm(landscapes.loss_gradients(logits_fn, images, labels).image, "l1")))

    return {
        "median change of the loss under PGD": change(delta),
        "median change in a random direction as long": change(random),
        "median L1 norm of the gradient at the image": slope(images),
        "median L1 norm of the gradient at PGD's point": slope(there),
    }


def draw(models: dict[str, Any], images: Any, labels: Any, options: flags.FlagValues, out: Path) -> None:
    """Draws the pictures, each model attacked by its own δ."""
    few, of_few = images[: options.shown], labels[: options.shown]

    def path(kind: str) -> Path:
        return out / f"{options.prefix}_{kind}.png"

    spaces = {"": rj.ThreatModel("flow", "linf", float(options.radii[-1])),
              "_additive": rj.ThreatModel("additive", "linf", float(options.additive[-1]))}  # fmt: skip
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


if __name__ == "__main__":
    cli.run(main)
