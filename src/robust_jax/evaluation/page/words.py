"""Attacks in words, the same on the page and in its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_jax.files import printable


def threat(entry: Mapping[str, Any]) -> str:
    """The threat model, "flow linf 0.155 px"."""
    given = entry.get("threat") or {}
    parts = [given.get("perturbation", "?"), _joined(given.get("norm", "")), _joined(given.get("radius", ""))]
    return printable(" ".join(str(part) for part in (*parts, given.get("unit", "")) if part != ""))


def effort(entry: Mapping[str, Any]) -> str:
    """The attack and what it may spend, "pgd, 20 steps × 3 restarts"."""
    settings = entry.get("settings") or {}
    parts = [str(settings.get("attack", "?"))]
    parts += [f"{settings[key]} {key}" for key in ("steps", "queries", "epochs") if isinstance(settings.get(key), int)]
    text = ", ".join(parts)
    if isinstance(settings.get("restarts"), int) and settings["restarts"] != 1:
        text += f" × {settings['restarts']} restarts"
    if "source" in settings:
        text += f", made on {settings['source']}"
    return printable(text + (", on what was left" if entry.get("after") else ""))


def _joined(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(map(_joined, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def class_name(names: Sequence[Any], label: int) -> str:
    """The name of a class, or its number if it has none; ? for -1, the class of logits that are not finite."""
    return "?" if label < 0 else printable(str(names[label])) if label < len(names) else str(label)
