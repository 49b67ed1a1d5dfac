"""How far deformations must go to fool trained models, and pictures of them.

python benchmarks/deformations.py --workdirs=runs/standard,runs/fgr [--images=200] [--attacks=stadv,adef]

On test images that all runs classify correctly: the percentage that each attack fools, and for these images the median
of the longest displacement and of the root mean square displacement, in pixels. `stadv` and `adef` seek a small flow
and have the whole image as their ball; the others search the ball named in the row. Ten images per row are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from measurements import report
from origin import source
from robust_jax import attacks, cli
from robust_jax.evaluation import pictures
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.workdir import runs
from runs import classified_by_all, selected

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_integer("images", 200, "The first test images; those that all runs classify correctly are taken.")
flags.DEFINE_list("attacks", None, "Some of the table's rows; all unless given.")
flags.DEFINE_float("radius", 0.5, "Of the flow balls, in pixels.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")
flags.DEFINE_string("pictures", "runs/deformations", "A folder for the pictures.")


def rows(size: int, radius: float) -> dict[str, tuple[Callable[..., attacks.AttackResult], ThreatModel]]:
    """The table's attacks, with their balls."""
    anywhere, ball = ThreatModel("flow", "linf", float(size)), ThreatModel("flow", "linf", radius)
    turns = ThreatModel("affine", "linf", (15.0, 1.0, 1.0))
    return {
        "stadv": (attacks.stadv, anywhere),
        "adef": (attacks.adef, anywhere),
        "pgd": (partial(attacks.pgd, steps=40, restarts=2), ball),
        "apgd": (attacks.apgd, ball),
        "square": (partial(attacks.square, queries=1000), ball),
        "grid": (partial(attacks.grid, points=(31, 7, 7)), turns),
    }


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints a row per attack and run."""
    origin, loaded = source(), {Path(workdir).name: runs.load(workdir) for workdir in options.workdirs}
    images, labels = classified_by_all(list(loaded.values()), options.images)
    measured = []
    for name, (attack, threat) in selected(rows(images.shape[1], options.radius), options.attacks).items():
        for training, run in loaded.items():
            result = jax.jit(partial(attack, run.logits_fn))(images, labels, threat, key=jax.random.key(0))
            success = np.asarray(result.success)
            row = {"attack": name, "settings": settings(attack), "training": training}
            measured.append(row | lengths(name, threat, success, result.delta))
            draw(run, images, labels, result, Path(options.pictures), f"{training}_{name}")
    title = f"{len(images)} of the first {options.images} test images, those that all classify correctly"
    report({title: measured}, options.out, origin)


def settings(attack: Callable[..., attacks.AttackResult]) -> str:
    """What a row gives to its attack."""
    given = attack.keywords if isinstance(attack, partial) else {}
    return ", ".join(f"{name}={value}" for name, value in given.items())


def draw(run: runs.Trained, images: np.ndarray, labels: np.ndarray, result: Any, folder: Path, name: str) -> None:
    """The first ten images that an attack fools, before and after."""
    few = np.flatnonzero(np.asarray(result.success))[:10]
    if not len(few):
        return
    drawn = jax.tree.map(lambda v: np.asarray(v)[few], (images, result.images, result.delta, labels))
    predicted = [np.asarray(jnp.argmax(run.logits_fn(x), -1)) for x in drawn[:2]]
    folder.mkdir(parents=True, exist_ok=True)
    pictures.adversarial_grid(*drawn, *predicted, path=folder / f"deformation_{name}.png", title=name)


def lengths(name: str, threat: ThreatModel, success: np.ndarray, delta: Any) -> dict[str, Any]:
    """The ball, the share of images that are fooled, and of flows the medians over these."""
    space = threat.perturbation.name
    radius = ", ".join(f"{entry:g}" for entry in np.ravel(threat.radius))
    row = {"ball": "" if name in ("stadv", "adef") else f"{space} {threat.norm} {radius}"}
    row |= {"fooled, %": 100 * float(success.mean())}
    if space == "flow" and success.any():
        length = np.linalg.norm(np.asarray(delta)[success], axis=-1)
        row["longest, px"] = float(np.median(length.max((1, 2))))
        row["root mean square, px"] = float(np.median(np.sqrt((length**2).mean((1, 2)))))
    return row


if __name__ == "__main__":
    cli.run(main)
