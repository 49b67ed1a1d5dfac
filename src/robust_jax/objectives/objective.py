"""Training objectives: named points and weighted terms, each term at a point.

A **point** is a batch of images at which the model is run: the clean images, randomly perturbed ones, attacked ones. It
is computed once per step, is a constant of the step, and is shared by all terms that name it. A **term** is a loss of
each example at a point. The objective is ``Σ_terms weight * mean_i term_i``::

    points = {"warped": dict(kind="random", perturbation="flow", sigma=0.155)}
    terms = {
        "ce": dict(kind="cross_entropy", at="warped", weight=1.0),
        "fgr": dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=4.4),
    }
    total, outcome = make_objective(points, terms)(model, images, labels, keys)

A weight, radius or sigma may be a schedule, ``dict(start=0.0, end=4.4, epochs=10.0)``: linear over the first epochs,
then constant. A new method is a function, see `robust_jax.objectives.define`; ``kind="module:name"`` names one of your
own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax import losses
from robust_jax.checks import check_images
from robust_jax.extensions import choose
from robust_jax.objectives.define import check_labels, classifies, memory_of
from robust_jax.objectives.inputs import Examples, Keys, Labels, Mode, Model, as_model, classes_of
from robust_jax.objectives.points import POINTS, Point
from robust_jax.objectives.terms import TERMS, PerExample, PointOutput, every_term
from robust_jax.options import SCHEDULE, arguments, arguments_of, check_options, function_of, options_of, with_path
from robust_jax.options.hints import described
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import per_example
from robust_jax.spaces.perturbations import Images


class Outcome(NamedTuple):
    """What a step reports.

    Attributes:
      terms: the mean of each term, without its weight.
      accuracy: at the point of the first classifying term by name, or without one at the first point. Of soft labels
        the largest counts.
      state: the model's new state at the same point, such as running statistics.
    """

    terms: dict[str, Float[Array, ""]]
    accuracy: Float[Array, ""]
    state: Any


class _PointEntry(NamedTuple):
    """A point as a config describes it; its ``place`` among all points is folded into its keys."""

    path: str
    function: Callable[..., Point]
    options: dict[str, Any]
    place: int


class _TermEntry(NamedTuple):
    """A term as a config describes it: at a point, perhaps compared with others (option -> point), in a mode."""

    path: str
    function: Callable[..., PerExample]
    options: dict[str, Any]
    weight: Any
    at: str
    others: dict[str, str]
    mode: Mode


def scheduled(option: Any, epoch: Any) -> Any:
    """An option's value at an epoch: ``start + (end - start) min(epoch / epochs, 1)`` of a schedule, else itself."""
    if not isinstance(option, Mapping) or sorted(option) != sorted(SCHEDULE):
        return option
    start, end, epochs = (option[name] for name in SCHEDULE)
    return start + (end - start) * jnp.minimum(epoch / epochs, 1.0)


