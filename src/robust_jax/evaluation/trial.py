"""One attack on all examples of an evaluation, at all its radii."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from robust_jax import losses
from robust_jax.evaluation import drawn
from robust_jax.evaluation.adversarial_set import AdversarialSet, rows_of
from robust_jax.evaluation.batching import (
    Batch,
    Rows,
    in_parts,
    joined,
    on_host,
    pixels_of,
    selected,
    with_ids_and_masks,
)
from robust_jax.evaluation.outcomes import Outcome, PerExample
from robust_jax.options.hints import described
from robust_jax.spaces import per_example, threat_models


class Trial(NamedTuple):
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
      code: equal to nothing from before if perturbation or attack are one's own, which may read what has changed since.
    """

    model: Any
    source: Any
    attack: Any
    key: Key[Array, ""]
    place: Callable[[Batch], Batch]
    largest: int
    kept: AdversarialSet | None = None
    name: str = ""
    code: Any = None


def outcome_of(
    trial: Trial,
    batches: Iterable[Batch],
    measured: PerExample,
    seen: Bool[np.ndarray, " n"],
    report: Callable[[float, int, int], None],
) -> Outcome:
    """One attack at all its radii on the examples that it sees."""
    found: dict[float, list[Rows]] = {m: [] for m in trial.attack.multiples()}
    sample: dict[str, Any] = {}
    hardest: dict[str, Any] = {}
    seconds, left, expected = 0.0, measured.prediction[seen], measured.label[seen]
    pixels = None if measured.pixels is None else measured.pixels[seen]
    size: int | None = None

    def run(multiple: float, before: np.ndarray, part: Batch) -> Rows:
        images, delta, new = attacked(trial, trial.place(part), multiple)
        rows = on_host(new, part["mask"])
        if multiple != 1:
            return rows
        if not sample and len(rows["loss"]):
            sample.update(drawn.first_of_each_class(part, images, delta, before, rows["prediction"]))
        hardest.update(drawn.hardest(hardest, part, images, delta, rows, measured))
        return rows | (on_host(rows_of(trial.name, images, delta), part["mask"]) if trial.kept else {})

    for batch in selected(with_ids_and_masks(batches), seen, trial.largest):
        labels = np.asarray(batch["label"])[batch["mask"]]
        before, left = left[: len(labels)], left[len(labels) :]
        known, expected = expected[: len(labels)], expected[len(labels) :]
        same = np.array_equal(labels, known)
        if pixels is not None:
            same &= np.array_equal(pixels_of(batch), pixels[: len(labels)])
            pixels = pixels[len(labels) :]
        if not same:
            raise ValueError(
                "batches: the second pass has other examples than the first: turn shuffling and random augmentation "
                "off, or give arrays."
            )
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
    curve = {m: broken[m] for m in sorted({1.0, *map(float, trial.attack.curve)}) if len(trial.attack.curve)}
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
    for k, v in joined(rows).items() if rows else ():
        full[k][seen] = v
    return full


def attacked(trial: Trial, batch: Batch, multiple: float) -> tuple[Array, Any, dict[str, Array]]:
    """One batch at a multiple of the radius: the adversarial images, δ, and what is recorded of them."""
    attack = trial.attack
    settings = dict(attack.settings)
    # The radius and the step size scale together and are traced; the rest is static: one compilation.
    scale = partial(jax.tree.map, lambda r: jnp.asarray(r, jnp.float32) * multiple)
    traced = {"threat": scale(attack.threat)}
    if (size := settings.pop("step_size", None)) is not None:
        # One array for each part: a tuple of traced numbers, one per axis of δ, has no shape.
        several = attack.threat.perturbation.parts and isinstance(size, tuple | list)
        traced["step_size"] = scale(tuple(map(np.asarray, size)) if several else np.asarray(size))
    examples = (batch["image"], batch["label"], batch["id"])
    options = tuple(settings.items())
    return _run(trial.model, trial.source, examples, trial.key, traced, attack.function, options, trial.code)


@partial(jax.jit, static_argnames=("function", "settings", "code"))
def _run(model, source, examples, key, traced, function, settings, code):
    images, labels, ids = examples
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    result = function(source, images, labels, key=keys, **traced, **dict(settings))
    if not (hasattr(result, "images") and hasattr(result, "delta")):
        name = getattr(function, "__name__", "attack")
        raise ValueError(
            f"{name} returned {described(result)}: return robust_jax.attacks.AttackResult(images, delta, success)."
        )
    threat, logits = traced["threat"], per_example.widened(model(result.images))
    recomputed = jnp.clip(threat.perturbation.apply(images, result.delta), 0, 1)
    found = {
        "prediction": losses.predicted(logits),
        "loss": losses.cross_entropy(logits, labels),
        "size": threat_models.size(threat, result.delta),
        "excess": jnp.abs(result.images - recomputed).max((1, 2, 3)),
    }
    return result.images, result.delta, found
