"""Smallest perturbations beside other libraries, on one network with equal weights, at an equal number of gradients.

python benchmarks/minimal_norm.py --workdirs=DIR,DIR [--images=200] [--gradients=100,1000] [--norms=l2] [--attacks=ddn]

A DIR is a finished run of one of the networks of torch_models.py. The images are the first correctly classified ones of
the test split. Each attack gets the number of gradients per image in --gradients, as far as its options allow; those
that it took are counted, of ours the largest number. Figures are the median norm, where a failure is infinite, and the
per cent of images that are misclassified, all judged by the model in JAX; l0 counts changed pixels. Attacks of
adversarial-library begin with "peer". With --out figures are written to a JSON file, to which further runs add.
Needs torch and adversarial-library, the latter without what it only draws with, on Python 3.11:
pip install torch torchvision tqdm && pip install --no-deps adv-lib==0.2.8.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags

from origin import also, keep, kept, source
from robust_jax import attacks, cli
from robust_jax.attacks.define import Problem, cost_of
from robust_jax.extensions import choose
from robust_jax.spaces.threat_models import ThreatModel
from runs import correctly_classified
from torch_models import converted, tensors

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # with which adversarial-library only draws

from adv_lib import attacks as peers  # noqa: E402

flags.DEFINE_list("workdirs", None, "Finished runs.", required=True)
flags.DEFINE_integer("images", 200, "Correctly classified test images.")
flags.DEFINE_list("gradients", ["100", "1000"], "Numbers of gradients per image.")
flags.DEFINE_list("norms", ["l0", "l1", "l2", "linf"], "Some of l0, l1, l2 and linf.")
flags.DEFINE_list("attacks", None, "Some attacks by their names in the table; all unless given.")
flags.DEFINE_string("out", "", "A JSON file for the figures.")

P = {"l0": 0, "l1": 1, "l2": 2, "linf": float("inf")}
CLASSES = 10
Attack = Callable[..., Any]


def ours(norm: str, gradients: int) -> dict[str, tuple[Attack, dict[str, Any]]]:
    """Our attacks with the options that lead to this number of gradients."""
    others = CLASSES - 1
    per_class = max(gradients // others, 1)
    few = 3 if gradients < 300 else 9  # constants of the searches by penalties
    search = dict(steps=(gradients - others) // few, binary_search_steps=few)
    found = {
        "l0": {"sigma_zero": dict(steps=gradients), "jsma": dict(max_pixels=min(gradients, 784)), "pointwise": {}},
        "l1": {"ead": search},
        "l2": {"ddn": dict(steps=gradients - others), "carlini_wagner": search},
        "linf": {},
    }[norm]
    if norm != "l0":
        found |= {"fmn": dict(steps=gradients - others)}
        found |= {name: dict(steps=per_class) for name in ("deepfool", "fab", "fab_targeted")}
    return {name: (getattr(attacks, name), options) for name, options in found.items()}


def theirs(norm: str, gradients: int) -> dict[str, Attack]:
    """The attacks of adversarial-library, with its own defaults but for the number of steps."""
    found: dict[str, Attack] = {"fmn": partial(peers.fmn, norm=P[norm], steps=gradients)}
    if norm == "l0":
        found["sigma_zero"] = partial(peers.sigma_zero, num_steps=gradients)
        found["vfga"] = partial(peers.vfga, targeted=False, max_iter=gradients)
    if norm in ("l1", "l2"):
        found["alma"] = partial(
            peers.alma, distance=norm, num_steps=gradients, init_lr_distance={"l1": 0.5, "l2": 0.1}[norm]
        )
    if norm == "l2":
        found["ddn"] = partial(peers.ddn, steps=gradients, levels=None)
        found["sdf"] = partial(peers.sdf, steps=max(gradients // 30, 1))
    return found


class Counted(torch.nn.Module):
    """A network that counts the images whose gradient was taken."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.gradients = network, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits = self.network(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: torch.Tensor) -> None:
        self.gradients += len(gradient)


def on_torch(attack: Attack, network: Counted, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """A peer's images, and the gradients that it took per image."""
    network.gradients = 0
    torch.manual_seed(0)
    found = (
        attack(network, *tensors(images, labels)).detach().reshape(len(images), *images.shape[3:], *images.shape[1:3])
    )
    return found.numpy().transpose(0, 2, 3, 1), network.gradients / len(images)


def on_jax(
    attack: Attack, options: dict[str, Any], norm: str, model: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """Our images, and the largest number of gradients."""
    radius = {"l0": 1.0, "l1": float(images[0].size), "l2": images[0].size ** 0.5, "linf": 1.0}[norm]
    threat = ThreatModel("additive", "linf" if norm == "l0" else norm, radius)
    found = attack(model, jnp.asarray(images), jnp.asarray(labels), threat, key=jax.random.key(0), **options)
    return np.asarray(found.images), cost_of(attack, options, Problem(images.shape[1:], CLASSES, threat)).gradients


def measured(
    norm: str, logits_fn: Any, adversarial: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Median norm and success rate."""
    adversarial = np.clip(adversarial, 0, 1)
    delta = (adversarial - images).reshape(len(images), -1)
    size = np.linalg.norm(np.where(np.abs(delta) > 1e-6, delta, 0), P[norm], axis=1)
    wrong = np.asarray(logits_fn(adversarial)).argmax(-1) != labels
    median = float(np.median(np.where(wrong, size, np.inf)))
    return {"median norm": round(median, 5) if np.isfinite(median) else None,
            "success": round(100 * float(wrong.mean()), 1)}  # fmt: skip


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Runs all, prints a line for each."""
    origin = source("adv-lib", "torch")
    for norm in options.norms:
        choose("norms", norm, P)
    for workdir in map(Path, options.workdirs):
        run, bound, images, labels = correctly_classified(workdir, options.images)
        network = Counted(converted(run.config.model.name, run.model, run.variables, run.dataset.image_shape).eval())
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        logits_fn = jax.jit(lambda x, bound=bound: bound(x))
        for norm in options.norms:
            for gradients in map(int, options.gradients):
                runs: dict[str, Callable[[], tuple[np.ndarray, float]]] = {}
                for name, (attack, settings) in ours(norm, gradients).items():
                    runs[name] = partial(on_jax, attack, settings, norm, bound, images, labels)
                for name, attack in theirs(norm, gradients).items():
                    runs[f"peer {name}"] = partial(on_torch, attack, network, images, labels)
                chosen = {name: one for name, one in runs.items() if not options.attacks or name in options.attacks}
                for name, one in chosen.items():
                    start = time.perf_counter()
                    adversarial, taken = one()
                    found = measured(norm, logits_fn, adversarial, images, labels)
                    found |= {"gradients": round(taken, 1), "images": len(images)}
                    found["seconds"] = round(time.perf_counter() - start, 1)
                    print(f"{workdir.name} {norm} {gradients} {name}: {found}", flush=True)
                    if options.out:
                        _write(Path(options.out), origin, f"{workdir.name} {norm}", name, gradients, found)


def _write(out: Path, origin: dict[str, Any], table: str, name: str, gradients: int, found: dict[str, Any]) -> None:
    page = kept(out, {"smallest": {}})
    page |= also(page, origin) | {"seed": 0}
    page["smallest"].setdefault(table, {}).setdefault(name, {})[str(gradients)] = found
    keep(out, page)


if __name__ == "__main__":
    cli.run(main)
