"""Clean and attacked accuracy of a function of images, example by example, and the worst case.

No config, model or file is needed:

    threat = ThreatModel("flow", "linf", 0.155)
    attacks = {"flow": Attack(pgd, threat, {"steps": 20, "restarts": 3})}
    measured = robustness(logits_fn, (images, labels), attacks, key=jax.random.key(0))
    summarise(measured)["attacks"]["flow"]["accuracy"]

An example counts as robust to an attack if it is classified correctly both clean and at the adversarial image. What an
attack reports is not relied on: its image is classified again, and its norm, its box, and that it equals T(x, δ) are
measured.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Key

from robust_jax import losses
from robust_jax.attacks.compiled import as_argument, is_fixed, is_structured
from robust_jax.checks import check_batch
from robust_jax.evaluation.adversarial_set import AdversarialSet
from robust_jax.evaluation.attack import Attack, built
from robust_jax.evaluation.batching import (
    Batch,
    Rows,
    as_batches,
    in_parts,
    joined,
    on_host,
    pixels_of,
    with_ids_and_masks,
)
from robust_jax.evaluation.identity import attack_of
from robust_jax.evaluation.outcomes import Outcome, PerExample, contradiction
from robust_jax.evaluation.trial import Trial, outcome_of
from robust_jax.files import checksum
from robust_jax.options import Count
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import per_example
from robust_jax.spaces.per_example import check_key

FEW = 64  # images at which signs of masked gradients are looked for

Progress = Callable[[str, int, int], None]
"""``(name, robust, examples)``: how many of the examples of a batch are robust."""


@checks_arguments
def robustness(
    logits_fn: Callable[[Float[Array, "b h w c"]], Float[Array, "b k"]],
    batches: Any,
    attacks: Mapping[str, Any],
    *,
    key: Key[Array, ""],
    batch_size: Count = 250,
    worst_case_only: bool = False,
    place: Callable[[Batch], Batch] = dict,
    finished: Mapping[str, Outcome] | None = None,
    keep: Callable[[str, Outcome], None] | None = None,
    progress: Progress | None = None,
    save: str | os.PathLike[str] | None = None,
    precision: str = "float32",
) -> PerExample:
    """Measures every example, clean and under every attack.

    Random numbers are drawn from the example's id and the attack's name: they do not depend on the batch size, the
    order or the other attacks. Networks, also as `rj.model` and `rj.bind` return them, compile once for all weights; a
    function without its weights, which may read what has changed, at every call. If memory runs out, batches are halved
    until they fit.

    Args:
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      batches: the examples: arrays ``(images, labels)``, or batches, each such a pair or a dict of image `[B, H, W, C]`
        (uint8, or float in [0, 1]), label `[B]`, and optionally id `[B]` (default: the position) and mask `[B]`, False
        for padding. Equal batch sizes save compilations. Batches are iterated over once for the clean images and once
        per attack, and have to be the same each time; an iterator, which allows one pass only, is kept in memory.
      attacks: NAME -> `Attack`, or its entry in a config, ``dict(kind=..., perturbation=..., radius=..., **options)``.
      key: one typed key.
      batch_size: of the batches into which arrays are cut.
      worst_case_only: each attack sees only the correctly classified examples that no attack before it has broken,
        repacked into full batches, and no curves are measured. The worst case is the same and found sooner; the
        accuracy under each attack alone is unknown.
      place: applied to a batch before the model sees it, such as `parallel.spread`.
      finished: NAME -> outcome of an attack on these examples, which is not run again; one of another attack, or one
        that contradicts the examples, is left out, with a warning.
      keep: called as `keep(NAME, outcome)` after an attack has run.
      progress: called as `progress(NAME, robust, examples)` after every batch at every radius, and once for all
        examples that an attack need not see.
      save: a file ``.npz`` that keeps the adversarial images, δ and predictions of all attacks at their own radii,
        see `robust_jax.evaluation.adversarial_set`. All attacks run then, also those with ``finished`` outcomes.
      precision: of matrix products, as in `jax.default_matmul_precision`: on GPUs and TPUs JAX's own default has fewer
        digits, and a network is then another one.

    Returns:
      The results per example; `summarise` turns them into accuracies.

    Raises:
      ValueError: no example; images, labels or logits of a wrong shape or range; ids that occur twice; batches that
        are others in the second pass; an attack named clean or worst_case, two whose pictures would be one file; a
        source with other classes.
    """
    attacks = built(attacks, _from_config)
    model = as_argument(logits_fn)
    report = progress or (lambda *_: None)
    batches = as_batches(batches, batch_size)
    check_key(key, None)
    with jax.default_matmul_precision(precision), nullcontext() if save is None else AdversarialSet(save) as kept:
        measured, largest = _clean_images(model, batches, place, report, kept)
        measured.precision = precision
        finished = {} if finished is None or kept else finished
        trial = Trial(model, model, None, key, place, largest, kept)
        _run_attacks(trial, attacks, batches, measured, worst_case_only, finished, keep, report)
        if kept:
            kept.write(measured)
    return measured


def _run_attacks(
    common: Trial,
    attacks: Mapping[str, Attack],
    batches: Iterable[Batch],
    measured: PerExample,
    worst_case_only: bool,
    finished: Mapping[str, Outcome],
    keep: Callable[[str, Outcome], None] | None,
    report: Progress,
) -> None:
    """Adds the outcome of every attack to what was measured."""
    left = measured.correct
    weights = checksum(common.model) if is_structured(common.model) else ""
    for name, attack in attacks.items():
        seen, before = (left, tuple(measured.attacks)) if worst_case_only else (np.ones_like(left), None)
        if before is not None:
            attack = dataclasses.replace(attack, curve=())
            report(name, 0, int((~left).sum()))
        if name in finished and _fits(name, finished[name], attack, weights, measured, seen):
            outcome = dataclasses.replace(finished[name], attack=attack)
            report(name, int((~outcome.broken).sum()), int(seen.sum()) * len(attack.multiples()))
        else:
            source = common.model if attack.source is None else _source(name, attack, common.model, measured)
            own_key = jax.random.fold_in(common.key, zlib.crc32(name.encode()))
            code = None if is_fixed(attack.threat, attack.function, dict(attack.settings)) else object()
            trial = common._replace(source=source, attack=attack, key=own_key, name=name, code=code)
            outcome = outcome_of(trial, batches, measured, seen, partial(_report_radius, report, name))
            outcome.weights = weights
            if keep:
                keep(name, outcome)
        measured.attacks[name] = dataclasses.replace(outcome, after=before)
        left = left & ~outcome.broken


def _from_config(name: str, entry: Any) -> Attack:
    from robust_jax.evaluation.from_config import attack_from  # loads models and workdirs, for sources

    return attack_from(name, entry)


def _source(name: str, attack: Attack, model: Any, measured: PerExample) -> Any:
    """The model that a transfer attack attacks.

    Raises:
      ValueError: it takes other images, or has another number of classes: labels that it lacks would count as broken,
        and not be tried.
    """
    source = as_argument(attack.source.logits_fn)  # type: ignore[union-attr]
    few = jax.ShapeDtypeStruct((1, *np.asarray(measured.images).shape[1:]), np.float32)
    own = jax.eval_shape(lambda f, x: f(x), model, few).shape[-1]
    try:
        there = jax.eval_shape(lambda f, x: f(x), source, few).shape[-1]
    except Exception as error:
        raise ValueError(
            f"attacks.{name}: source={attack.source.name!r} does not take images {few.shape[1:]} "  # type: ignore[union-attr]
            f"({type(error).__name__}): give a source for images of this shape."
        ) from error
    if own != there:
        raise ValueError(
            f"attacks.{name}: source={attack.source.name!r} has {there} classes, and the model {own}: give "  # type: ignore[union-attr]
            f"a source that was trained on the same classes."
        )
    return source


def _fits(
    name: str, outcome: Outcome, attack: Attack, weights: str, measured: PerExample, seen: Bool[np.ndarray, " n"]
) -> bool:
    """Whether a stored outcome can be that of an attack on these examples; warns if not."""
    problem = contradiction(outcome, measured, seen)
    if outcome.weights and weights and outcome.weights != weights:
        problem = "it is of a network with other weights"
    if attack_of(outcome.attack, in_turn=True) != attack_of(attack, in_turn=True):
        problem = f"it is of {outcome.attack!r}"
    if problem:
        logging.warning("The stored outcome of %s does not fit (%s): the attack runs again.", name, problem)
    return not problem


def _report_radius(report: Progress, name: str, multiple: float, robust: int, examples: int) -> None:
    report(name if multiple == 1 else f"{name} x {multiple:g}", robust, examples)


def _clean_images(
    model: Any,
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch],
    report: Progress,
    kept: AdversarialSet | None = None,
) -> tuple[PerExample, int]:
    """The predictions and losses of the clean images, without attacks, and the size of the largest batch."""
    clean, few, missing, largest = [], [], FEW, 0
    size: int | None = None
    for batch in with_ids_and_masks(batches):
        if missing:
            few.append(np.asarray(batch["image"])[batch["mask"]][:missing])
            missing -= len(few[-1])
        check_batch(batch["image"], batch["label"], model)
        rows, size = in_parts(partial(_clean_rows, model, place), batch, size)
        clean.append(rows | {"pixels": pixels_of(batch)})
        if kept:
            kept.add({"images": np.asarray(batch["image"])[batch["mask"]]})
        largest = max(largest, len(batch["mask"]))
        report("clean", int((rows["prediction"] == rows["label"]).sum()), len(rows["label"]))
    if not any(len(rows["label"]) for rows in clean):
        raise ValueError("robustness got no example: the batches are empty, or masked altogether.")
    measured = PerExample(**joined(clean), attacks={}, logits_fn=model, images=np.concatenate(few))
    if len(np.unique(measured.id)) < len(measured.id):
        raise ValueError(
            "batches: two examples have the same id: ids are what random draws and pictures are told apart by; leave "
            "them out, or number the examples of all batches."
        )
    return measured, largest


def _clean_rows(model: Any, place: Callable[[Batch], Batch], batch: Batch) -> Rows:
    placed = place(batch)
    return on_host(
        _clean(model, placed["image"], placed["label"]) | {k: batch[k] for k in ("id", "label")}, batch["mask"]
    )


@jax.jit
def _clean(model: Any, images: Array, labels: Array) -> dict[str, Array]:
    logits = per_example.widened(model(images))
    return {"prediction": losses.predicted(logits), "loss": losses.cross_entropy(logits, labels)}
