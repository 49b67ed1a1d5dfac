"""How far deformations must go to fool trained models, and pictures of them.

python benchmarks/deformations.py --workdirs=runs/standard,runs/fgr [--images=200] [--attacks=stadv,adef]

On the first correctly classified test images: the percentage that each attack fools, and for these images the median of
the longest displacement and of the root mean square displacement, in pixels. `stadv` and `adef` seek a small flow and
have the whole image as their ball; the others search the ball named in the row. Ten images per attack are drawn into
the workdir, as deformation_NAME.png.
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
from runs import correctly_classified, selected

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_integer("images", 200, "Per run.")
flags.DEFINE_list("attacks", None, "Some of the table's rows; all unless given.")
flags.DEFINE_float("radius", 0.5, "Of the flow balls, in pixels.")
flags.DEFINE_string("out", "", "A JSON file for the numbers.")


def rows(size: int, radius: float) -> dict[str, tuple[Callable[..., attacks.AttackResult], ThreatModel]]:
    """The table's attacks, with their balls."""
    anywhere, ball = ThreatModel("flow", "linf", float(size)), ThreatModel("flow", "linf", radius)
    turns = ThreatModel("affine", "linf", (30.0, 3.0, 3.0))
    return {
        "stadv": (attacks.stadv, anywhere),
        "adef": (attacks.adef, anywhere),
        "pgd": (partial(attacks.pgd, steps=40, restarts=2), ball),
        "apgd": (attacks.apgd, ball),
        "square": (partial(attacks.square, queries=1000), ball),
        "grid": (partial(attacks.grid, points=(31, 7, 7)), turns),
    }


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Prints one table per workdir."""
    origin, tables = source(), {}
    for workdir in map(Path, options.workdirs):
        _, bound, images, labels = correctly_classified(workdir, options.images)
        found = tables[f"{workdir.name}, {len(images)} images"] = []
        for name, (attack, threat) in selected(rows(images.shape[1], options.radius), options.attacks).items():
            result = jax.jit(attack)(bound, images, labels, threat, key=jax.random.key(0))
            success = np.asarray(result.success)
            found.append({"training": workdir.name, "attack": name} | lengths(name, threat, success, result.delta))
            few = np.flatnonzero(success)[:10]
            if len(few):
                drawn = jax.tree.map(
                    lambda v, few=few: np.asarray(v)[few], (images, result.images, result.delta, labels)
                )
                predicted = [np.asarray(jnp.argmax(bound(x), -1)) for x in drawn[:2]]
                path = workdir / f"deformation_{name}.png"
                pictures.adversarial_grid(*drawn, *predicted, path=path, title=name)
        report(tables, options.out, origin)


def lengths(name: str, threat: ThreatModel, success: np.ndarray, delta: Any) -> dict[str, Any]:
    """The ball, the share of images that are fooled, and of flows the medians over these."""
    space = threat.perturbation.name
    row = {"ball": "" if name in ("stadv", "adef") else f"{space} {threat.norm} {threat.radius}"}
    row |= {"fooled, %": 100 * float(success.mean())}
    if space == "flow" and success.any():
        length = np.linalg.norm(np.asarray(delta)[success], axis=-1)
        row["longest, px"] = float(np.median(length.max((1, 2))))
        row["root mean square, px"] = float(np.median(np.sqrt((length**2).mean((1, 2)))))
    return row


if __name__ == "__main__":
    cli.run(main)
