"""How an attack is defined: one decorated function, with its family, cost and checks beside it.

Example, in a file of its own::

    @attack(family="black_box", cost=lambda options, problem: Cost(forwards=1, gradients=0))
    def darker(logits_fn, images, labels, threat, *, key, share: Fraction = 1.0):
        delta = threat_models.project(threat, -share * images)
        perturbed = clip_box(threat.perturbation.apply(images, delta))
        return AttackResult(perturbed, delta, losses.misclassified(logits_fn(perturbed), labels))

The same code checks the arguments whether the attack is called from Python or named in a config: arrays and threat
model by `robust_jax.checks`, each option by its type hint (`robust_jax.options`), the threat models that it supports by
its ``check``, and combinations of options by the attack itself.

The options of an attack are its keyword-only parameters, of which several attacks have more than ten: the signature is
what a config, the documentation and an editor read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from robust_jax import losses
from robust_jax.attacks import compiled
from robust_jax.attacks.result import AttackResult
from robust_jax.checks import check_batch, checked_logits
from robust_jax.losses import LossFn
from robust_jax.options import Convert, Range, check_call
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.per_example import check_key
from robust_jax.spaces.threat_models import ThreatModel

Function = TypeVar("Function", bound=Callable[..., AttackResult])

Family = Literal["ascent", "white_box", "boundary", "one_step", "black_box", "combined"]
"""How an attack searches, which `robust_jax.evaluation.masking` compares to find masked gradients:

- ascent: ascends a loss, and more steps (its option ``steps``) should break more;
- white_box: uses gradients otherwise, and does not stop at its first attempt;
- boundary: uses gradients, and stops as soon as it crosses the decision boundary;
- one_step: uses a single gradient;
- black_box: uses no gradients of the model;
- combined: runs several attacks.
"""

Loss = Annotated[str | LossFn, Convert(losses.get)]
"""An option for a loss: ``(logits, labels) -> [B]``, or a name in `losses.LOSSES`."""
Share = Annotated[float, Range(above=0, most=1)]
"""A number above 0, at most 1."""
OpenFraction = Annotated[float, Range(above=0, below=1)]
"""A number between 0 and 1, exclusive."""


class Cost(NamedTuple):
    """The largest cost of an attack per image, at one radius.

    Attributes:
      forwards: the number of forward passes, including those that gradients need.
      gradients: the number of backward passes.
    """

    forwards: int
    gradients: int


class Problem(NamedTuple):
    """What the cost of an attack depends on besides its options.

    Attributes:
      image_shape: (H, W, C).
      classes: the number of logits.
      threat: the ball.
    """

    image_shape: tuple[int, ...]
    classes: int
    threat: ThreatModel


CostFn = Callable[[SimpleNamespace, Problem], Cost]
"""``(options, problem) -> Cost``, the options as attributes."""
Check = Callable[[str, ThreatModel], None]
"""``(name, threat)``: raises ValueError, beginning with the name, for a threat model that is not supported."""


@dataclass(frozen=True)
class About:
    """What is known of an attack besides what it does.

    Attributes:
      family: how it searches.
      cost: its cost; None if it is not known.
      check: checks the threat model; None if any is supported.
    """

    family: Family
    cost: CostFn | None = None
    check: Check | None = None


@checks_arguments
def attack(
    *, family: Family, cost: CostFn | None = None, check: Check | None = None,
    checks_batch: bool | Callable[..., None] = True,
) -> Callable[[Function], Function]:  # fmt: skip
    """Makes a function ``(logits_fn, images, labels, threat, *, key, **options)`` an attack with checked arguments.

    Args:
      family: see `Family`.
      cost: see `About`.
      check: see `About`.
      checks_batch: see `checked`.
    """

    def decorate(function: Function) -> Function:
        found = checked(check=check, checks_batch=checks_batch)(function)
        found.about = About(family, cost, check)  # type: ignore[attr-defined]
        return found

    return decorate


def checked(
    *, check: Check | None = None, checks_batch: bool | Callable[..., None] = True, key_per_image: bool = True
) -> Callable[[Function], Function]:
    """Checks the arguments of a function like an attack before it is called; under `jax.jit` only shapes are known.

    Called outside of other transformations the function is compiled, see `robust_jax.attacks.compiled`.

    Args:
      check: see `About`.
      checks_batch: whether images, labels, model, threat model and key are checked. If ``logits_fn`` takes more than
        images, a function that is called with the same arguments, and checks them; or False if the function does all
        that itself: it then needs the values of arrays, and is not compiled.
      key_per_image: whether the key may be one per image.
    """

    def decorate(function: Function) -> Function:
        name = function.__name__

        @functools.wraps(function)
        def call(logits_fn: Any, images: Any, labels: Any, threat: Any, **options: Any) -> AttackResult:
            if checks_batch is True:
                check_batch(images, labels, compiled.shape_only(logits_fn, checked_logits(logits_fn)))
                check_threat(threat, images)
                if "key" in options:
                    check_key(options["key"], len(images) if key_per_image else None)
            if check is not None:
                check(name, threat)
            check_call(name, function, options)
            if not checks_batch:
                return function(logits_fn, images, labels, threat, **options)
            if callable(checks_batch):
                checks_batch(logits_fn, images, labels, threat, **options)
                return compiled.run(function, logits_fn, images, labels, threat, options)
            return compiled.run(on_checked, logits_fn, images, labels, threat, options)

        def on_checked(logits_fn: Any, *given: Any, **options: Any) -> AttackResult:
            return function(checked_logits(logits_fn), *given, **options)

        return call  # type: ignore[return-value]

    return decorate


def about(function: Callable[..., Any]) -> About | None:
    """What is known of an attack; None for a function that is not defined as one."""
    found = getattr(function, "about", None)
    return found if isinstance(found, About) else None


@checks_arguments
def cost_of(function: Callable[..., Any], settings: Mapping[str, Any], problem: Problem) -> Cost | None:
    """The largest cost of an untargeted attack, derived from its settings; None if it is not known.

    Nothing is measured, and an example that stops early costs less.

    Args:
      function: the attack.
      settings: the options that differ from their defaults.
      problem: images, classes and ball.
    """
    known = about(function)
    if known is None or known.cost is None:
        return None
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(settings)
    return known.cost(SimpleNamespace(**options), problem)
