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
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Key

from robust_jax import losses
from robust_jax.attacks.wrappers import as_pytree
from robust_jax.checks import check_attack_name, check_batch
from robust_jax.evaluation import drawn
from robust_jax.evaluation.adversarial_set import AdversarialSet, rows_of
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.batching import Batch, Rows, as_batches, in_parts, selected, with_ids_and_masks
from robust_jax.evaluation.outcomes import Outcome, PerExample, contradiction
from robust_jax.options import Count
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import threat_models
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
) -> PerExample:
    """Measures every example, clean and under every attack.

    Random numbers are drawn from the example's id and the attack's name: they do not depend on the batch size, the
    order or the other attacks. A pytree `logits_fn` (`rj.bind`) compiles once for all weights. If memory runs out,
    batches are halved until they fit.

    Args:
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      batches: the examples: arrays ``(images, labels)``, or batches, each such a pair or a dict of image `[B, H, W, C]`
        (uint8, or float in [0, 1]), label `[B]`, and optionally id `[B]` (default: the position) and mask `[B]`, False
        for padding. Equal batch sizes save compilations. Batches are iterated over once for the clean images and once
        per attack; an iterator, which allows one pass only, is kept in memory.
      attacks: NAME -> `Attack`, or its entry in a config, ``dict(kind=..., perturbation=..., radius=..., **options)``.
      key: one typed key.
      batch_size: of the batches into which arrays are cut.
      worst_case_only: each attack sees only the correctly classified examples that no attack before it has broken,
        repacked into full batches, and no curves are measured. The worst case is the same and found sooner; the
        accuracy under each attack alone is unknown.
      place: applied to a batch before the model sees it, such as `parallel.spread`.
      finished: NAME -> outcome of an attack on these examples, which is not run again; one that contradicts the
        examples is left out, with a warning.
      keep: called as `keep(NAME, outcome)` after an attack has run.
      progress: called as `progress(NAME, robust, examples)` after every batch at every radius, and once for all
        examples that an attack need not see.
      save: a file ``.npz`` that keeps the adversarial images, δ and predictions of all attacks at their own radii,
        see `robust_jax.evaluation.adversarial_set`. All attacks run then, also those with ``finished`` outcomes.

    Returns:
      The results per example; `summarise` turns them into accuracies.

    Raises:
      ValueError: no example; images, labels or logits of a wrong shape or range; an attack named clean or worst_case.
    """
    attacks = {name: _attack(name, attack) for name, attack in attacks.items()}
    model = as_pytree(logits_fn)
    report = progress or (lambda *_: None)
    batches = as_batches(batches, batch_size)
    check_key(key, None)
    with nullcontext() if save is None else AdversarialSet(save) as kept:
        measured, largest = _clean_images(model, batches, place, report, kept)
        finished = {} if finished is None or kept else finished
        trial = _Trial(model, model, None, key, place, largest, kept)
        _run_attacks(trial, attacks, batches, measured, worst_case_only, finished, keep, report)
        if kept:
            kept.write(measured)
    return measured