@dataclass(frozen=True, eq=False)
class Objective:
    """A training objective: called as ``(model, images, labels, keys) -> (total, Outcome)``; `make_objective` makes it.

    Attributes:
      points: those that terms name.
      terms: those whose weight is not 0.
      runs: the points at which the model is run, each in a mode; runs are shared by terms.
      reported: the point whose accuracy and state are reported, in train mode.
    """

    points: Mapping[str, _PointEntry]
    terms: Mapping[str, _TermEntry]
    runs: tuple[tuple[str, Mode], ...]
    reported: str

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the points that terms name."""
        return tuple(self.points)

    @property
    def remembering(self) -> tuple[str, ...]:
        """Those among them that carry something from step to step."""
        return tuple(name for name, entry in self.points.items() if memory_of(entry.function))

    def find(
        self, model: Model, images: Images, labels: Labels, keys: Keys, memory: Mapping[str, Any] | None = None,
        steps_done: Any = 0, epoch: Any = None, names: Sequence[str] | None = None,
    ) -> dict[str, Point]:  # fmt: skip
        """The points that terms name, constants of the step.

        Args:
          model: see `robust_jax.objectives.inputs.as_model`.
          images: ``[B, H, W, C]`` in [0, 1].
          labels: classes ``[B]``, or soft ones ``[B, K]`` if all points and terms take them.
          keys: one per example, so that the points do not depend on how a batch is split.
          memory: what `remember` gave, or the last step's points; needed by points that remember.
          steps_done: for these, how many steps were made before.
          epoch: where the schedules are; needed if there are any.
          names: some of the points alone.
        """
        model = as_model(model)
        epoch = self._epoch(epoch)
        keys = per_example.example_keys(keys, len(images))

        def one(name: str, entry: _PointEntry) -> Point:
            check_labels(entry.function, labels)
            options = _arguments(entry, epoch)
            if memory_of(entry.function):
                if memory is None or name not in memory:
                    raise ValueError("it remembers: give find(..., memory=objective.remember(examples, classes)).")
                options |= {"memory": memory[name], "steps_done": steps_done}
            point = entry.function(model, images, labels, per_example.fold_keys(keys, entry.place), **options)
            if not isinstance(point, Point):
                raise ValueError(
                    f"it returned {type(point).__name__}: return robust_jax.objectives.Point(images, delta)."
                )
            check_images(point.images, in_box=False)
            return point

        wanted = {name: self.points[name] for name in (self.points if names is None else names)}
        return jax.lax.stop_gradient({name: with_path(entry.path, one, name, entry) for name, entry in wanted.items()})

    def loss(
        self, model: Model, found: Mapping[str, Point], labels: Labels, epoch: Any = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms at points that were found, and what a step reports."""
        model = as_model(model)
        epoch = self._epoch(epoch)
        outputs: dict[tuple[str, Mode], PointOutput] = {}
        states: dict[tuple[str, Mode], Any] = {}
        for point, mode in self.runs:
            outputs[point, mode], states[point, mode] = run_at(model, found[point], labels, mode)

        def one(entry: _TermEntry) -> Float[Array, ""]:
            check_labels(entry.function, labels)
            others = {option: outputs[point, entry.mode] for option, point in entry.others.items()}
            value = entry.function(outputs[entry.at, entry.mode], **_arguments(entry, epoch), **others)
            if not isinstance(value, jax.Array) or value.shape != labels.shape[:1]:
                raise ValueError(
                    f"it returned {described(value)}: return one number per example, an array {labels.shape[:1]}."
                )
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(f"it returned {described(value)}: return floats, which have a gradient.")
            return value.mean()

        values = {name: with_path(entry.path, one, entry) for name, entry in self.terms.items()}
        total = sum(scheduled(self.terms[name].weight, epoch) * value for name, value in values.items())
        accuracy = (losses.predicted(outputs[self.reported, "train"].logits) == classes_of(labels)).mean()
        return total, Outcome(values, accuracy, states[self.reported, "train"])

    def _epoch(self, epoch: Any) -> Any:
        """The epoch, which an objective without schedules need not be given."""
        if epoch is not None:
            return epoch
        given = {f"{entry.path}.{name}": value for entries in (self.points, self.terms)
                 for entry in entries.values() for name, value in entry.options.items()}  # fmt: skip
        given |= {f"{term.path}.weight": term.weight for term in self.terms.values()}
        if moving := [path for path, value in given.items() if isinstance(value, Mapping)]:
            raise ValueError(f"{moving[0]} has a schedule: give epoch=..., the number of epochs that are done.")
        return 0.0

    def remember(self, examples: Examples, classes: int) -> dict[str, Any]:
        """The memory before the first step; ``examples(n)`` are the first n training examples."""

        def one(entry: _PointEntry) -> Any:
            memory = memory_of(entry.function)
            return memory and memory(examples, classes, **_arguments(entry, 0.0))

        return {name: with_path(self.points[name].path, one, self.points[name]) for name in self.remembering}

    def __call__(
        self, model: Model, images: Images, labels: Labels, keys: Keys, epoch: Any = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The loss at the points, for an objective without memory; ``epoch`` is where its schedules are."""
        return self.loss(model, self.find(model, images, labels, keys, epoch=epoch), labels, epoch)


@checks_arguments
def make_objective(points: Mapping[str, Mapping[str, Any]], terms: Mapping[str, Mapping[str, Any]]) -> Objective:
    """An objective from its description in plain data, as a config holds it.

    Args:
      points: NAME -> ``dict(kind=a name in POINTS or module:name, **options)``. The point "clean" always exists; those
        that no term names are left out.
      terms: NAME -> ``dict(kind=a name in TERMS or module:name, at=a point's name, weight=1.0, **options)``. A term of
        weight 0 is left out, and costs nothing.

    Raises:
      ValueError: no term with a weight, a point named clean, or an unknown kind, point or option, with the valid ones.
    """
    if "clean" in points:
        raise ValueError("points.clean: that is the name of the clean images: give the point another name.")
    # Sorted, as in a ConfigDict: the order in which they were written does not matter.
    at_points = {
        name: _point_entry(f"points.{name}", entry, place)
        for place, (name, entry) in enumerate([("clean", {"kind": "clean"}), *sorted(points.items())])
    }
    all_terms = {name: _term_entry(f"terms.{name}", entry, at_points) for name, entry in sorted(terms.items())}
    at_terms = {name: entry for name, entry in all_terms.items() if entry.weight}
    if not at_terms:
        raise ValueError(f"an objective needs at least one term whose weight is not 0: kinds are {sorted(TERMS)}.")
    named = {point for entry in at_terms.values() for point in (entry.at, *entry.others.values())}
    used = {name: entry for name, entry in at_points.items() if name in named}
    reported = [*(entry.at for entry in at_terms.values() if classifies(entry.function)), *used][0]
    asked = {(point, entry.mode) for entry in at_terms.values() for point in (entry.at, *entry.others.values())}
    asked |= {(reported, "train")}
    runs = tuple(one for one in itertools.product(used, get_args(Mode)) if one in asked)
    return Objective(used, at_terms, runs, reported)


def _point_entry(path: str, entry: Mapping[str, Any], place: int) -> _PointEntry:
    function = function_of(f"{path}.kind", entry.get("kind"), POINTS)
    check_options(path, entry, function)
    return _PointEntry(path, function, {name: value for name, value in entry.items() if name != "kind"}, place)


def _term_entry(path: str, entry: Mapping[str, Any], points: Mapping[str, Any]) -> _TermEntry:
    function = function_of(f"{path}.kind", entry.get("kind"), TERMS)
    own = options_of(every_term)
    check_options(path, entry, function, own)
    entry = {name: option.default for name, option in own.items()} | dict(entry)
    compared = {name: option for name, option in arguments_of(function).items() if PointOutput in option.kinds}
    entry = {name: option.default for name, option in compared.items()} | entry
    for name in ("at", *compared):
        choose(f"{path}.{name}", entry[name], points)
    options = {name: value for name, value in entry.items() if name not in ("kind", *own, *compared)}
    others = {name: entry[name] for name in compared}
    return _TermEntry(path, function, options, entry["weight"], entry["at"], others, entry["batch_norm"])


def _arguments(entry: _PointEntry | _TermEntry, epoch: Any) -> dict[str, Any]:
    """The keyword arguments of a point or term at an epoch."""
    return arguments(entry.function, {name: scheduled(value, epoch) for name, value in entry.options.items()})


def run_at(model: Model, point: Point, labels: Labels, mode: Mode = "train") -> tuple[PointOutput, Any]:
    """Runs the model on a point: one pass for the loss, its image gradient and the new state, none in eval mode."""

    def loss_fn(x: Images) -> tuple[PerExample, Any]:
        logits, state = model.train(x) if mode == "train" else (model.eval(x), None)
        return losses.cross_entropy(logits, labels), (logits, state)

    loss, gradient, (logits, state) = per_example.value_and_gradient(loss_fn, point.images, has_aux=True)
    output = PointOutput(point.images, point.delta, labels, logits, loss, gradient, lambda x: loss_fn(x)[0])
    return output, state
