"""Attacks compared with those of foolbox (on JAX and on PyTorch) and torchattacks, on one network with equal weights.

python benchmarks/peers.py --workdir=WORKDIR [--images=256] [--attacks=pgd,ddn] [--radius=0.1] [--out=FILE.json]

WORKDIR is a finished run of one of the networks of torch_models.py, whose weights `models.to_torch` converts. The
images are the first correctly classified ones of the test split. For attacks in a ball the figures are the robust
accuracy, for minimal-norm attacks the median norm and the share of images that are misclassified, all judged by the
model in JAX; an image outside the ball counts as robust. The seconds are without compilation: each attack first runs on
one batch. With early_stop ours ends an image's search once it is misclassified; torchattacks' FAB does so after each
class, PGD and APGD of the other libraries do not.
With --out each figure is written to a JSON file once it is known; what the file has is not measured again.
Needs torch, torchattacks and foolbox: pip install -e '.[bench]'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks
from absl import flags

from origin import also, keep, kept, refuse_others, source
from robust_jax import attacks, cli, models
from robust_jax.spaces.threat_models import ThreatModel
from runs import correctly_classified, selected
from timing import timed
from torch_models import converted, tensors

LIBRARIES = ["robust_jax", "foolbox JAX", "foolbox PyTorch", "torchattacks"]

flags.DEFINE_string("workdir", None, "A finished run.", required=True)
flags.DEFINE_integer("images", 256, "Correctly classified test images.")
flags.DEFINE_integer("batch", 128, "Images at once; whole batches compile once.")
flags.DEFINE_list("attacks", None, "Some of the table's rows; all unless given.")
flags.DEFINE_list("libraries", LIBRARIES, "Some of the table's columns.")
flags.DEFINE_float("radius", 0.1, "Of the linf ball.")
flags.DEFINE_float("l2_radius", 1.5, "Of the l2 ball.")
flags.DEFINE_integer("queries", 5000, "Of Square.")
flags.DEFINE_list("search", ["100", "9"], "Of C&W and EAD: the number of steps, and of constants.")
flags.DEFINE_string("out", "", "A JSON file for the figures.")

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images [B, H, W, C] and labels to attacked images


class Row(NamedTuple):
    """One of our attacks and the peers' same attack; `radius` is None for those that seek the least norm."""

    norm: str
    radius: float | None
    ours: Callable[..., attacks.AttackResult]
    foolbox: foolbox.Attack | None = None
    torchattacks: Callable[[torch.nn.Module], torchattacks.attack.Attack] | None = None


def rows(linf: float, l2: float, queries: int, steps: int, constants: int) -> dict[str, Row]:
    """The table's rows, with options as equal as the libraries' interfaces allow."""
    fb, ta = foolbox.attacks, torchattacks
    pgd = functools.partial(attacks.pgd, steps=40, step_size=linf / 10)
    search = dict(steps=steps, binary_search_steps=constants)
    # Foolbox's C&W with its own step size of 0.01 ends at three times the distance; 0.1 is no better than 0.05.
    fb_cw = fb.L2CarliniWagnerAttack(**search, stepsize=0.05)
    fb_ead = fb.EADAttack(**search, initial_stepsize=0.05, decision_rule="L1")
    found = {
        "pgd": Row(
            "linf",
            linf,
            jax.jit(pgd),
            fb.LinfPGD(rel_stepsize=0.1, steps=40),
            lambda m: ta.PGD(m, linf, linf / 10, 40),
        ),
        "carlini_wagner": Row("l2", None, jax.jit(functools.partial(attacks.carlini_wagner, **search)), fb_cw),
        "ddn": Row("l2", None, jax.jit(attacks.ddn), fb.DDNAttack(steps=100)),
        "ead": Row("l1", None, jax.jit(functools.partial(attacks.ead, **search)), fb_ead),
        "deepfool": Row("l2", None, jax.jit(attacks.deepfool), fb.L2DeepFoolAttack(), lambda m: ta.DeepFool(m)),
        "deepfool linf": Row("linf", None, jax.jit(attacks.deepfool), fb.LinfDeepFoolAttack()),
    }
    for norm, name, radius in (("linf", "Linf", linf), ("l2", "L2", l2)):
        ball = dict(norm=name, eps=radius)
        made = {
            "apgd": (attacks.apgd, functools.partial(ta.APGD, steps=100, **ball)),
            "apgd_targeted": (attacks.apgd_targeted, functools.partial(ta.APGDT, steps=100, **ball)),
            "fab_targeted": (attacks.fab_targeted, functools.partial(ta.FAB, steps=100, multi_targeted=True, **ball)),
            "square": (
                functools.partial(attacks.square, queries=queries),
                functools.partial(ta.Square, n_queries=queries, **ball),
            ),
        }
        for attack, (ours, theirs) in made.items():
            found[f"{attack} {norm}"] = Row(norm, radius, jax.jit(ours), None, theirs)
        standard = [theirs for _, theirs in made.values()]
        standard[-1] = functools.partial(standard[-1], resc_schedule=False)  # as in AutoAttack, whose schedule ours has
        found[f"auto_attack {norm}"] = Row(
            norm, radius, jax.jit(functools.partial(attacks.auto_attack, queries=queries)), None,
            lambda m, parts=standard: ta.MultiAttack([part(m) for part in parts]),
        )  # fmt: skip
    stopping = (("pgd", pgd), ("apgd linf", attacks.apgd), ("apgd l2", attacks.apgd),
                ("fab_targeted linf", attacks.fab_targeted), ("fab_targeted l2", attacks.fab_targeted))  # fmt: skip
    for name, attack in stopping:
        found[f"{name} early_stop"] = found[name]._replace(ours=jax.jit(functools.partial(attack, early_stop=True)))
    return found


