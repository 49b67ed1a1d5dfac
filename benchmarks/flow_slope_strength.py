r"""Compares PGD over flows along the slope across grid lines with PGD along the derivative, image by image.

python benchmarks/flow_slope_strength.py --workdir=runs/digits_standard,runs/digits_fgr,runs/mnist_standard \
  --out=docs/results/flow_slope.json

Both have the same steps and restarts, and start at the same points. Of every pair it counts the images that fall to one
of them alone. Chance decides some of them, so that it also counts those that the derivative itself breaks from these
starts and not from others; those that fall to the derivative alone are attacked with the slope from these other starts,
too. The results of a case are written as soon as it is done, with its command, and a case that the file has already is
not measured again.
`python benchmarks/flow_slope_page.py` puts the tables into docs/flow_slope.md and draws its picture.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import origin
import runs
from robust_jax.attacks import pgd, square
from robust_jax.evaluation.measure import versions
from robust_jax.evaluation.statistics import wilson_interval
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel

flags.DEFINE_list("workdir", None, "Finished runs of train.py.", required=True)
flags.DEFINE_string("out", "docs/results/flow_slope.json", "The results.")
flags.DEFINE_list("norms", ["linf", "l2inf", "l2", "l21"], "The balls.")
flags.DEFINE_list("radii", ["0.1", "0.25", "0.5", "1", "2"], "In pixels, see `radius_of`.")
flags.DEFINE_integer("count", 200, "Correctly classified test images.")
flags.DEFINE_integer("steps", 20, "Of PGD.")
flags.DEFINE_integer("restarts", 5, "Of PGD.")
flags.DEFINE_integer("queries", 0, "Of Square, a judge that needs no gradients; 0: without.")
flags.DEFINE_integer("seed", 0, "Of the attacks.")

SPACES = {"slope": flow, "derivative": replace(flow, name="flow_derivative", slope=None)}


def radius_of(pixels: float, norm: str, shape: tuple[int, ...]) -> float:
    """The radius in which every pixel (linf, l2inf), or one pixel in sixteen (l2, l21), can move by ``pixels``."""
    moving = shape[0] * shape[1] / 16
    return pixels * {"l2": moving**0.5, "l21": moving}.get(norm, 1.0)


def compared(model: Any, images: np.ndarray, labels: np.ndarray, norm: str, pixels: float) -> dict[str, Any]:
    """What the slope, the derivative and Square break, of the same images in the same ball."""
    F = flags.FLAGS
    radius = radius_of(pixels, norm, images.shape[1:])
    key = jax.random.key(F.seed)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    attack = partial(pgd, model, steps=F.steps, restarts=F.restarts, early_stop=True)
    seconds, broken = {}, {}
    for name, space in SPACES.items():
        start = time.perf_counter()
        broken[name] = np.asarray(attack(images, labels, ThreatModel(space, norm, radius), key=keys).success)
        seconds[name] = round(time.perf_counter() - start, 1)
    if F.queries:
        judged = square(model, images, labels, ThreatModel(flow, norm, radius), key=keys, queries=F.queries)
        broken["square"] = np.asarray(judged.success)
    others = jax.vmap(partial(jax.random.fold_in, jax.random.key(F.seed + 1)))(jnp.arange(len(images)))
    again = {
        name: np.asarray(attack(images, labels, ThreatModel(space, norm, radius), key=others).success)
        for name, space in SPACES.items()
    }
    alone = {one: broken[one] & ~broken[other] for one, other in (("slope", "derivative"), ("derivative", "slope"))}
    n = len(images)
    return {
        "radius": radius, "images": n, "steps": F.steps, "restarts": F.restarts, "seed": F.seed,
        "left": {name: 1 - float(hit.mean()) for name, hit in broken.items()},
        "both": int((broken["slope"] & broken["derivative"]).sum()),
        **{f"{name}_only": int(hit.sum()) for name, hit in alone.items()},
        "derivative_only_again": int((alone["derivative"] & again["slope"]).sum()),
        "derivative_not_again": int((broken["derivative"] & ~again["derivative"]).sum()),
        "derivative_only_interval": wilson_interval(int(alone["derivative"].sum()), n),
        "seconds": seconds,
    }  # fmt: skip


def main(_: list[str]) -> None:
    """Measures the cases that the file does not have yet."""
    F, path = flags.FLAGS, Path(flags.FLAGS.out)
    found, traced = origin.kept(path, {"cases": {}}), origin.trace()
    found |= {"versions": versions()}
    for workdir in map(Path, F.workdir):
        _, model, images, labels = runs.correctly_classified(workdir, F.count)
        for norm in F.norms:
            for pixels in F.radii:
                case = f"{workdir.name}/{norm}/{pixels}"
                if case in found["cases"]:
                    continue
                measured = compared(model, images, labels, norm, float(pixels))
                found["cases"][case] = measured | traced
                print(case, found["cases"][case], flush=True)
                origin.keep(path, found)


if __name__ == "__main__":
    app.run(main)
