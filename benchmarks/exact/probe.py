"""How many images within reach attacks leave where the smallest radius that breaks an image is known exactly.

python -m benchmarks.exact.probe --out=docs/results/exact_optima.json

About ten minutes of a core. `python benchmarks/optimality_page.py` puts the table into docs/optimality.md, and
tests/attacks/test_optimality.py holds each number to a bound.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.exact.optima import KINDS, UNITS
from benchmarks.origin import keep, source
from robust_jax import attacks
from robust_jax.spaces.threat_models import ThreatModel

KEY = jax.random.key(0)
ENTRANTS = {
    "pgd": partial(attacks.pgd, steps=40, restarts=2),
    "apgd": partial(attacks.apgd, steps=40, restarts=2),
    "apgd_dlr": partial(attacks.apgd_dlr, steps=40, restarts=2),
    "apgd_targeted": partial(attacks.apgd_targeted, steps=40),
    "fab": partial(attacks.fab, steps=40),
    "fab_targeted": partial(attacks.fab_targeted, steps=40),
    "deepfool": attacks.deepfool,
    "ddn": attacks.ddn,
    "carlini_wagner": partial(attacks.carlini_wagner, steps=100),
    "ead": partial(attacks.ead, steps=100),
    "fmn": attacks.fmn,
    "square": partial(attacks.square, queries=300),
    "random_search": partial(attacks.random_search, samples=300),
    "grid": partial(attacks.grid, points=(15, 9, 9)),
}


def left_standing(kind: str, norm: str, name: str) -> float:
    """The share of images within reach that an attack leaves, over three radii: those with 1.02 distance <= radius."""
    make, space, ranges = KINDS[kind]
    model, images, labels, distances = make(norm)
    low, high = ranges[norm]
    chosen = np.flatnonzero((distances > low) & (distances < high))[:40]
    images, labels, distances = jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), distances[chosen]
    left = within = 0
    for radius in np.quantile(distances, (0.3, 0.6, 0.9)):
        threat = ThreatModel(space, norm, jax.tree.map(lambda unit, r=radius: float(unit * r), UNITS.get(space, 1.0)))
        standing = ~np.asarray(ENTRANTS[name](model, images, labels, threat, key=KEY).success)
        reachable = 1.02 * distances <= radius
        # No attack finds what is not there; over flows and affine maps distances are those of a grid.
        assert standing[distances > 1.2 * radius].all()
        left, within = left + (standing & reachable).sum(), within + reachable.sum()
    return float(left / within)


def supporting(ball: str) -> list[str]:
    """The names of the attacks that have a meaning in a ball."""
    only = {"ddn": "/l2/", "carlini_wagner": "/l2/", "ead": "/l1/", "grid": "affine/", "random_search": "affine/"}
    return [name for name in ENTRANTS if only.get(name, "") in f"{ball}/"]


def main() -> None:
    """Measures all attacks in all balls, a line for each ball, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help="the JSON file")
    given, origin, left = parser.parse_args(), source(module="benchmarks.exact.probe"), {}
    for kind, (_, space, balls) in KINDS.items():
        for norm in balls:
            names = supporting(f"{space}/{norm}")
            left[f"{kind}, {norm}"] = {name: left_standing(kind, norm, name) for name in names}
            print(f"{kind}, {norm}", left[f"{kind}, {norm}"], flush=True)
            jax.clear_caches()
    if given.out:
        keep(Path(given.out), {"left": left} | origin)


if __name__ == "__main__":
    main()
