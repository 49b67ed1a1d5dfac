"""What attacks cost, derived from their settings: nothing is measured, and an example that stops early costs less."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from robust_jax.attacks import ATTACKS
from robust_jax.attacks.auto import DRAWS, auto_attack, parts
from robust_jax.threat_models import ThreatModel


class Cost(NamedTuple):
    """At most so much for each image.

    Attributes:
      forwards: forward passes, those that gradients begin with among them.
      gradients: backward passes.
    """

    forwards: int
    gradients: int


def cost(
    attack: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    threat: ThreatModel,
    image_shape: tuple[int, ...],
    classes: int,
) -> Cost | None:
    """The cost of an attack, untargeted, for each image; None where it is not known.

    Args:
      attack: one of `ATTACKS`.
      settings: the options that are not left at their defaults.
      threat: perturbation, norm and radius.
      image_shape: (H, W, C).
      classes: the number of logits.
    """
    if attack not in ATTACKS.values():
        return None
    parameters = inspect.signature(attack).parameters.values()
    o = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(settings)
    if attack is auto_attack:
        return _of_parts(o, threat, image_shape, classes)
    others = min(o.get("candidates", 10), classes - 1)
    runs, steps = o.get("restarts", 1), o.get("steps", 1)
    pixels = math.prod(image_shape)
    best = int(o.get("keep", "best") == "best")  # δ = 0 is looked at
    table: dict[str, Callable[[], Cost]] = {
        "pgd": lambda: Cost(runs * (steps + 1) + best, runs * steps),
        "fgsm": lambda: Cost(2, 1),
        "spsa": lambda: Cost(steps * (2 * o["samples"] + 1) + 1 + best, 0),
        "apgd": lambda: Cost(1 + runs * (steps + 1), runs * steps),
        "apgd_targeted": lambda: Cost(2 + runs * others * (steps + 1), runs * others * steps),
        "square": lambda: Cost(1 + o["queries"], 0),
        "random_search": lambda: Cost(1 + o["samples"], 0),
        "grid": lambda: Cost(1 + math.prod(o["points"]), 0),
        "uniform_noise": lambda: Cost(1, 0),
        "deepfool": lambda: Cost(1 + 2 * steps, steps * others),
        "adef": lambda: Cost(2 + 2 * steps, steps * others),
        "fab": lambda: Cost(2 + 2 * runs * steps, runs * steps * others),
        "fab_targeted": lambda: Cost(2 + 2 * runs * others * steps, runs * others * steps),
        "carlini_wagner": lambda: Cost(3 + steps * o["binary_search_steps"], others + steps * o["binary_search_steps"]),
        "ddn": lambda: Cost(4 + steps, others + steps),
        "ead": lambda: Cost(3 + 2 * steps * o["binary_search_steps"], others + steps * o["binary_search_steps"]),
        "stadv": lambda: Cost(3 + 2 * steps, 1 + steps),
        "jsma": lambda: Cost(1 + 2 * (o["max_pixels"] // 2), 2 * (o["max_pixels"] // 2)),
        # Passes over ever fewer pixels, if each puts back only one.
        "pointwise": lambda: Cost(1 + o["draws"] * o["levels"] + pixels * (pixels + 1) // 2, 0),
    }
    same = {"nes": "spsa", "apgd_dlr": "apgd", "gaussian_noise": "uniform_noise"}
    name = same.get(attack.__name__, attack.__name__)
    return table[name]() if name in table else None


def _of_parts(o: Mapping[str, Any], threat: ThreatModel, image_shape: tuple[int, ...], classes: int) -> Cost:
    """Of AutoAttack, with its own look at the clean images."""
    forwards, gradients = 1, 0
    for part in parts(o["version"], threat, classes, o["steps"], o["queries"]):
        attack, settings = (part.func, part.keywords) if isinstance(part, partial) else (part, {})
        found = cost(attack, settings, threat=threat, image_shape=image_shape, classes=classes)
        assert found
        forwards, gradients = forwards + found.forwards, gradients + found.gradients
    draws = DRAWS if o["version"] == "rand" else 1
    return Cost(draws * forwards, draws * gradients)
