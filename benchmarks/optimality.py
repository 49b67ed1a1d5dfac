"""How far each attack is from the best of all attacks: the judge that needs no other library.

python benchmarks/optimality.py --workdirs=runs/digits_standard,runs/digits_fgr,runs/digits_pgd
python benchmarks/optimality.py --workdirs=runs/mnist_standard --balls=additive/l1,flow/l21 --images=50

For each finished run and each ball, all attacks that support it get the first correctly classified test images, at five
radii. After AttackBench (Cina et al. 2024), whose local optimality it is: with ρ_a(r) the share of images that attack a
leaves at radius r, ρ_a(0) = 1, ρ*(r) the share that no attack of any kind breaks at r or at a smaller radius, and R the
largest radius,

    optimality of a = ∫_0^R (1 - ρ_a(r)) dr / ∫_0^R (1 - ρ*(r)) dr,

by the trapezoid rule over 0 and the radii: 100% is an attack that is never behind the best of all together, whose
envelope includes `pgd` of many restarts on two losses (and over flows along the derivative), see `JUDGES`. The five
radii are those at which FAB and PGD of 20 steps together leave about 90, 70, 50, 30 and 10% of the images; the best of
all leave fewer.
Attacks in a ball run once at every radius. Those that seek the smallest δ run once in the largest ball, and break an
image at the radii from the size of their δ on. Every attacked image is classified a second time, and counts as broken
if its δ is in the ball (up to 0.1%). `alone` is the number of images that no other attack breaks at some radius.

The results of an attack are written as soon as they are there, and are not measured again unless --again names it.
`python benchmarks/optimality_page.py` puts the tables into docs/optimality.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from origin import also, keep, kept, packed, refuse_others, source, unpacked
from robust_jax import attacks, cli, losses
from robust_jax.spaces import threat_models
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel
from runs import correctly_classified, selected

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_list("balls", None, "Some of SPACE/NORM; all unless given.")
flags.DEFINE_list("attacks", None, "Some attacks; all that support the ball unless given.")
flags.DEFINE_list("again", [], "Attacks that are measured again.")
flags.DEFINE_integer("images", 60, "Correctly classified test images.")
flags.DEFINE_integer("seed", 0, "Of the attacks.")
flags.DEFINE_string("out", "docs/results/optimality.json", "The results.")

BALLS = (
    "additive/l1", "additive/l2", "additive/linf", "flow/linf", "flow/l2inf", "flow/l2", "flow/l21", "flow/l1",
    "affine/linf", "affine/l2", "affine/l1",
)  # fmt: skip
UNITS = {"additive": 1.0, "flow": 1.0, "affine": (10.0, 1.0, 1.0)}  # of a radius: intensity; px; 10 degrees and px
LEFT = (0.9, 0.7, 0.5, 0.3, 0.1)  # what FAB and a short PGD leave at the radii
DERIVATIVE = replace(flow, name="flow_derivative", slope=None)


class Entrant(NamedTuple):
    """An attack with its options.

    Attributes:
      attack: one of `robust_jax.attacks`.
      options: that differ from its defaults, or that say what it costs.
      balls: the beginnings or ends of the names of the balls that it supports; () for all.
      minimal: whether it seeks the smallest δ, and runs once.
      derivative: whether it follows the derivative over flows instead of the slope.
    """

    attack: Callable[..., Any]
    options: Mapping[str, Any] = {}
    balls: tuple[str, ...] = ()
    minimal: bool = False
    derivative: bool = False

    def supports(self, ball: str) -> bool:
        """Whether the attack has a meaning in a ball."""
        return not self.balls or any(ball.startswith(part) or ball.endswith(part) for part in self.balls)


JUDGES = {
    "pgd, 10 restarts": Entrant(attacks.pgd, dict(steps=50, restarts=10, early_stop=True)),
    "pgd on the margin, 10 restarts": Entrant(attacks.pgd, dict(steps=50, restarts=10, loss="margin", early_stop=True)),
    "pgd along the derivative, 10 restarts": Entrant(
        attacks.pgd, dict(steps=50, restarts=10, early_stop=True), ("flow",), derivative=True
    ),
}
ENTRANTS = {
    "fgsm": Entrant(attacks.fgsm),
    "pgd": Entrant(attacks.pgd, dict(steps=100, early_stop=True)),
    "apgd": Entrant(attacks.apgd, dict(steps=100, early_stop=True)),
    "apgd_dlr": Entrant(attacks.apgd_dlr, dict(steps=100, early_stop=True)),
    "apgd_targeted": Entrant(attacks.apgd_targeted, dict(steps=100, candidates=9)),
    "fab": Entrant(attacks.fab, dict(steps=100, candidates=9), minimal=True),
    "fab_targeted": Entrant(attacks.fab_targeted, dict(steps=100, candidates=9), minimal=True),
    "deepfool": Entrant(attacks.deepfool, dict(steps=50), minimal=True),
    "ddn": Entrant(attacks.ddn, dict(steps=100), ("/l2",), minimal=True),
    "carlini_wagner": Entrant(attacks.carlini_wagner, dict(steps=100, binary_search_steps=9), ("/l2",), minimal=True),
    "ead": Entrant(attacks.ead, dict(steps=100, binary_search_steps=9), ("/l1",), minimal=True),
    "fmn": Entrant(attacks.fmn, dict(steps=100), minimal=True),
    "stadv": Entrant(attacks.stadv, dict(steps=100), ("flow",), minimal=True),
    "adef": Entrant(attacks.adef, dict(steps=50), ("flow",), minimal=True),
    "square": Entrant(attacks.square, dict(queries=500)),
    "random_search": Entrant(attacks.random_search, dict(samples=300)),
    "grid": Entrant(attacks.grid, dict(points=(15, 5, 5)), ("affine",)),
} | JUDGES  # fmt: skip


class Case(NamedTuple):
    """A model with its images, labels and ball; ``at(radius)`` is the threat model."""

    model: Any
    images: np.ndarray
    labels: np.ndarray
    ball: str
    key: Any

    def at(self, radius: float, derivative: bool = False) -> ThreatModel:
        """The ball of a radius."""
        space, norm = self.ball.split("/")
        scale = jax.tree.map(lambda unit: float(unit * radius), UNITS[space])
        return ThreatModel(DERIVATIVE if derivative else space, norm, scale)

    def sizes(self, entrant: Entrant, radius: float) -> np.ndarray:
        """The size of each image's δ in the units of the radius; infinite where the image is not broken."""
        threat = self.at(radius, entrant.derivative)
        found = entrant.attack(self.model, self.images, self.labels, threat, key=self.key, **entrant.options)
        size = np.asarray(threat_models.size(threat, found.delta))
        wrong = np.asarray(losses.misclassified(self.model(found.images), jnp.asarray(self.labels)))
        return np.where(wrong & (size <= 1.001), radius * size, np.inf)


