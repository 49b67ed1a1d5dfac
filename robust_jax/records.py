"""What an evaluation is given and what it finds, example by example: records of `robust_jax.robustness`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from robust_jax.threat_models import ThreatModel


class Source(NamedTuple):
    """Another model, whose adversarial images are tried on the one evaluated: its name in reports, and its logits."""

    name: str
    logits_fn: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack to evaluate with: what runs, in which ball, how hard, and at which other radii.

    Attributes:
      function: any attack of `robust_jax.attacks`, or one like them:
        `(logits_fn, images, labels, threat, *, key, **settings)`, jittable, one key an example,
        whose result has `images` and `delta`.
      threat: the ball. Its radius is traced, so that all radii of a curve share one compilation.
      settings: keyword arguments of `function`, hashable. A `step_size` scales with the radius.
      curve: multiples of the radius to measure the accuracy at, besides 1; 0 is the clean accuracy.
      source: the model that is attacked, where it is not the one evaluated: a transfer attack.

    Raises:
      ValueError: a multiple that is negative or not finite.
    """

    function: Callable[..., Any]
    threat: ThreatModel
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curve: Sequence[float] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        if any(not np.isfinite(m) or m < 0 for m in self.curve):
            raise ValueError(f"curve={self.curve!r}: give multiples >= 0 of the radius, such as (0, 0.5, 1, 2)")

    def multiples(self) -> list[float]:
        """Of the radius, at which it runs."""
        return sorted({1.0, *map(float, self.curve)} - {0.0})

    def all_settings(self) -> dict[str, Any]:
        """The settings with the function's defaults filled in: what really ran, for the report."""
        parameters = inspect.signature(self.function).parameters.values()
        named = {p.name: p.default for p in parameters if p.default is not p.empty}
        source = {"source": self.source.name} if self.source else {}
        return {"attack": getattr(self.function, "__name__", "attack")} | source | named | dict(self.settings)


@dataclasses.dataclass
class Outcome:
    """What one attack did to every example.

    Attributes:
      attack: the attack.
      broken: `[n]`, wrong clean or at the attack's image.
      prediction: `[n]` at the attack's image, -1 where the logits are not finite.
      loss: `[n]` cross-entropy there.
      size: `[n]`, the norm of δ / radius, the largest over the curve: at most 1 in the ball.
      excess: `[n]`, how far the image differs from T(x, δ) clipped to [0, 1], likewise.
      curve: multiple of the radius -> `broken` there.
      seconds: wall clock, compilation included, all radii.
      sample: a few examples to picture, as `pictures.adversarial_grid` takes them; empty where none was seen.
      seen: `[n]`, what the attack was tried on; the rest counts as broken. None: all.
      after: where not all was, the attacks before it, whose successes (and what is wrong clean) it did not see.
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


@dataclasses.dataclass
class PerExample:
    """The result of `robustness`; arrays have one entry an example, in the order of the batches."""

    id: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    attacks: dict[str, Outcome]

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """Where the clean image is classified correctly."""
        return self.prediction == self.label

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, as in `per_example.npz`: `NAME/broken`, `NAME/loss`, ..."""
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
