"""Names in words, the same in all parts of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_jax.evaluation.table import effort_of, threat_of
from robust_jax.files import printable


def threat(entry: Mapping[str, Any]) -> str:
    """The threat model of an attack."""
    return tidy(threat_of(entry))


def tidy(text: str) -> str:
    """Printable text with single spaces."""
    return " ".join(printable(text).split())


def effort(entry: Mapping[str, Any]) -> str:
    """The attack and what it may spend."""
    return printable(effort_of(entry))


def class_name(names: Sequence[Any], label: int) -> str:
    """The name of a class, or its number if it has none; ? for -1, the class of logits that are not finite."""
    return "?" if label < 0 else printable(str(names[label])) if label < len(names) else str(label)
