"""AutoAttack beside its authors' code: each of its attacks alone and all together, on networks with equal weights.

python benchmarks/parity.py --workdirs=DIR,DIR:norm=l1:radius=10 [--images=200] [--seeds=0] [--attacks=square]

A column is a finished run of one of the networks of torch_models.py, with a norm and a radius (linf, 0.3). The images
are the first correctly classified ones of the test split. Each attack gets all of them, with the options that the
standard version of AutoAttack gives it for the norm; `union` is what no attack breaks. Figures are robust accuracies in
per cent, judged by the model in JAX; an image outside the ball counts as robust. With --out they are written to a JSON
file, to which further runs add.
Needs torch and the authors' code as it is packaged by `pip install pyautoattack==0.2.0`, a fork of fra31/auto-attack
that differs in its interface.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from pyautoattack import AutoAttack

from robust_jax import cli, parallel
from robust_jax.attacks.auto import parts
from robust_jax.files import write_atomically
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

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")  # in the order of `auto.parts`
Attack = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # images [B, H, W, C], labels, seed to attacked images


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Runs all, prints a row for each column, attack and library."""
    chosen = selected(dict.fromkeys(NAMES), options.attacks)
    for column in options.workdirs:
        workdir, *given = column.split(":")
        settings = dict(norm="linf", radius="0.3") | dict(part.split("=") for part in given)
        threat = ThreatModel("additive", settings["norm"], float(settings["radius"]))
        run, bound, images, labels = correctly_classified(Path(workdir), options.images)
        network = converted(run.config.model.name, run.model, run.variables, run.dataset.image_shape).eval()
        made = {
            "authors": authors(network, threat, options.steps, options.queries),
            "robust_jax": ours(bound, threat, options.steps, options.queries),
        }
        logits_fn = jax.jit(lambda x, bound=bound: bound(x))
        found: dict[str, Any] = {}
        for library in options.libraries:
            found[library] = {}
            for seed in map(int, options.seeds):
                left = np.ones(len(images), bool)
                for name in chosen:
                    start = time.perf_counter()
                    adversarial = made[library][name](images, labels, seed)
                    seconds = time.perf_counter() - start
                    robust = stands(logits_fn, adversarial, images, labels, threat)
                    left &= robust
                    _enter(found[library], name, robust, seconds)
                    print(f"{column} {library} seed {seed} {name}: {100 * robust.mean():.1f} ({seconds:.0f} s)",
                          flush=True)  # fmt: skip
                if len(chosen) == len(NAMES):
                    _enter(found[library], "union", left, None)
                    print(f"{column} {library} seed {seed} union: {100 * left.mean():.1f}", flush=True)
        if options.out:
            _write(Path(options.out), Path(workdir).name, settings, len(images), options, found)


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


def _enter(found: dict[str, Any], name: str, robust: np.ndarray, seconds: float | None) -> None:
    entry = found.setdefault(name, {"robust accuracy": []} | ({} if seconds is None else {"seconds": []}))
    entry["robust accuracy"].append(round(100 * float(robust.mean()), 1))
    if seconds is not None:
        entry["seconds"].append(round(seconds, 1))


def _write(out: Path, name: str, settings: dict[str, str], count: int, options: flags.FlagValues, found: Any) -> None:
    table = json.loads(out.read_text()) if out.exists() else {"columns": {}}
    libraries = ("jax", "flax", "torch", "pyautoattack", "numpy")
    table["versions"] = {"python": platform.python_version()} | {name: _version(name) for name in libraries}
    table["hardware"] = {"device": parallel.device_kind(), "machine": platform.machine()}
    column = table["columns"].setdefault(f"{name} {settings['norm']} {settings['radius']}", {})
    column |= {"images": count, "steps": options.steps, "queries": options.queries, "seeds": options.seeds}
    for library, rows in found.items():
        column.setdefault(library, {}).update(rows)
    write_atomically(out, (json.dumps(table, indent=1) + "\n").encode())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    cli.run(main)
