"""How far deformations must go to fool trained models, and pictures of them.

python benchmarks/deformations.py --workdir=runs/standard,runs/fgr [--images=200] [--attacks=stadv,adef]

On the first correctly classified test images: the percentage that each attack fools, and for these images the median of
the longest displacement and of the root mean square displacement, in pixels. `stadv` and `adef` seek a small flow and
have the whole image as their ball; the others search the ball named in the row. Ten images per attack are drawn into
the workdir, as deformation_NAME.png.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from robust_jax import attacks, cli
from robust_jax.evaluation import pictures
from robust_jax.spaces.threat_models import ThreatModel
from runs import correctly_classified, selected

flags.DEFINE_list("workdir", None, "Finished runs.", required=True)
flags.DEFINE_integer("images", 200, "Per run.")
flags.DEFINE_list("attacks", None, "Some of the table's rows; all unless given.")
flags.DEFINE_float("radius", 0.5, "Of the flow balls, in pixels.")


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
    for workdir in map(Path, options.workdir):
        _, bound, images, labels = correctly_classified(workdir, options.images)
        print(
            f"\n{workdir.name}, {len(images)} images\n\n| attack | ball | fooled | longest, px | root mean square, px |"
        )
        print("|---" * 5 + "|", flush=True)
        for name, (attack, threat) in selected(rows(images.shape[1], options.radius), options.attacks).items():
            found = jax.jit(attack)(bound, images, labels, threat, key=jax.random.key(0))
            success = np.asarray(found.success)
            ball = "" if name in ("stadv", "adef") else f"{threat.perturbation.name} {threat.radius}"
            cells = [name, ball, f"{100 * success.mean():.1f}"]
            if threat.perturbation.name == "flow" and success.any():
                length = np.linalg.norm(np.asarray(found.delta)[success], axis=-1)
                means = np.sqrt((length**2).mean((1, 2)))
                cells += [f"{np.median(length.max((1, 2))):.2f}", f"{np.median(means):.2f}"]
            print(f"| {' | '.join(cells + [''] * (5 - len(cells)))} |", flush=True)
            few = np.flatnonzero(success)[:10]
            if len(few):
                drawn = jax.tree.map(lambda v, few=few: np.asarray(v)[few], (images, found.images, found.delta, labels))
                predicted = [np.asarray(jnp.argmax(bound(x), -1)) for x in drawn[:2]]
                path = workdir / f"deformation_{name}.png"
                pictures.adversarial_grid(*drawn, *predicted, path=path, title=f"{name} {ball}")


if __name__ == "__main__":
    cli.run(main)