def radii_for(case: Case) -> list[float]:
    """Where FAB and PGD of 20 steps together leave the shares of `LEFT`."""
    space, norm = case.ball.split("/")
    threat = case.at(1.0)
    corner = jax.tree.map(lambda zero: jnp.ones_like(zero[:1]), threat.perturbation.zeros(jnp.asarray(case.images)))
    whole = 1.0 if space == "additive" else max(case.images.shape[1:3]) / 2
    whole *= float(threat_models.size(ThreatModel(space, norm, 1.0), corner)[0])
    sizes = np.minimum(case.sizes(Entrant(attacks.fab, dict(steps=50)), whole), whole)
    short = Entrant(attacks.pgd, dict(steps=20, early_stop=True))

    def broken(radius: float) -> np.ndarray:
        return np.isfinite(case.sizes(short, radius))

    largest = radius = whole  # the smallest where PGD breaks about all: FAB may break few within the largest ball
    while (share := broken(radius).mean()) > 0:
        largest, radius = radius if share > 0.95 else largest, radius / 1.5
    for tried in map(float, largest * np.geomspace(1, 0.05, 10)):
        sizes = np.minimum(sizes, np.where(broken(tried), tried, np.inf))
    return [float(f"{np.quantile(sizes, 1 - left):.3g}") for left in LEFT]