def _run_attacks(
    common: _Trial,
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
    for name, attack in attacks.items():
        seen, before = (left, tuple(measured.attacks)) if worst_case_only else (np.ones_like(left), None)
        if before is not None:
            attack = dataclasses.replace(attack, curve=())
            report(name, 0, int((~left).sum()))
        if name in finished and _fits(name, finished[name], measured, seen):
            outcome = dataclasses.replace(finished[name], attack=attack)
            report(name, int((~outcome.broken).sum()), int(seen.sum()) * len(attack.multiples()))
        else:
            source = common.model if attack.source is None else as_pytree(attack.source.logits_fn)
            own_key = jax.random.fold_in(common.key, zlib.crc32(name.encode()))
            trial = common._replace(source=source, attack=attack, key=own_key, name=name)
            outcome = _outcome(trial, batches, measured, seen, partial(_report_radius, report, name))
            if keep:
                keep(name, outcome)
        measured.attacks[name] = dataclasses.replace(outcome, after=before)
        left = left & ~outcome.broken


def _attack(name: str, attack: Any) -> Attack:
    check_attack_name(name)
    if isinstance(attack, Mapping):
        from robust_jax.evaluation.from_config import attack_from  # loads models and workdirs, for sources

        return attack_from(name, attack)
    if not isinstance(attack, Attack):
        raise ValueError(
            f"attacks.{name} is {attack!r}: give Attack(function, threat, settings), or dict(kind=..., "
            f"perturbation=..., radius=..., **options)."
        )
    return attack


def _fits(name: str, outcome: Outcome, measured: PerExample, seen: Bool[np.ndarray, " n"]) -> bool:
    """Whether a stored outcome can be one of these examples; warns if not."""
    if problem := contradiction(outcome, measured, seen):
        logging.warning("The stored outcome of %s does not fit (%s): the attack runs again.", name, problem)
    return not problem


class _Trial(NamedTuple):
    """One attack on one model, the same for all batches.

    Attributes:
      model: the model that is evaluated, a pytree.
      source: the model that is attacked: the same one, except in a transfer attack.
      attack: the attack.
      key: of this attack.
      place: applied to a batch before the model sees it.
      largest: the size of the largest batch.
      kept: gathers the adversarial images, if they are kept.
      name: of the attack.
    """

    model: Any
    source: Any
    attack: Any
    key: Key[Array, ""]
    place: Callable[[Batch], Batch]
    largest: int
    kept: AdversarialSet | None = None
    name: str = ""


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
        clean.append(rows)
        if kept:
            kept.add({"images": np.asarray(batch["image"])[batch["mask"]]})
        largest = max(largest, len(batch["mask"]))
        report("clean", int((rows["prediction"] == rows["label"]).sum()), len(rows["label"]))
    if not any(len(rows["label"]) for rows in clean):
        raise ValueError("robustness got no example: the batches are empty, or masked altogether.")
    return PerExample(**_joined(clean), attacks={}, logits_fn=model, images=np.concatenate(few)), largest


def _clean_rows(model: Any, place: Callable[[Batch], Batch], batch: Batch) -> Rows:
    placed = place(batch)
    return _host(
        _clean(model, placed["image"], placed["label"]) | {k: batch[k] for k in ("id", "label")}, batch["mask"]
    )


@jax.jit
def _clean(model: Any, images: Array, labels: Array) -> dict[str, Array]:
    logits = model(images)
    return {"prediction": losses.predicted(logits), "loss": losses.cross_entropy(logits, labels)}


def _outcome(
    trial: _Trial,
    batches: Iterable[Batch],
    measured: PerExample,
    seen: Bool[np.ndarray, " n"],
    report: Callable[[float, int, int], None],
) -> Outcome:
    """One attack at all its radii on the examples that it sees."""
    found: dict[float, list[Rows]] = {m: [] for m in trial.attack.multiples()}
    sample: dict[str, Any] = {}
    hardest: dict[str, Any] = {}
    seconds, left = 0.0, measured.prediction[seen]
    size: int | None = None

    def run(multiple: float, before: np.ndarray, part: Batch) -> Rows:
        images, delta, new = _attacked(trial, trial.place(part), multiple)
        rows = _host(new, part["mask"])
        if multiple != 1:
            return rows
        if not sample and len(rows["loss"]):
            sample.update(drawn.first_of_each_class(part, images, delta, before, rows["prediction"]))
        hardest.update(drawn.hardest(hardest, part, images, delta, rows, measured))
        return rows | (_host(rows_of(trial.name, images, delta), part["mask"]) if trial.kept else {})

    for batch in selected(with_ids_and_masks(batches), seen, trial.largest):
        labels = np.asarray(batch["label"])[batch["mask"]]
        before, left = left[: len(labels)], left[len(labels) :]
        for multiple, rows in found.items():
            start = time.perf_counter()
            new, size = in_parts(partial(run, multiple, before), batch, size)
            rows.append(_without_images(new, trial.kept))
            seconds += time.perf_counter() - start
            right = (before == labels) & (new["prediction"] == labels)
            report(multiple, int(right.sum()), len(labels))

    at = {multiple: _for_all_examples(rows, measured, seen) for multiple, rows in found.items()}
    broken = {m: ~measured.correct | ~seen | (f["prediction"] != measured.label) for m, f in at.items()}
    broken[0.0] = ~measured.correct
    curve = {m: broken[m] for m in sorted({1.0, *map(float, trial.attack.curve)}) if trial.attack.curve}
    largest, excess = (np.max([f[k] for f in at.values()], 0) for k in ("size", "excess"))
    return Outcome(
        trial.attack, broken[1.0], at[1.0]["prediction"], at[1.0]["loss"], largest, excess,
        curve=curve, seconds=seconds, sample=sample, seen=seen, hardest=hardest,
    )  # fmt: skip


def _without_images(rows: Rows, kept: AdversarialSet | None) -> Rows:
    """What is recorded of the examples; the adversarial images and δ among it, if there are any, go to the set."""
    if kept is None:
        return rows
    kept.add({name: row for name, row in rows.items() if "/" in name})
    return {name: row for name, row in rows.items() if "/" not in name}


def _for_all_examples(rows: Sequence[Rows], measured: PerExample, seen: Bool[np.ndarray, " n"]) -> Rows:
    """The rows of the seen examples among those of all; the others keep their clean prediction and loss, and δ = 0."""
    zeros = np.zeros(len(seen), np.float32)
    full = {"prediction": measured.prediction, "loss": measured.loss, "size": zeros, "excess": zeros}
    full = {k: v.copy() for k, v in full.items()}
    for k, v in _joined(rows).items() if rows else ():
        full[k][seen] = v
    return full


def _attacked(trial: _Trial, batch: Batch, multiple: float) -> tuple[Array, Any, dict[str, Array]]:
    """One batch at a multiple of the radius: the adversarial images, δ, and what is recorded of them."""
    attack = trial.attack
    settings = dict(attack.settings)
    # The radius and the step size scale together and are traced; the rest is static: one compilation.
    scale = partial(jax.tree.map, lambda r: jnp.asarray(r, jnp.float32) * multiple)
    traced = {"threat": scale(attack.threat)}
    if settings.get("step_size") is not None:
        traced["step_size"] = scale(settings.pop("step_size"))
    examples = (batch["image"], batch["label"], batch["id"])
    return _run(trial.model, trial.source, examples, trial.key, traced, attack.function, tuple(settings.items()))


@partial(jax.jit, static_argnames=("function", "settings"))
def _run(model, source, examples, key, traced, function, settings):
    images, labels, ids = examples
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    result = function(source, images, labels, key=keys, **traced, **dict(settings))
    threat, logits = traced["threat"], model(result.images)
    recomputed = jnp.clip(threat.perturbation.apply(images, result.delta), 0, 1)
    found = {
        "prediction": losses.predicted(logits),
        "loss": losses.cross_entropy(logits, labels),
        "size": threat_models.size(threat, result.delta),
        "excess": jnp.abs(result.images - recomputed).max((1, 2, 3)),
    }
    return result.images, result.delta, found


def _host(found: Mapping[str, Array], real: Bool[np.ndarray, " b"]) -> Rows:
    """The rows of real examples as NumPy arrays, padding left out."""
    return {name: np.asarray(value)[real] for name, value in found.items()}


def _joined(batches: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
