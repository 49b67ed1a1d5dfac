"""The parts of one evaluation that need its arrays: classes, confusions, galleries, the worst examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robust_jax.evaluation import drawing
from robust_jax.evaluation.page import images, sources, words
from robust_jax.evaluation.page.sources import Evaluation
from robust_jax.files import file_name, printable

MANY = 20  # classes, of which not all are shown
_MOST_CLASSES = 100_000  # more are damage
_MOST_IDS = 12


def per_class(evaluation: Evaluation) -> dict[str, Any]:
    """A row per class with its accuracies, clean and under each attack; of many classes the least robust."""
    report = evaluation.report
    entries = {"clean": report["clean"], **{printable(k): v for k, v in report["attacks"].items()}}
    entries |= {"worst case": report["worst_case"]} if len(entries) > 2 else {}
    entries = {name: entry for name, entry in entries.items() if entry.get("per_class")}
    if not entries:
        return {}
    names = report.get("class_names") or ()
    rows = []
    for label in sorted(map(int, report["clean"]["per_class"])):
        cells = [(entry["per_class"].get(str(label)) or {}).get("accuracy") for entry in entries.values()]
        n = report["clean"]["per_class"][str(label)]["n"]
        rows.append({"name": words.class_name(names, label), "n": n, "cells": cells})
    few = sorted(rows, key=lambda row: row["cells"][-1] or 0)[:MANY] if len(rows) > MANY else rows
    return {"columns": list(entries), "rows": few, "left_out": len(rows) - len(few)}


def confusions(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A matrix for the clean images and one per attack; of many classes the most frequent confusions."""
    arrays, names = evaluation.arrays, evaluation.report.get("class_names") or ()
    if "label" not in arrays:
        return []
    label = arrays["label"]
    found, measured = [], ("clean", *evaluation.report["attacks"])
    seen = [label, *(arrays[key] for name in measured if (key := f"{name}/prediction") in arrays)]
    classes = max(*(int(one.max()) + 1 for one in seen), len(names))
    if classes > _MOST_CLASSES:
        raise ValueError(f"its labels and predictions are numbers up to {classes - 1:,}")
    for name in measured:
        if (prediction := arrays.get(f"{name}/prediction")) is None:
            continue
        if prediction.shape != label.shape:
            raise ValueError(f"{name}/prediction has shape {prediction.shape}, the labels {label.shape}")
        # An attack that came after others has seen what these left, and says nothing of the rest.
        looked = np.broadcast_to(arrays.get(f"{name}/seen", True), label.shape)
        left = "" if looked.all() else f", the {looked.sum()} images that were left"
        found.append({"title": printable(name) + left} | _matrix(label[looked], prediction[looked], classes, names))
    return found


def _matrix(label: np.ndarray, prediction: np.ndarray, classes: int, names: Sequence[str]) -> dict[str, Any]:
    """How often a class is taken for which; a prediction of -1, of no finite logits, has a column of its own."""
    pairs = np.stack([label.astype(int), np.maximum(prediction.astype(int), -1)], -1)
    which, times = np.unique(pairs, axis=0, return_counts=True)
    columns = [*range(classes), *([-1] if (prediction < 0).any() else [])]
    counts = np.zeros((classes, len(columns)), int) if classes <= MANY else None
    if counts is not None:
        counts[tuple(which.T)] = times  # -1 is the last column
    frequent = sorted(((n, t, p) for (t, p), n in zip(which.tolist(), times.tolist(), strict=True) if t != p),
                      reverse=True)  # fmt: skip
    return {
        "counts": None if counts is None else counts.tolist(),
        "names": [words.class_name(names, k) for k in range(classes)],
        "columns": [words.class_name(names, k) for k in columns],
        "frequent": [f"{words.class_name(names, t)} → {words.class_name(names, p)}: {n}" for n, t, p in frequent[:10]],
    }


