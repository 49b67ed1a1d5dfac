"""Evaluates trained work directories: what `eval.py` runs.

`evaluate(["/tmp/standard", "/tmp/fgr"])` restores each model, attacks it, prints one table, and
leaves

    DIR/evaluation.json        every number with its interval, settings, versions and warnings
    DIR/per_example.npz        what each attack did to each example
    DIR/adversarial_NAME.png   examples of each attack
    FIRST/robustness_NAME.png  robust accuracy against radius, all folders together
    FIRST/trade_off.png        robust against clean accuracy, where the folders differ in one key

An evaluation that was killed goes on after the last attack that finished, if nothing that its numbers depend on has
changed. The measuring itself is `robust_jax.robustness`, which needs no work directory.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from robust_jax import augment, data, experiment, losses, masking, models, parallel, reporting, resuming
from robust_jax.attacks import ATTACKS
from robust_jax.attacks.costs import cost
from robust_jax.checks import check_options, choose
from robust_jax.config import SPLITS, check_attack, number
from robust_jax.records import Attack, Source
from robust_jax.robustness import robustness
from robust_jax.summary import summarise


def evaluate(
    workdirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    attacks: Mapping[str, Attack | Mapping[str, Any]] | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    checkpoint: str | None = None,
    seed: int | None = None,
    data_dir: str | None = None,
    worst_case_only: bool | None = None,
    checks: int | None = None,
    pictures: int | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Clean and attacked accuracy of trained work directories, on screen and in their folders.

    Args:
      workdirs: one, or several to compare.
      attacks: NAME -> `Attack`, or its form in a config: `dict(kind="pgd", perturbation="flow",
        norm="linf", radius=0.155, curve=(0, 0.5, 1, 2), steps=20, ...)`, see `attack_from`.
        Default: those of each workdir's own config.
      split: "test", "validation" or "train"; this and the next three are by default those of each workdir's
        ``config.evaluation``.
      limit: only the first so many examples; 0: all.
      batch_size: examples at a time, over all local devices, fewer where memory runs out. The numbers do not depend on
        it.
      checkpoint: "best" (on validation) or "latest".
      seed: of the attacks; default: the config's.
      data_dir: of prepared datasets; default: the config's.
      worst_case_only: whether an attack sees only what those before it have not broken, and no curves are drawn;
        default: the config's. Its accuracy is then under all of them so far; ``seen`` and ``after`` say so.
      checks: so many images are tried further for signs of masked gradients, see
        `robust_jax.masking.probe`; 0: none. Default: the config's.
      pictures: so many examples of each attack are drawn, at most 10; 0: none. Default: the config's.
      progress: whether to show a bar, if this is a terminal.

    Returns:
      Workdir -> what its `evaluation.json` holds.

    Raises:
      ValueError: no workdir, one without config or checkpoint, an unknown split or attack.
    """
    folders = [Path(w) for w in ([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs)]
    if not folders:
        raise ValueError("evaluate got no workdir: give at least one folder that train.py wrote")
    choose("split", split or "test", SPLITS)
    if min(limit or 0, checks or 0, pictures or 0) < 0 or (batch_size is not None and batch_size < 1):
        values = f"limit={limit}, checks={checks}, pictures={pictures}, batch_size={batch_size}"
        raise ValueError(f"{values}: at least 0 (all), 0 (none), 0 (none) and 1.")
    given = {"split": split, "limit": limit, "batch_size": batch_size}
    given |= {"worst_case_only": worst_case_only, "checks": checks, "pictures": pictures}
    reports: dict[str, dict[str, Any]] = {}
    configs = []
    for folder in folders:
        config, model, variables, dataset, step = experiment.restore(folder, checkpoint, data_dir)
        configs.append(config)
        settings = dict(config.evaluation) | {name: v for name, v in given.items() if v is not None}
        chosen = {
            name: spec if isinstance(spec, Attack) else attack_from(name, spec, data_dir)
            for name, spec in (config.attacks if attacks is None else attacks).items()
        }
        source = getattr(dataset, settings["split"])
        n = min(settings["limit"] or len(source), len(source))
        seed_here = int(config.seed if seed is None else seed)
        precision = config.get("precision", "float32")
        runs = 1 + sum(1 if settings["worst_case_only"] else len(attack.multiples()) for attack in chosen.values())
        shown = progress and sys.stderr.isatty()
        with (
            jax.default_matmul_precision(precision),
            tqdm(total=n * runs, desc=folder.name, unit="image", disable=not shown) as bar,
        ):
            logits_fn, key = parallel.everywhere(models.bind(model, variables)), jax.random.key(seed_here)
            cut = partial(Batches, source, resize=config.data.get("eval_resize", 0))
            in_turn = settings["worst_case_only"]
            rest = [config.data.to_dict(), config.model.to_dict(), step, settings["split"], n, seed_here, precision]
            prints = resuming.fingerprints(chosen, variables, [*rest, versions()], in_turn)
            measured = robustness(
                logits_fn, cut(n, settings["batch_size"]), chosen, key=key, place=parallel.spread,
                worst_case_only=in_turn, progress=partial(_tick, bar), finished=resuming.load(folder, chosen, prints),
                keep=resuming.saver(folder, prints if parallel.host()[0] == 0 else {}),
            )  # fmt: skip
            summary = summarise(measured)
            if checked := min(settings["checks"], n):
                bar.set_postfix_str("checks for masked gradients")
                (few,) = cut(checked, checked)
                images, labels = (jnp.asarray(np.asarray(few[name])[:checked]) for name in ("image", "label"))
                summary["warnings"] += masking.probe(logits_fn, images, labels, measured, key=key)
        for name, attack in chosen.items():
            told = {"image_shape": source.image_shape, "classes": dataset.num_classes, "threat": attack.threat}
            if found := cost(attack.function, attack.settings, **told):
                summary["attacks"][name]["cost"] = found._asdict()  # of an image, at one radius, at most
        reports[str(folder)] = report = summary | {
            "checks": checked,
            "split": settings["split"],
            "checkpoint_step": int(step),
            "batch_norm": "eval" if "batch_stats" in variables else "none",
            "precision": precision,
            "versions": versions(),
            "seed": seed_here,
        }
        if parallel.host()[0] == 0:
            reporting.write(folder, report, measured, settings["pictures"])
    if parallel.host()[0] == 0:
        for folder in folders:
            resuming.clear(folder)
        reporting.draw_curves(reports)
        if sweep := experiment.swept(configs):
            reporting.draw_trade_off(reports, *sweep)
        reporting.show(reports)
    return reports


def attack_from(name: str, spec: Mapping[str, Any], data_dir: str | None = None) -> Attack:
    """An `Attack` from its form in a config: kind, perturbation, norm, radius, curve, source, and options.

    ``source`` is the workdir of another model, whose best checkpoint is attacked instead of the model evaluated, which
    then sees these images: a transfer attack. ``data_dir``: where its dataset is prepared, if not where it says.

    Raises:
      ValueError: an unknown kind, loss or option, no radius, or a source that is no workdir; valid choices are listed.
    """
    spec = {k: number(tuple(v) if isinstance(v, list) else v) for k, v in spec.items()}
    check_options(f"attacks.{name}", spec, ATTACKS, ("perturbation", "norm", "radius", "curve", "source"))
    if missing := sorted({"perturbation", "radius"} - set(spec)):
        raise ValueError(f"attacks.{name} lacks {missing}")
    threat = check_attack(f"attacks.{name}", spec)
    function = ATTACKS[spec["kind"]]
    spec = {k: v for k, v in spec.items() if k not in ("kind", "perturbation", "norm", "radius")}
    curve, workdir = spec.pop("curve", ()), spec.pop("source", "")
    if isinstance(spec.get("loss"), str):
        spec["loss"] = losses.get(spec["loss"])
    source = None
    if workdir:
        _, model, variables, _, _ = experiment.restore(Path(workdir), "best", data_dir)
        source = Source(str(workdir), parallel.everywhere(models.bind(model, variables)))
    return Attack(function, threat, spec, curve, source)


def versions() -> dict[str, str]:
    """What computed the numbers: packages, Python and the device."""
    found = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    for package in ("robust_jax", "jax", "jaxlib", "flax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclasses.dataclass(frozen=True)
class Batches:
    """The first n examples as floats, as often as wanted, in equally large batches so that little is padding.

    Attributes:
      source: the examples.
      n: so many.
      batch_size: at most so many at a time.
      resize: the images are resized to that and centre-cropped; 0: not.
    """

    source: data.Source
    n: int
    batch_size: int
    resize: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the first."""
        size = -(-self.n // -(-self.n // self.batch_size))
        size += -size % 8  # splits over the devices of any usual host
        for batch in data.eval_batches(self.source, size, limit=self.n):
            images = data.to_float(jnp.asarray(batch["image"]))
            yield batch | {"image": augment.resize_and_center_crop(images, self.resize) if self.resize else images}


def _tick(bar: tqdm, name: str, robust: int, examples: int) -> None:
    bar.set_postfix_str(f"{name}: {robust}/{examples} right in this batch", refresh=False)
    bar.update(examples)
