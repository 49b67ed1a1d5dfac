"""AutoAttack beside its authors' code: each of its attacks alone and all together, on networks with equal weights.

python benchmarks/parity.py --workdirs=DIR,DIR:norm=l1:radius=10 [--images=200] [--out=docs/results/parity.json]

A row is a finished run of one of the networks of torch_models.py, with a norm and a radius (linf, 0.3). The images
are the first correctly classified ones of the test split. Each attack gets all of them, with the options that the
standard version of AutoAttack gives it for the norm; `union` is what no attack breaks. Figures are robust accuracies,
judged by the model in JAX; an image outside the ball counts as robust. With --out each is written to a JSON file once
it is known, with the images that withstand (a bit each, in hexadecimal) and the seconds of all cores that it took
without compilation; what the file has is not measured again. OMP_NUM_THREADS=1 keeps idle threads out of the seconds.
Needs torch and the authors' code as it is packaged by `pip install pyautoattack==0.2.0`, a fork of fra31/auto-attack
that differs in its interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from pyautoattack import AutoAttack

from origin import also, keep, kept, packed, refuse_others, source, unpacked
from robust_jax import cli
from robust_jax.attacks.auto import parts
from robust_jax.spaces.threat_models import ThreatModel
from runs import correctly_classified, selected
from torch_models import converted, tensors

flags.DEFINE_list("workdirs", None, "Finished runs, each with :norm= and :radius=.", required=True)
flags.DEFINE_integer("images", 200, "Correctly classified test images.")
flags.DEFINE_integer("queries", 1000, "Of Square.")
flags.DEFINE_integer("steps", 100, "Of APGD and FAB.")
flags.DEFINE_list("seeds", ["0"], "Of the attacks.")
flags.DEFINE_list("attacks", None, "Some of apgd-ce, apgd-t, fab-t and square; all unless given.")
flags.DEFINE_list("libraries", ["authors", "robust_jax"], "Whose attacks.")
flags.DEFINE_string("out", "", "A JSON file for the figures.")

BATCH = 200  # more at once are slower in both libraries, by half at 1,000
NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")  # in the order of `auto.parts`
Attack = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # images [B, H, W, C], labels, seed to attacked images


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Runs all, prints a line for each row, library, seed and attack."""
    chosen = selected(dict.fromkeys(NAMES), options.attacks)
    out, origin = Path(options.out) if options.out else None, source("pyautoattack", "torch")
    for given in options.workdirs:
        workdir, *parts = given.split(":")
        ball = {"norm": "linf", "radius": "0.3"} | dict(part.split("=") for part in parts)
        threat = ThreatModel("additive", ball["norm"], float(ball["radius"]))
        run, bound, images, labels = correctly_classified(Path(workdir), options.images)
        network = converted(run.config.model.name, run.model, run.variables, run.dataset.image_shape).eval()
        made = {
            "authors": authors(network, threat, options.steps, options.queries),
            "robust_jax": ours(bound, threat, options.steps, options.queries),
        }
        logits_fn = jax.jit(lambda x, bound=bound: bound(x))
        row = f"{Path(workdir).name}, {ball['norm']} {ball['radius']}"
        table = kept(out, {"parity": {}})
        found = table["parity"].setdefault(row, {})
        settings = {"images": len(images), "steps": options.steps, "queries": options.queries}
        refuse_others(found, settings, f"{out}: {row}")
        found |= settings
        for library, seed, name in product(options.libraries, options.seeds, chosen):
            seeds = found.setdefault(library, {}).setdefault(name, {})
            if seed not in seeds:
                attack = made[library][name]
                attack(images[:BATCH], (labels[:BATCH] + 1) % 10, int(seed))  # compiles: all are misclassified
                start = time.process_time()
                adversarial = in_batches(attack, images, labels, int(seed))
                seconds = time.process_time() - start
                seeds[seed] = _entry(stands(logits_fn, adversarial, images, labels, threat))
                seeds[seed]["cpu seconds"] = round(seconds, 1)
                _unite(found[library], seed, len(images))
                found |= also(found, origin)
                if out:
                    keep(out, table)
            print(f"{row} {library} seed {seed} {name}: {100 * seeds[seed]['robust accuracy']:.1f}", flush=True)


def in_batches(attack: Attack, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The attacked images; each batch has a seed of its own, the first one this seed."""
    starts = range(0, len(images), BATCH)
    parts = [attack(images[i : i + BATCH], labels[i : i + BATCH], seed + 1000 * i) for i in starts]
    return np.concatenate(parts)


def authors(network: torch.nn.Module, threat: ThreatModel, steps: int, queries: int) -> dict[str, Attack]:
    """The four attacks of the authors' standard version."""

    def run(name: str, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        whole = AutoAttack(network, eps=threat.radius, norm=names[threat.norm], seed=seed, version="standard")
        whole.attacks_to_run = [name]
        for part in (whole.apgd, whole.apgd_targeted):
            part.n_iter = part.n_iter_orig = steps
        whole.fab.n_iter, whole.square.n_queries = steps, queries
        x, y = tensors(images, labels)
        attack = {"apgd-ce": whole.apgd, "apgd-t": whole.apgd_targeted, "fab-t": whole.fab, "square": whole.square}
        whole.apgd.loss, whole.fab.targeted = "ce", True
        attack[name].seed = seed
        found = attack[name].perturb(x, y)
        return found.detach().numpy().transpose(0, 2, 3, 1)

    return {name: lambda *given, name=name: run(name, *given) for name in NAMES}


def ours(model: Any, threat: ThreatModel, steps: int, queries: int) -> dict[str, Attack]:
    """The four attacks of `auto_attack`."""

    def run(attack: Any, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
        found = attack(model, jnp.asarray(images), jnp.asarray(labels), threat, key=jax.random.key(seed))
        return np.asarray(found.images)

    attacks = parts("standard", threat, 10, steps, queries)
    return {name: lambda *given, a=a: run(a, *given) for name, a in zip(NAMES, attacks, strict=True)}


def stands(logits_fn: Any, adversarial: np.ndarray, images: np.ndarray, labels: np.ndarray, threat: ThreatModel):
    """Which images are still classified correctly, or were moved out of the ball or the box."""
    delta = (adversarial - images).reshape(len(images), -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[threat.norm], axis=1)
    wrong = np.asarray(logits_fn(np.clip(adversarial, 0, 1))).argmax(-1) != labels
    return ~(wrong & (size <= 1.001 * threat.radius))


def _entry(robust: np.ndarray) -> dict[str, Any]:
    return {"robust accuracy": round(float(robust.mean()), 4), "withstand": packed(robust)}


def _unite(found: dict[str, Any], seed: str, count: int) -> None:
    """Enters what no attack breaks, once all have been run."""
    if all(seed in found.get(name, {}) for name in NAMES):
        robust = np.all([unpacked(found[name][seed]["withstand"], count) for name in NAMES], 0)
        found.setdefault("union", {})[seed] = _entry(robust)


if __name__ == "__main__":
    cli.run(main)
