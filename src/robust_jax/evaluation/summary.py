"""From examples to numbers: accuracies with intervals, worst case, curves and warnings, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from robust_jax.evaluation import masking
from robust_jax.evaluation.outcomes import Outcome, PerExample
from robust_jax.evaluation.statistics import significant_lead, wilson_interval
from robust_jax.files import plain
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import threat_models

BALL, BOX = 1.0001, 1e-5
"""The largest ‖δ / radius‖, and the largest distance from T(x, δ) clipped to [0, 1], that rounding alone explains."""


class Summary(dict[str, Any]):
    """The content of an ``evaluation.json``: a dict that is shown by its accuracies."""

    def __or__(self, other: Any) -> Summary:  # type: ignore[override]
        return Summary({**self, **other})

    def __repr__(self) -> str:
        entries = (
            {"clean": self.get("clean")} | dict(self.get("attacks") or {}) | {"worst case": self.get("worst_case")}
        )
        known = [f"{name} {100 * e['accuracy']:.1f}%" for name, e in entries.items() if e and e["accuracy"] is not None]
        warnings = len(self.get("warnings") or ())
        told = f"; {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
        return f"Summary({', '.join(known)}{told})"


@checks_arguments
def summarise(measured: PerExample, signs: Sequence[Callable[..., list[str]]] = ()) -> Summary:
    """Accuracies with 95% Wilson intervals, as in `evaluation.json`.

    `worst_case` counts an example as robust if no attack breaks it at the attack's own radius: example by example, so
    it is at most the smallest of the attacks' accuracies. For an attack that only saw what others left (`after` them,
    `seen` examples) the accuracy is that under all of them together, over all `n` examples; its own is unknown.

    Args:
      measured: the result of `robustness`.
      signs: of masked gradients, besides the built-in ones; see `masking.compare` and `masking.glance`, which looks at
        the model's logits and gradients at the first images.

    Returns:
      A dict of clean, attacks, worst_case and warnings, ready for JSON; it prints as its accuracies.
    """
    correct, labels = measured.correct, measured.label
    attacks = {name: _attack(outcome, labels) for name, outcome in measured.attacks.items()}
    robust = correct & ~np.any([o.broken for o in measured.attacks.values()] or [~correct], axis=0)
    return Summary({
        "clean": _counted(correct, labels),
        "attacks": attacks,
        "worst_case": _counted(robust, labels) | {"attacks": list(attacks)},
        "warnings": _warnings(measured) + masking.compare(measured, signs) + masking.glance(measured, signs),
    })  # fmt: skip


def _attack(outcome: Outcome, labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """The entry of one attack."""
    threat = outcome.attack.threat
    entry = _counted(~outcome.broken, labels) | {
        "threat": outcome.attack.described_threat(),
        "settings": plain(outcome.attack.all_settings()),
        "seconds": round(outcome.seconds, 3),
        # Compared with BALL and BOX in `_warnings`; strings if they are not finite.
        "largest": plain({"size": float(outcome.size.max()), "excess": float(outcome.excess.max())}),
    }
    if outcome.attack.source:  # another model of the same name would be another attack
        entry["source_weights"] = outcome.attack.source.weights
    if outcome.seen is not None and outcome.after is not None:
        # The accuracy is that under this attack and those before it together.
        entry |= {"seen": int(outcome.seen.sum()), "after": list(outcome.after)}
    if outcome.curve:
        rates = [_counted(~broken) for broken in outcome.curve.values()]
        entry["curve"] = {
            "multiple": list(outcome.curve),
            "radius": [plain(threat_models.scaled(threat, m).radius) for m in outcome.curve],
            "accuracy": [rate["accuracy"] for rate in rates],
            "interval": [rate["interval"] for rate in rates],
        }
    return entry


def _counted(robust: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None = None) -> dict[str, Any]:
    """Accuracy, interval and n, and, given labels, the same per class."""
    n, hits = len(robust), int(robust.sum())
    counted: dict[str, Any] = {
        "accuracy": hits / n if n else None,
        "interval": list(wilson_interval(hits, n)),
        "n": n,
    }
    if labels is not None:
        counted["per_class"] = {str(k): _counted(robust[labels == k]) for k in np.unique(labels)}
    return counted


def _warnings(measured: PerExample) -> list[str]:
    """What makes these numbers doubtful: non-finite logits, δ outside the ball, curves that rise."""
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
            if fewer := significant_lead(o.curve[low], o.curve[high]):
                warnings.append(
                    f"{name}: {high:g} x the radius breaks {fewer} examples fewer than "
                    f"{low:g} x: the attack is too weak there (more steps or restarts would tell), "
                    "or gradients are masked"
                )
    return warnings
