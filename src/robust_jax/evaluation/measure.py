"""Measures one trained work directory, and leaves the results in one of its evaluations."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from robust_jax import models, parallel
from robust_jax.attacks.define import Problem, cost_of
from robust_jax.config.objects import NONE, Objects
from robust_jax.data.batches import Batches
from robust_jax.data.datasets import is_own
from robust_jax.data.sources import Source
from robust_jax.evaluation import masking, outcome_cache, report, stored
from robust_jax.evaluation.attack import Attack, built
from robust_jax.evaluation.batching import as_many_as_fit
from robust_jax.evaluation.from_config import attack_from
from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.robustness import robustness
from robust_jax.evaluation.settings import Settings
from robust_jax.evaluation.stored import Place
from robust_jax.evaluation.summary import summarise
from robust_jax.extensions import is_object, module_of
from robust_jax.progress import Bar
from robust_jax.workdir.folder import try_to_write
from robust_jax.workdir.runs import Trained, unfinished


def chosen_attacks(
    attacks: Mapping[str, Attack | Mapping[str, Any]],
    data_dir: str | None = None,
    trust: Sequence[str] = (),
    objects: Objects = NONE,
) -> dict[str, Attack]:
    """The attacks, those in the form of a config built, see `attack_from`.

    Raises:
      ValueError: what `robust_jax.evaluation.attack.built` and `attack_from` raise.
    """
    return built(attacks, lambda name, entry: attack_from(name, entry, data_dir, trust, objects))


class Measured(NamedTuple):
    """What was measured of a workdir.

    Attributes:
      report: the content of `evaluation.json`.
      prints: the fingerprints of the attacks, by which outcomes are kept, see `outcome_cache`.
    """

    report: dict[str, Any]
    prints: dict[str, str]


def examples(restored: Trained, settings: Settings) -> tuple[Source, int]:
    """The split that is evaluated, and the number of its examples."""
    source = getattr(restored.dataset, settings.split)
    return source, min(settings.limit or len(source), len(source))


def measure(
    workdir: Path,
    place: Place,
    restored: Trained,
    attacks: Mapping[str, Attack],
    settings: Settings,
    progress: bool = True,
    save: Path | None = None,
) -> Measured:
    """Measures one workdir and writes the files of the evaluation.

    Args:
      workdir: that is measured.
      place: where the files go.
      restored: its config, model, variables, dataset and step.
      attacks: NAME -> attack.
      settings: how to measure.
      progress: whether to show a progress bar, on a terminal or in a notebook.
      save: where the adversarial images wait until they are moved to the folder of the evaluation; None: they are not
        kept.

    Raises:
      ValueError: a folder where the results are to be written; a name that is taken by another evaluation.
      OSError: the workdir cannot be written.
    """
    if parallel.is_main():
        _prepare(place)
    source, n = examples(restored, settings)
    batches = partial(Batches, source, resize=restored.config.data.get("eval_resize", 0))
    passes = 1 + sum(1 if settings.worst_case_only else len(attack.multiples()) for attack in attacks.values())
    logits_fn = parallel.everywhere(restored.logits_fn)
    with (
        jax.default_matmul_precision(settings.precision),
        Bar(n * passes, unit="image", title=workdir.name, keep=False, wanted=progress) as bar,
    ):
        prints = _fingerprints(restored, attacks, settings, n)
        measured = robustness(
            logits_fn, batches(n, settings.batch_size), attacks, key=jax.random.key(settings.seed),
            place=parallel.spread, worst_case_only=settings.worst_case_only, progress=_Lines(bar, n, attacks),
            finished=outcome_cache.load(workdir, attacks, prints),
            keep=outcome_cache.saver(workdir, prints if parallel.is_main() else {}),
            save=save, precision=settings.precision,
        )  # fmt: skip
        if settings.checks and measured.images is not None:
            measured = dataclasses.replace(measured, images=measured.images[: settings.checks])
        summary = summarise(measured, masking.find(settings.signs))
        if checked := min(settings.checks, n):
            (few,) = batches(checked, checked)
            more, checked = _further_warnings(logits_fn, few, checked, measured, settings, bar)
            summary["warnings"] += more
    if why := unfinished(workdir, restored):
        summary["warnings"].append(f"training: {why}")
    if restored.checkpoint not in ("", settings.checkpoint):
        summary["warnings"].append(
            f"checkpoint: the {settings.checkpoint} one is damaged; this is the {restored.checkpoint} one, of step "
            f"{restored.step}"
        )
    _add_costs(summary, attacks, source.image_shape, restored.dataset.num_classes)
    summary |= {
        "checks": checked,
        "class_names": list(restored.dataset.class_names or ()),
        "split": settings.split,
        "checkpoint": restored.checkpoint or settings.checkpoint,
        "checkpoint_step": int(restored.step),
        "batch_norm": "eval" if "batch_stats" in restored.variables else "none",
        "precision": settings.precision,
        "versions": versions(),
        "seed": settings.seed,
        "identity": dict(place.identity),
    }

    def write(folder: Path, name: str) -> dict[str, Any]:
        stored.remove_pictures(folder)
        if save:
            _linked(save, folder / save.name)
        drawn = settings.pictures, workdir.name, settings.surfaces
        return report.write(folder, summary | {"name": name}, measured, *drawn)

    whole = place.keep(write) if parallel.is_main() else summary | {"name": place.names[0]}
    return Measured(whole, prints)


def _linked(path: Path, target: Path) -> None:
    """The file in another folder too; it stays where it is, since a folder may turn out to be taken."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)