def gallery(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The first example of each class under each attack; an older evaluation has a picture of them instead."""
    found = []
    for name, entry in evaluation.report["attacks"].items():
        about = {"title": printable(name), "about": f"{words.threat(entry)}, {words.effort(entry)}"}
        examples = evaluation.examples.get(name, {}).get("sample")
        if examples:
            found.append(about | _cards(evaluation, examples, 10))
        elif content := sources.png(evaluation.folder / f"adversarial_{file_name(name)}.png"):
            found.append(about | {"png": images.data_uri(content)})
    return found


def hardest(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The examples whose loss rose most, and those that break at smaller radii already."""
    found = []
    for name in evaluation.report["attacks"]:
        examples = evaluation.examples.get(name, {}).get("hardest")
        early = _broken_early(name, evaluation.arrays)
        if not examples and not early:
            continue
        one: dict[str, Any] = {"title": printable(name), "early": early, "cards": []}
        if examples:
            one |= _cards(evaluation, examples, len(examples["clean"]))
            losses = _losses(name, evaluation.arrays)
            for card, identity, rise in zip(one["cards"], examples["id"], examples["rise"], strict=True):
                before, after = losses.get(int(identity), (None, None))
                card["number"] = int(identity)
                card["loss"] = f"loss +{float(rise):.3g}" if before is None else f"loss {before:.2g} → {after:.3g}"
        found.append(one)
    return found


def _cards(evaluation: Evaluation, examples: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    """The tiles of examples with what the model says about each."""
    found = images.gallery(dict(examples), count)
    names = evaluation.report.get("class_names") or ()
    told = (examples[key] for key in ("labels", "clean_predictions", "adversarial_predictions"))
    for card, truth, before, after in zip(found["cards"], *told, strict=False):
        card |= {
            "truth": words.class_name(names, int(truth)),
            "before": words.class_name(names, int(before)),
            "after": words.class_name(names, int(after)),
            "kind": "lost" if before != truth else "right" if after == truth else "wrong",
        }
    return found


def _losses(name: str, arrays: Mapping[str, np.ndarray]) -> dict[int, tuple[float, float]]:
    """The loss of each example by its id, clean and attacked."""
    known = [arrays.get(key) for key in ("id", "clean/loss", f"{name}/loss")]
    if any(array is None for array in known):
        return {}
    return {int(i): (float(before), float(after)) for i, before, after in zip(*known, strict=True)}


def _broken_early(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Which examples break at the smallest radius of the curve that breaks any, if it is below the attack's."""
    multiples, broken = (arrays.get(f"{name}/curve_{key}") for key in ("multiple", "broken"))
    if multiples is None or broken is None or not {"id", "label", "clean/prediction"} <= arrays.keys():
        return ""
    right = arrays["clean/prediction"] == arrays["label"]
    for i in np.argsort(multiples):
        if 0 < multiples[i] < 1 and (lost := broken[i] & right).any():
            ids = arrays["id"][lost]
            more = " and others" if len(ids) > _MOST_IDS else ""
            shown = ", ".join(map(str, ids[:_MOST_IDS]))
            count = "1 image breaks" if len(ids) == 1 else f"{len(ids)} images break"
            return f"{count} already at {multiples[i]:g} × the radius: number {shown}{more}."
    return ""


def universal(memory: Any, spec: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any]:
    """The universal perturbations of a point: one, or one towards each class.

    Args:
      memory: what the point kept: δ, or a dict of deltas and images.
      spec: the entry of the point in the config.
      names: of the classes.
    """
    targeted = isinstance(memory, Mapping)
    delta = np.asarray(memory["deltas"] if targeted else memory, np.float32)
    space, target = spec.get("perturbation"), spec.get("target", -1)
    about = words.threat({"threat": {k: spec.get(k, "") for k in ("perturbation", "norm", "radius")}})
    found: dict[str, Any] = {"about": about, "cards": []}
    if delta.ndim != 4 or (space, delta.shape[-1]) not in (("additive", 1), ("additive", 3), ("flow", 2)):
        return found | {"missing": f"δ of {space}, of shape {list(delta.shape)}, has no picture."}
    magnify, stride = drawing.arrow_scale(delta) if space == "flow" else (1.0, 1)
    scale = float(np.abs(delta).max()) or 1.0
    found["scale"] = f"wedges × {magnify:.3g}" if space == "flow" else f"±{scale:.2g}"
    for i, one in enumerate(delta[:MANY]):
        if space == "flow":
            plain = images.image(np.full((*one.shape[:2], 1), 0.93))
            card = {"pale": plain, "arrows": images.arrows(one, magnify, stride)}
        else:
            card = {"difference": images.difference(one, scale)}
        towards = target if isinstance(target, int) and target >= 0 else i
        name = f"towards {words.class_name(names, towards)}" if targeted else "all images"
        found["cards"].append(card | {"name": name})
    return found
