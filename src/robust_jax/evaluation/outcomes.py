"""Results of `robust_jax.robustness`, per example."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from robust_jax.evaluation.attack import Attack
from robust_jax.options import shown


@dataclasses.dataclass
class Outcome:
    """What one attack did to each of n examples.

    Attributes:
      attack: the attack.
      broken: `[n]`, misclassified either clean or at the adversarial image.
      prediction: `[n]`, the class predicted for the adversarial image; -1 if its logits are not finite.
      loss: `[n]`, the cross-entropy of the adversarial image.
      size: `[n]`, ‖δ / radius‖, the largest over the curve: at most 1 inside the ball.
      excess: `[n]`, the largest difference of a pixel from T(x, δ) clipped to [0, 1], the largest over the curve.
      curve: multiple of the radius -> `broken` at that radius.
      seconds: wall-clock time of all radii, compilation included.
      sample: a few examples to draw, as arguments of `pictures.adversarial_grid`; empty if the attack saw none.
      seen: `[n]`, the examples that the attack was tried on; the others count as broken. None: all.
      after: the names of the attacks before this one, if it was tried only on correctly classified examples that those
        did not break; otherwise None.
      hardest: the broken examples whose loss rose most, with their ids and the rise, in the form of `sample`.
      weights: a checksum of the network's; "" if it is a function that may read anything.
    """

    attack: Attack
    broken: Bool[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]
    excess: Float[np.ndarray, " n"]
    curve: dict[float, Bool[np.ndarray, " n"]]
    seconds: float
    sample: dict[str, Any]
    seen: Bool[np.ndarray, " n"] | None = None
    after: tuple[str, ...] | None = None
    hardest: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""

    def __repr__(self) -> str:
        return f"Outcome({self.attack!r}, robust {shown.share(~self.broken)}, {self.seconds:.1f} s)"


def contradiction(outcome: Outcome, measured: PerExample, seen: Bool[np.ndarray, " n"]) -> str:
    """What in a stored outcome cannot be true of the examples that were measured; "" if nothing is.

    Which examples are broken follows from their labels, the clean predictions, which were computed again, and the
    predictions under attack.

    Args:
      outcome: of an attack that ran before.
      measured: the clean results.
      seen: the examples that the attack would be tried on now.
    """
    arrays = {k: getattr(outcome, k) for k in ("broken", "prediction", "loss", "size", "excess")}
    arrays |= {f"curve at {m:g}": broken for m, broken in outcome.curve.items()}
    arrays |= {} if outcome.seen is None else {"seen": outcome.seen}
    for name, array in arrays.items():
        if np.shape(array) != seen.shape:
            return f"{name} has shape {np.shape(array)}, and there are {len(seen)} examples"
    wrong = ~measured.correct
    lost = wrong | ~seen
    checks = {
        "other examples were seen": outcome.seen is None or (outcome.seen == seen).all(),
        "broken contradicts the predictions": (outcome.broken == (lost | (outcome.prediction != measured.label))).all(),
        "an example that was not seen changed": (outcome.prediction == measured.prediction)[~seen].all(),
        "the curve contradicts the predictions": all((broken | ~lost).all() for broken in outcome.curve.values()),
        "the curve contradicts the radius": (outcome.curve.get(1.0, outcome.broken) == outcome.broken).all(),
        "the curve contradicts the clean accuracy": (outcome.curve.get(0.0, wrong) == wrong).all(),
    }  # fmt: skip
    return next((problem for problem, holds in checks.items() if not holds), "")


@dataclasses.dataclass(repr=False)
class PerExample:
    """The result of `robustness`; arrays have one entry per example, in the order of the batches.

    Attributes:
      id: `[n]`.
      label: `[n]`, the true classes.
      prediction: `[n]`, the classes predicted for the clean images; -1 if the logits are not finite.
      loss: `[n]`, the cross-entropy of the clean images.
      attacks: NAME -> what the attack did.
      logits_fn: the model that was measured, a pytree; None if it is not at hand.
      images: the first few images, for signs of masked gradients in what the model says about them.
      pixels: `[n]`, checksums of the images, which every attack is to be given again; None if they are not known.
      precision: of the matrix products, with which signs are looked for too.
    """

    id: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    attacks: dict[str, Outcome]
    logits_fn: Any = dataclasses.field(default=None, repr=False, compare=False)
    images: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    pixels: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    precision: str = dataclasses.field(default="float32", init=False, compare=False)

    def __repr__(self) -> str:
        shares = {"clean": self.correct} | {name: ~outcome.broken for name, outcome in self.attacks.items()}
        shown = ", ".join(f"{name} {100 * robust.mean():.1f}%" for name, robust in shares.items())
        return f"PerExample({len(self.label)} examples: {shown})"

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """`[n]`, whether the clean image is classified correctly."""
        return self.prediction == self.label

    def arrays(self) -> dict[str, np.ndarray]:
        """All results as named arrays, as in `per_example.npz`: `NAME/broken`, `NAME/loss`, ..."""
        flat = {
            "id": self.id,
            "label": self.label,
            "clean/prediction": self.prediction,
            "clean/loss": self.loss,
        }
        for name, o in self.attacks.items():
            flat |= {f"{name}/{k}": getattr(o, k) for k in ("broken", "prediction", "loss", "size")}
            if o.seen is not None and o.after is not None:
                flat[f"{name}/seen"] = o.seen
            if o.curve:
                flat[f"{name}/curve_multiple"] = np.asarray(list(o.curve))
                flat[f"{name}/curve_broken"] = np.stack(list(o.curve.values()))
        return flat