def _prepare(place: Place) -> None:
    """Makes the folder of the evaluations, so that what is in the way is told before anything is measured."""
    name = place.name()
    place.root.mkdir(exist_ok=True)
    for path in (place.root, place.root / name):
        if path.exists():
            try_to_write(path)


def _fingerprints(restored: Trained, attacks: Mapping[str, Attack], settings: Settings, n: int) -> dict[str, str]:
    """See `outcome_cache.fingerprints`; none for a model or dataset of the user's own, whose code is not seen."""
    config = restored.config
    names = config.model.name, config.data.name
    if is_own(config.data.name) or module_of(config.model.name) or any(map(is_object, names)):
        return {}
    ids = zlib.crc32(np.ascontiguousarray(getattr(restored.dataset, settings.split).ids[:n]).tobytes())
    rest = [ids, config.data.to_dict(), config.model.to_dict(), restored.step, settings.split, n, settings.seed,
            settings.precision, versions()]  # fmt: skip
    return outcome_cache.fingerprints(attacks, restored.variables, rest, settings.worst_case_only)


def _further_warnings(
    logits_fn: models.BoundModel, batch: Mapping[str, Any], count: int, measured: PerExample, settings: Settings,
    bar: Bar,
) -> tuple[list[str], int]:  # fmt: skip
    """Signs of masked gradients in more attacks on the first ``count`` images; `summarise` looks for the others.

    On fewer if memory runs out; their number is returned too.
    """
    images, labels = (jnp.asarray(np.asarray(batch[name])) for name in ("image", "label"))

    def probe(few: int) -> list[str]:
        if few < count:
            logging.warning("Out of memory: signs of masked gradients are looked for at %d images.", few)
        return masking.probe(
            logits_fn, images[:few], labels[:few], measured, key=jax.random.key(settings.seed),
            own=masking.find(settings.signs), needs=("attacks",),
            progress=lambda name: bar.phase(f"checking for masked gradients: {name}"),
        )  # fmt: skip

    return as_many_as_fit(probe, count)


def _add_costs(
    summary: dict[str, Any], attacks: Mapping[str, Attack], image_shape: tuple[int, ...], classes: int
) -> None:
    """Adds to each attack its largest cost per image at one radius, if it is known."""
    for name, attack in attacks.items():
        problem = Problem(image_shape, classes, attack.threat)
        if cost := cost_of(attack.function, attack.settings, problem):
            summary["attacks"][name]["cost"] = cost._asdict()


def versions() -> dict[str, str]:
    """What computed the numbers: the versions of packages and Python, and the device."""
    found = {"python": platform.python_version(), "device": parallel.device_kind()}
    for package in ("robust_jax", "jax", "jaxlib", "flax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


class _Lines:
    """The progress of `robustness`: the bar moves, and each attack leaves a line with its accuracy."""

    def __init__(self, bar: Bar, n: int, attacks: Iterable[str]):
        self._bar, self._n, self._started = bar, n, time.perf_counter()
        self._names = {"clean", *attacks}  # others are those of attacks at multiples of their radius
        self._seen: dict[str, tuple[int, int]] = {}

    def __call__(self, name: str, robust: int, examples: int) -> None:
        right, seen = self._seen.get(name, (0, 0))
        self._seen[name] = right, seen = right + robust, seen + examples
        self._bar.show({name: f"{right}/{min(seen, self._n)} right"})
        self._bar.advance(examples)
        if seen >= self._n and name in self._names:
            now = time.perf_counter()
            self._bar.line(f"{name}: {right / self._n:.1%} of {self._n} images right, {now - self._started:.1f} s")
            self._started = now
