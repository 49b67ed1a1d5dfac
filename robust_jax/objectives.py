"""Training objectives: named points and weighted terms, each term at a point.

A **point** is where the model is looked at: the clean images, randomly perturbed ones, attacked ones. It is computed
once, detached, and shared by all terms that name it. A **term** is a loss of one example at a point. The objective is
``Σ_terms weight * mean_i term_i``::

    points = {"warped": dict(kind="random", perturbation="flow", sigma=0.155)}
    terms = {
        "ce": dict(kind="cross_entropy", at="warped", weight=1.0),
        "fgr": dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=4.4),
    }
    total, outcome = make_objective(points, terms)(model, images, labels, keys)

For a number as weight, radius or sigma there may be ``dict(start=0.0, end=4.4, epochs=10.0)``: linear over the first
epochs, then constant.
A new method is a function in `robust_jax.points` or `robust_jax.terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax import gradients, losses, perturbations
from robust_jax.checks import check_options, choose, options_of
from robust_jax.perturbations import Images
from robust_jax.points import MEMORIES, POINTS, Examples, Found, Keys, Labels, Model
from robust_jax.terms import TERMS, Here, PerExample

SCHEDULE = ("start", "end", "epochs")
SCHEDULED = ("weight", "radius", "sigma")
CLASSIFYING = ("cross_entropy", "boosted_cross_entropy")


class Outcome(NamedTuple):
    """What a step reports: the mean of each term, unweighted, and the accuracy and state at one point."""

    terms: dict[str, Float[Array, ""]]
    accuracy: Float[Array, ""]
    state: Any


class Objective(NamedTuple):
    """A training objective; called as ``(model, images, labels, keys) -> (total, Outcome)`` it finds, then looks.

    Attributes:
      find: ``(model, images, labels, keys [B], memory=None, steps_done=0, epoch=0.0) -> {NAME: Found}``, the points,
        constants of the step. Keys are one an example, so that a batch cut over devices draws the same.
      loss: ``(model, found, labels, epoch=0.0) -> (total, Outcome)``. Accuracy and running statistics are those at the
        point of the first cross-entropy term by name, without one at the first point.
      remember: ``(examples, classes) -> memory`` before the first step; ``examples(n)`` are the first n training
        examples.
    """

    find: Callable[..., dict[str, Found]]
    loss: Callable[..., tuple[Float[Array, ""], Outcome]]
    remember: Callable[[Examples, int], dict[str, Any]]

    def __call__(self, model: Model, images: Images, labels: Labels, keys: Keys) -> tuple[Float[Array, ""], Outcome]:
        """The loss at the points, of an objective that remembers nothing."""
        return self.loss(model, self.find(model, images, labels, keys), labels)


def scheduled(option: Any, epoch: Any) -> Any:
    """An option's value at an epoch: ``start + (end - start) min(epoch / epochs, 1)`` of a schedule, else itself."""
    if not isinstance(option, Mapping):
        return option
    start, end, epochs = (option[name] for name in SCHEDULE)
    return start + (end - start) * jnp.minimum(epoch / epochs, 1.0)


