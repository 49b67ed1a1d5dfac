"""From examples to numbers: accuracies with intervals, worst case, curves and warnings, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from robust_jax import masking, threat_models
from robust_jax.robustness import PerExample

BALL, BOX = 1.0001, 1e-5
"""The largest ‖δ / radius‖, and distance from T(x, δ) in the box, that rounding alone explains."""


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; (0, 1) where n = 0.

    ``(p + z²/2n ± z sqrt(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`` with p = successes / n: unlike
    p ± z s it stays inside [0, 1] and keeps a width at p = 0 and 1.

    Raises:
      ValueError: successes outside 0..n, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(
            f"wilson_interval({successes}, {n}, {confidence}): successes must be in 0..n, and "
            "confidence between 0 and 1"
        )
    if n == 0:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf(0.5 + confidence / 2), successes / n
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((p + z * z / (2 * n) + side) / (1 + z * z / n) for side in (-half, half))
    # At the ends the formula is 0 and 1 exactly, but for rounding.
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def summarise(measured: PerExample) -> dict[str, Any]:
    """Accuracies with 95% Wilson intervals, as in `evaluation.json`.

    `worst_case` counts an example as robust where no attack breaks it at its own radius: point by
    point, so it is at most the least of the attacks' accuracies. An attack that only saw what others left (`after`
    them, `seen` examples) has the accuracy under it and them together, of all `n` examples; its own is not known.

    Returns:
      A dict of clean, attacks, worst_case and warnings, ready for JSON.
    """
    correct, labels = measured.correct, measured.label
    attacks = {}
    for name, o in measured.attacks.items():
        attacks[name] = _counted(~o.broken, labels) | {
            "threat": {"perturbation": o.attack.threat.perturbation.name}
            | {k: plain(getattr(o.attack.threat, k)) for k in ("norm", "radius")},
            "settings": plain(o.attack.all_settings()),
            "seconds": round(o.seconds, 3),
            # Checked against BALL and BOX in `_warnings`; strings where they are not finite.
            "largest": plain({"size": float(o.size.max()), "excess": float(o.excess.max())}),
        }
        if o.seen is not None and o.after is not None:
            # The accuracy is of this attack and those before it together.
            attacks[name] |= {"seen": int(o.seen.sum()), "after": list(o.after)}
        if o.curve:
            rates = [_counted(~broken) for broken in o.curve.values()]
            attacks[name]["curve"] = {
                "multiple": list(o.curve),
                "radius": [plain(threat_models.scaled(o.attack.threat, m).radius) for m in o.curve],
                "accuracy": [rate["accuracy"] for rate in rates],
                "interval": [rate["interval"] for rate in rates],
            }
    robust = correct & ~np.any([o.broken for o in measured.attacks.values()] or [~correct], axis=0)
    return {
        "clean": _counted(correct, labels),
        "attacks": attacks,
        "worst_case": _counted(robust, labels) | {"attacks": list(attacks)},
        "warnings": _warnings(measured),
    }


def _counted(robust: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Accuracy, interval and n, and with labels the same for each class."""
    n, hits = len(robust), int(robust.sum())
    counted: dict[str, Any] = {
        "accuracy": hits / n if n else None,
        "interval": list(wilson_interval(hits, n)),
        "n": n,
    }
    if labels is not None:
        counted["per_class"] = {str(k): _counted(robust[labels == k]) for k in np.unique(labels)}
    return counted


def plain(value: Any) -> Any:
    """A value as JSON has it; functions by name, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    # Seven digits are all that a float32 radius has: 0.155 * 1.5 reads 0.2325.
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else str(value)
    return value


def _warnings(measured: PerExample) -> list[str]:
    """What makes these numbers doubtful, in words."""
    warnings = []
    if bad := int((measured.prediction < 0).sum()):
        warnings.append(f"clean: {bad} examples have non-finite logits; they count as wrong")
    for name, o in measured.attacks.items():
        if bad := int((o.prediction < 0).sum()):
            warnings.append(f"{name}: {bad} examples have non-finite logits; they count as broken")
        if not (largest := float(o.size.max())) <= BALL:
            warnings.append(f"{name}: left its ball, the largest perturbation has {largest:.5g} x the radius")
        if not (largest := float(o.excess.max())) <= BOX:
            warnings.append(f"{name}: an image differs by {largest:.3g} from T(x, delta) clipped to [0, 1]")
        for low, high in pairwise(o.curve):
            if fewer := masking.lead(o.curve[low], o.curve[high]):
                warnings.append(
                    f"{name}: {high:g} x the radius breaks {fewer} examples fewer than "
                    f"{low:g} x: the attack is too weak there (more steps or restarts would tell), "
                    "or gradients are masked"
                )
    return warnings + masking.compare(measured)
