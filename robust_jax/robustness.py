"""Clean and attacked accuracy of a function of images, example by example, and the worst case.

No config, model or file is needed:

    threat = ThreatModel("flow", "linf", 0.155)
    attacks = {"flow": Attack(pgd, threat, {"steps": 20, "restarts": 3})}
    measured = robustness(logits_fn, batches, attacks, key=jax.random.key(0))
    summarise(measured)["attacks"]["flow"]["accuracy"]

An example counts as robust to an attack where it is classified correctly clean AND at the attack's
image. That image is classified again here, and measured (norm, box, and that it is T(x, δ)): an
attack's own word is not taken for it.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from robust_jax import losses, threat_models
from robust_jax.attacks.wrappers import as_pytree
from robust_jax.batching import Batch, Rows, filled, in_parts, only
from robust_jax.checks import check_attack_name, check_batch
from robust_jax.records import Attack, Outcome, PerExample

Progress = Callable[[str, int, int], None]


def robustness(
    logits_fn: Callable[[Float[Array, "b h w c"]], Float[Array, "b k"]],
    batches: Iterable[Batch],
    attacks: Mapping[str, Attack],
    *,
    key: Key[Array, ""],
    worst_case_only: bool = False,
    place: Callable[[Batch], Batch] = dict,
    finished: Mapping[str, Outcome] | None = None,
    keep: Callable[[str, Outcome], None] | None = None,
    progress: Progress | None = None,
) -> PerExample:
    """Every example, clean and under every attack.

    Randomness is drawn from the example's id and the attack's name: the batch size, the order and
    the other attacks do not change it. A pytree `logits_fn` (`rj.bind`) compiles once for all
    weights. Where memory runs out batches are cut in halves until they fit.

    Args:
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      batches: dicts of image `[B, H, W, C]` (uint8, or float in [0, 1]), label `[B]`, and where
        present id `[B]` (default: the position) and mask `[B]`, False for padding. Equal batch
        sizes save compilations. They are gone through once for the clean images and once for each
        attack; an iterator, which cannot, is kept in memory.
      attacks: NAME -> attack.
      key: one typed key.
      worst_case_only: each attack sees only what is right clean and no attack before it has broken, in
        full batches; no curves. The worst case is the same, sooner; the attacks' own accuracies are unknown.
      place: what is done to a batch before the model sees it, such as `parallel.spread`.
      finished: outcomes of attacks on these examples that need not run again.
      keep: called as `keep(NAME, outcome)` when an attack has run.
      progress: called as `progress(NAME, robust, examples)` after every batch of every run, and for all
        the examples that an attack need not see.

    Raises:
      ValueError: no example; images, labels or logits of a wrong shape or range; an attack named clean or worst_case.
    """
    for name in attacks:
        check_attack_name(name)
    model = as_pytree(logits_fn)
    tell = progress or (lambda *_: None)
    batches = list(batches) if isinstance(batches, Iterator) else batches
    clean, size = [], None
    for batch in filled(batches):
        check_batch(batch["image"], batch["label"], model)
        row, size = in_parts(partial(_clean_rows, model, place), batch, size)
        clean.append(row)
        tell("clean", int((row["prediction"] == row["label"]).sum()), len(row["label"]))
    if not clean:
        raise ValueError("robustness got no example: the batches are empty")

    measured = PerExample(**_joined(clean), attacks={})
    left = measured.correct
    for name, attack in attacks.items():
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        seen, before = (left, tuple(measured.attacks)) if worst_case_only else (np.ones_like(left), None)
        if before is not None:
            attack = dataclasses.replace(attack, curve=())
            tell(name, 0, int((~left).sum()))
        if finished and name in finished:
            outcome = dataclasses.replace(finished[name], attack=attack)
            tell(name, int((~outcome.broken).sum()), int(seen.sum()) * len(attack.multiples()))
        else:
            outcome = _outcome(model, batches, measured, seen, attack, own, place, partial(_tell, tell, name))
            if keep:
                keep(name, outcome)
        measured.attacks[name] = dataclasses.replace(outcome, after=before)
        left = left & ~outcome.broken
    return measured


def _tell(tell: Progress, name: str, multiple: float, robust: int, examples: int) -> None:
    tell(name if multiple == 1 else f"{name} x {multiple:g}", robust, examples)


def _outcome(
    model: Any,
    batches: Iterable[Batch],
    measured: PerExample,
    seen: np.ndarray,
    attack: Attack,
    key: Array,
    place: Callable[[Batch], Batch],
    tell: Callable[[float, int, int], None],
) -> Outcome:
    """One attack, at all its radii, on the examples that are to be seen."""
    found: dict[float, list[Rows]] = {m: [] for m in attack.multiples()}
    sample: dict[str, Any] = {}
    seconds, size, left = 0.0, None, measured.prediction[seen]
    source = model if attack.source is None else as_pytree(attack.source.logits_fn)

    def run(multiple: float, before: np.ndarray, part: Batch) -> Rows:
        on = place(part)
        images, delta, new = _attacked(model, source, on["image"], on["label"], on["id"], key, multiple, attack)
        rows = _host(new, part["mask"])
        if multiple == 1 and not sample and len(rows["loss"]):
            sample.update(_sample(part, images, delta, before, rows["prediction"]))
        return rows

    for batch in only(filled(batches), seen):
        labels = np.asarray(batch["label"])[batch["mask"]]
        before, left = left[: len(labels)], left[len(labels) :]
        for multiple, rows in found.items():
            start = time.perf_counter()
            new, size = in_parts(partial(run, multiple, before), batch, size)
            rows.append(new)
            seconds += time.perf_counter() - start
            right = (before == labels) & (new["prediction"] == labels)
            tell(multiple, int(right.sum()), len(labels))

    def whole(rows: list[Rows]) -> Rows:
        """For all examples: what is not seen stays as it is clean."""
        nothing = np.zeros(len(seen), np.float32)
        full = {"prediction": measured.prediction, "loss": measured.loss, "size": nothing, "excess": nothing}
        full = {k: v.copy() for k, v in full.items()}
        for k, v in _joined(rows).items() if rows else ():
            full[k][seen] = v
        return full

    at = {multiple: whole(rows) for multiple, rows in found.items()}
    broken = {m: ~measured.correct | ~seen | (f["prediction"] != measured.label) for m, f in at.items()}
    broken[0.0] = ~measured.correct
    curve = {m: broken[m] for m in sorted({1.0, *map(float, attack.curve)}) if attack.curve}
    largest, excess = (np.max([f[k] for f in at.values()], 0) for k in ("size", "excess"))
    return Outcome(
        attack, broken[1.0], at[1.0]["prediction"], at[1.0]["loss"], largest, excess,
        curve=curve, seconds=seconds, sample=sample, seen=seen,
    )  # fmt: skip


def _clean_rows(model: Any, place: Callable[[Batch], Batch], batch: Batch) -> Rows:
    on = place(batch)
    return _host(_clean(model, on["image"], on["label"]) | {k: batch[k] for k in ("id", "label")}, batch["mask"])


@jax.jit
def _clean(model: Any, images: Array, labels: Array) -> dict[str, Array]:
    logits = model(images)
    return {"prediction": _predict(logits), "loss": losses.cross_entropy(logits, labels)}


def _predict(logits: Array) -> Array:
    """The class, or -1, which is never right, where a logit is not finite."""
    return jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1), -1)


def _attacked(
    model: Any,
    source: Any,
    images: Array,
    labels: Array,
    ids: Array,
    key: Array,
    multiple: float,
    attack: Attack,
) -> tuple[Array, Any, dict[str, Array]]:
    """One batch at a multiple of the radius: adversarial images, δ, and what is recorded."""
    settings = dict(attack.settings)
    # The radius and the step scale together and are traced; the rest is static: one compilation.
    scale = partial(jax.tree.map, lambda r: jnp.asarray(r, jnp.float32) * multiple)
    traced = {"threat": scale(attack.threat)}
    if settings.get("step_size") is not None:
        traced["step_size"] = scale(settings.pop("step_size"))
    return _run(model, source, images, labels, ids, key, traced, attack.function, tuple(settings.items()))


@partial(jax.jit, static_argnums=(7, 8))
def _run(model, source, images, labels, ids, key, traced, function, settings):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    result = function(source, images, labels, key=keys, **traced, **dict(settings))
    threat, logits = traced["threat"], model(result.images)
    said = jnp.clip(threat.perturbation.apply(images, result.delta), 0, 1)
    found = {
        "prediction": _predict(logits),
        "loss": losses.cross_entropy(logits, labels),
        "size": threat_models.size(threat, result.delta),
        "excess": jnp.abs(result.images - said).max((1, 2, 3)),
    }
    return result.images, result.delta, found


def _host(found: Mapping[str, Array], real: np.ndarray) -> Rows:
    return {name: np.asarray(value)[real] for name, value in found.items()}


def _joined(batches: Sequence[Mapping[str, np.ndarray]]) -> Rows:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _sample(batch: Batch, images: Array, delta: Any, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Up to ten examples of a batch to picture: the first of each class, not the prettiest."""
    labels = np.asarray(batch["label"])[batch["mask"]]
    picked = np.unique(labels, return_index=True)[1][:10]
    device = {"clean": batch["image"], "adversarial": images, "delta": delta}
    return jax.tree.map(lambda x: np.asarray(x)[batch["mask"]][picked], device) | {
        "labels": labels[picked],
        "clean_predictions": before[picked],
        "adversarial_predictions": after[picked],
    }