def runs(row: Row, model: models.BoundModel, network: torch.nn.Module) -> Iterator[tuple[str, Run]]:
    """The row's attack in each library."""

    def ours(images, labels):
        whole = {"linf": 1.0, "l2": images[0].size ** 0.5, "l1": float(images[0].size)}
        threat = ThreatModel("additive", row.norm, row.radius or whole[row.norm])
        return row.ours(model, jnp.asarray(images), jnp.asarray(labels), threat, key=jax.random.key(0)).images

    yield "robust_jax", ours
    if row.foolbox is not None:

        def on_jax(images, labels):
            wrapped = foolbox.JAXModel(logits_fn, bounds=(0, 1))
            return row.foolbox(wrapped, jnp.asarray(images), jnp.asarray(labels), epsilons=row.radius)[1]

        logits_fn = jax.jit(lambda x: model(x))
        yield "foolbox JAX", on_jax

        def on_torch(images, labels):
            wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
            return turned(row.foolbox(wrapped, *tensors(images, labels), epsilons=row.radius)[1])

        yield "foolbox PyTorch", on_torch
    if row.torchattacks is not None:
        yield "torchattacks", lambda images, labels: turned(row.torchattacks(network)(*tensors(images, labels)))


def turned(images: torch.Tensor) -> np.ndarray:
    """PyTorch's images as NumPy arrays [B, H, W, C]."""
    return images.detach().numpy().transpose(0, 2, 3, 1)


def measure(run: Run, row: Row, logits_fn: Run, images: np.ndarray, labels: np.ndarray, batch: int) -> dict[str, Any]:
    """Robust accuracy, or median norm and success rate, in per cent; with the seconds."""
    parts = [slice(i, i + batch) for i in range(0, len(images), batch)]
    np.asarray(run(images[parts[0]], labels[parts[0]]))  # compiles
    adversarial, seconds, _ = timed(
        lambda: np.concatenate([np.asarray(run(images[part], labels[part])) for part in parts]), repeats=0
    )
    found: dict[str, Any] = {"seconds": round(seconds, 2)}
    delta = (adversarial - images).reshape(len(images), -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[row.norm], axis=1)
    wrong = np.concatenate([np.asarray(logits_fn(adversarial[part])).argmax(-1) for part in parts]) != labels
    if row.radius is not None:
        return found | {"robust accuracy": 100 * float(1 - (wrong & (size <= 1.001 * row.radius)).mean())}
    median = float(np.median(np.where(wrong, size, np.inf)))
    found["median norm"] = float(f"{median:.5g}") if median < np.inf else None
    return found | {"success": 100 * float(wrong.mean())}


def main(options: flags.FlagValues, _: list[str]) -> None:
    """Runs all, prints a line for each."""
    steps, constants = map(int, options.search)
    torch.manual_seed(0)  # of the starts in torchattacks and foolbox
    chosen = selected(rows(options.radius, options.l2_radius, options.queries, steps, constants), options.attacks)
    out = Path(options.out) if options.out else None
    run, bound, images, labels = correctly_classified(Path(options.workdir), options.images)
    logits_fn = jax.jit(lambda x: bound(x))
    network = converted(run.config.model.name, run.model, run.variables, run.dataset.image_shape).eval()
    gap = np.abs(np.asarray(logits_fn(images)) - network(tensors(images, labels)[0]).detach().numpy()).max()
    table, origin = kept(out, {"peers": {}}), source("foolbox", "torchattacks", "torch")
    name = f"{Path(options.workdir).name}, linf {options.radius:g}, l2 {options.l2_radius:g}"
    found = table["peers"].setdefault(name, {"attacks": {}})
    settings = {
        "images": len(images), "batch": options.batch, "queries": options.queries, "steps": steps,
        "constants": constants,
    }  # fmt: skip
    refuse_others(found, settings, f"{out}: {name}")
    found |= settings | {"largest difference of logits": float(f"{gap:.1e}")}
    for attack, row in chosen.items():
        cells = found["attacks"].setdefault(attack, {})
        for library, attacked in runs(row, bound, network):
            if library in options.libraries and library not in cells:
                cells[library] = measure(attacked, row, logits_fn, images, labels, options.batch)
                found |= also(found, origin)
                if out:
                    keep(out, table)
            print(f"{name} {attack} {library}: {cells.get(library)}", flush=True)


if __name__ == "__main__":
    cli.run(main)