def make_objective(points: Mapping[str, Any], terms: Mapping[str, Any]) -> Objective:
    """An objective from its description in plain data, as a config holds it.

    Args:
      points: NAME -> ``dict(kind=one of POINTS, **options)``. A point "clean" is always there.
      terms: NAME -> ``dict(kind=one of TERMS, at=a point's name, weight=1.0, **options)``. A term of weight 0 is
        left out, and costs nothing.

    Raises:
      ValueError: no term of a weight, a point named clean, or an unknown kind, point or option, listing the valid ones.
    """
    if "clean" in points:
        raise ValueError("points.clean: that is what the images themselves are called: give the point another name.")
    # By name, as in a ConfigDict: the same whichever order they were written in.
    points = {"clean": {"kind": "clean"}} | {name: dict(p) for name, p in sorted(points.items())}
    terms = {name: {"at": "clean", "weight": 1.0} | dict(t) for name, t in sorted(terms.items())}
    for kind, entries, known, own in (
        ("points", points, POINTS, set()), ("terms", terms, TERMS, {"at", "weight"}),
    ):  # fmt: skip
        for name, entry in entries.items():
            check_options(f"{kind}.{name}", entry, known, own)
            for option, value in entry.items():
                if isinstance(value, Mapping):
                    _check_schedule(f"{kind}.{name}.{option}", option, value)
    looks = {name: _looks(name, term, points) for name, term in terms.items()}
    terms = {name: term for name, term in terms.items() if term["weight"]}
    if not terms:
        raise ValueError(f"an objective needs at least one term whose weight is not 0: kinds are {sorted(TERMS)}.")
    # Only points that a term looks at are computed; every point has a key of its own, by its place in the list.
    used = {n: i for i, n in enumerate(points) if any(n in looks[t].values() for t in terms)}
    classifying = [term["at"] for term in terms.values() if term["kind"] in CLASSIFYING]
    first = [*classifying, *used][0]

    def find(
        model: Model, images: Images, labels: Labels, keys: Keys, memory: Mapping[str, Any] | None = None,
        steps_done: Any = 0, epoch: Any = 0.0,
    ) -> dict[str, Found]:  # fmt: skip
        found = {}
        for name, index in used.items():
            options = {k: scheduled(v, epoch) for k, v in points[name].items() if k != "kind"}
            if points[name]["kind"] in MEMORIES:
                options |= {"memory": (memory or {})[name], "steps_done": steps_done}
            point_keys = perturbations.fold_keys(keys, index)
            found[name] = POINTS[points[name]["kind"]](model, images, labels, point_keys, **options)
        return jax.lax.stop_gradient(found)

    def loss(
        model: Model, found: Mapping[str, Found], labels: Labels, epoch: Any = 0.0
    ) -> tuple[Float[Array, ""], Outcome]:
        seen: dict[str, Here] = {}
        states: dict[str, Any] = {}
        for name in used:
            seen[name], states[name] = look(model, found[name], labels)
        values = {}
        for name, term in terms.items():
            options = {k: scheduled(v, epoch) for k, v in term.items() if k not in ("kind", "at", "weight")}
            here, *others = (seen[point] for point in looks[name].values())
            values[name] = TERMS[term["kind"]](
                here, **options | dict(zip([*looks[name]][1:], others, strict=True))
            ).mean()
        total = sum(scheduled(terms[name]["weight"], epoch) * value for name, value in values.items())
        accuracy = (seen[first].logits.argmax(-1) == labels).mean()
        return total, Outcome(values, accuracy, states[first])

    def remember(examples: Examples, classes: int) -> dict[str, Any]:
        options = {n: {k: v for k, v in points[n].items() if k != "kind"} for n in used}
        kinds = {n: points[n]["kind"] for n in used if points[n]["kind"] in MEMORIES}
        return {n: MEMORIES[kind](examples, classes, **options[n]) for n, kind in kinds.items()}

    return Objective(find, loss, remember)


def _looks(name: str, term: Mapping[str, Any], points: Mapping[str, Any]) -> dict[str, str]:
    """The points that a term looks at: option -> point."""
    options = options_of(TERMS[term["kind"]])
    named = ["at", *(option for option, p in options.items() if p.annotation == "Here")]
    for option in named:
        choose(f"terms.{name}.{option}", term[option], points)
    return {option: term[option] for option in named}


def _check_schedule(path: str, option: str, schedule: Mapping[str, Any]) -> None:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in schedule.values())
    if option not in SCHEDULED or sorted(schedule) != sorted(SCHEDULE) or not numbers or not schedule["epochs"] > 0:
        raise ValueError(
            f"{path}={dict(schedule)}: a schedule is of {list(SCHEDULED)}, with the numbers {list(SCHEDULE)}, "
            f"epochs above 0."
        )


def look(model: Model, found: Found, labels: Labels) -> tuple[Here, Any]:
    """Runs the model on a point: one pass for the loss, its image gradient and the new state."""

    def loss_fn(x: Images) -> tuple[PerExample, Any]:
        logits, state = model.train(x)
        return losses.cross_entropy(logits, labels), (logits, state)

    loss, gradient, (logits, state) = gradients.value_and_gradient(loss_fn, found.images, has_aux=True)
    return Here(found.images, found.delta, labels, logits, loss, gradient, lambda x: loss_fn(x)[0]), state