def broken_by(case: Case, entrant: Entrant, radii: list[float]) -> np.ndarray:
    """Whether each image is broken at each radius, ``[radii, images]``."""
    if entrant.minimal:
        return case.sizes(entrant, radii[-1]) <= 1.001 * np.asarray(radii)[:, None]
    return np.stack([np.isfinite(case.sizes(entrant, radius)) for radius in radii])


def figures(broken: Mapping[str, np.ndarray], radii: list[float]) -> dict[str, Any]:
    """What is left of the best of all, and of each attack what it leaves, its optimality, and how many it breaks alone.

    Where nothing is broken by any attack, none is behind another: 100%.

    Args:
      broken: ``[radii, images]`` of each attack.
      radii: increasing.
    """

    def area(rows: np.ndarray) -> float:
        return float(np.trapezoid([0.0, *rows.mean(1)], [0.0, *radii]))

    count = np.sum(list(broken.values()), 0)
    best = np.logical_or.accumulate(count > 0)
    breakable = area(best)
    each = {
        name: {
            "left": [round(100 * (1 - float(row.mean())), 1) for row in rows],
            "optimality": round(100 * area(rows) / breakable, 1) if breakable else 100.0,
            "alone": int((rows & (count == 1)).any(0).sum()),
        }
        for name, rows in broken.items()
    }
    return {"best": [round(100 * (1 - float(row.mean())), 1) for row in best], "attacks": each}


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Measures what the file does not have yet."""
    path = Path(options.out)
    found, origin = kept(path, {"cases": {}}), source()
    chosen = selected(ENTRANTS, options.attacks)
    balls = options.balls or BALLS
    selected(dict.fromkeys(BALLS), balls)
    loaded = {Path(name).name: correctly_classified(Path(name), options.images) for name in options.workdirs}
    for ball, (name, (run, model, images, labels)) in product(balls, loaded.items()):
        case = Case(model, images, labels, ball, jax.random.key(options.seed))
        entry = found["cases"].setdefault(f"{name}/{ball}", {})
        refuse_others(entry, {"images": len(images), "seed": options.seed}, f"{path}: {name}/{ball}")
        for attack, rows, seconds in _measured(case, entry, chosen, options.again):
            entry["broken"][attack], entry["seconds"][attack] = [packed(row) for row in rows], seconds
            known = {k: np.stack([unpacked(row, len(images)) for row in b]) for k, b in entry["broken"].items()}
            entry |= figures(known, entry["radii"]) | {"seed": options.seed, "dataset": run.config.data.name}
            print(f"{name}/{ball} {attack}: {entry['attacks'][attack]} ({seconds} s)", flush=True)
            entry |= also(entry, origin)
            found["settings"] = {key: settings(entrant) for key, entrant in ENTRANTS.items()}
            keep(path, found)


def settings(entrant: Entrant) -> dict[str, Any]:
    """The options of an attack, and in how many balls it runs."""
    return dict(entrant.options) | {"runs": "once, in the largest ball" if entrant.minimal else "at every radius"}


def _measured(
    case: Case, entry: dict[str, Any], chosen: Mapping[str, Entrant], again: list[str]
) -> Iterator[tuple[str, np.ndarray, float]]:
    """What the attacks that are missing in the entry break, and their seconds, compilation included."""
    if "radii" not in entry:
        space = case.ball.split("/")[0]
        entry |= {"radii": radii_for(case), "unit": UNITS[space], "images": len(case.images), "broken": {}}
        entry["seconds"] = {}
    for name, entrant in chosen.items():
        if entrant.supports(case.ball) and (name not in entry["broken"] or name in again):
            start = time.perf_counter()
            rows = broken_by(case, entrant, entry["radii"])
            yield name, rows, round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    cli.run(main)
