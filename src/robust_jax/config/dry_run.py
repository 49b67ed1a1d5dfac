"""Calls the parts of a config without computing anything, so that their own checks are the config's.

`jax.eval_shape` runs a function on shapes alone. Points, terms and attacks are called this way with a linear model and
images of the dataset's shape, before any data is read: a ValueError that a part raises becomes an error of the config.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import Objective, make_objective
from robust_jax.objectives.points import POINTS
from robust_jax.objectives.terms import TERMS
from robust_jax.options import function_of, raised_by_library, with_path
from robust_jax.spaces.threat_models import ThreatModel

COUNT = 2  # images


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class LinearModel:
    """``logits = flatten(images) @ weights``, the smallest model that every part can be called with."""

    weights: Any

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits ``[B, K]`` of images ``[B, H, W, C]``."""
        return images.reshape(len(images), -1) @ self.weights


class Batch(NamedTuple):
    """The shapes that parts are called with: a model, images, labels, and one key per image."""

    model: LinearModel
    images: jax.ShapeDtypeStruct
    labels: jax.ShapeDtypeStruct
    keys: jax.ShapeDtypeStruct


def batch(image_shape: tuple[int, ...], num_classes: int) -> Batch:
    """Shapes of a batch of images ``(H, W, C)`` and of a linear model with that many classes."""
    return Batch(
        LinearModel(jax.ShapeDtypeStruct((math.prod(image_shape), num_classes), jnp.float32)),
        jax.ShapeDtypeStruct((COUNT, *image_shape), jnp.float32),
        jax.ShapeDtypeStruct((COUNT,), jnp.int32),
        jax.ShapeDtypeStruct((COUNT,), jax.random.key(0).dtype),
    )


def of_attack(
    path: str,
    function: Callable[..., Any],
    threat: ThreatModel,
    settings: Mapping[str, Any],
    image_shape: tuple[int, ...],
    num_classes: int,
) -> None:
    """Calls an attack without computing it.

    Raises:
      ValueError: the attack's own, beginning with ``path``.
      LibraryError: a library's, such as JAX's about shapes.
    """

    def call(shapes: Batch) -> Any:
        found = with_path(
            path, function, shapes.model, shapes.images, shapes.labels, threat, key=shapes.keys, **settings
        )
        return found.images, found.delta

    key = (function, frozen(settings), frozen(vars(threat)))
    _call_once(_Call(path, key, call), tuple(image_shape), num_classes)


def of_objective(
    points: Mapping[str, Any], terms: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int
) -> None:
    """Calls every point and term of an objective without computing them, those of weight 0 and unused points too.

    Raises:
      ValueError: that of a point or term, beginning with its path.
      LibraryError: a library's, such as JAX's about shapes.
    """
    weighted = {name: term if term.get("weight", 1.0) else {**term, "weight": 1.0} for name, term in terms.items()}
    visits = {f"at {name}": {"kind": "cross_entropy", "at": name} for name in points}
    objective = make_objective(points, weighted | visits)

    _call_step("points and terms", points, weighted, objective, image_shape, num_classes, lambda labels: labels)


def of_soft_labels(
    points: Mapping[str, Any], terms: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int
) -> None:
    """Calls the points and terms that train with soft labels ``[B, K]``, as mixup and cutmix make them.

    Raises:
      ValueError: one of them needs classes.
      LibraryError: a library's, such as JAX's about shapes.
    """
    soft, objective = partial(jax.nn.one_hot, num_classes=num_classes), make_objective(points, terms)
    _call_step("soft labels", points, terms, objective, image_shape, num_classes, soft)


def _call_step(
    path: str, points: Mapping[str, Any], terms: Mapping[str, Any], objective: Objective,
    image_shape: tuple[int, ...], num_classes: int, labels_of: Callable[[Any], Any],
) -> None:  # fmt: skip
    """Calls an objective, once for equal points and terms."""
    functions = [
        function_of(f"{section}.{name}.kind", entry["kind"], known)
        for section, entries, known in (("points", points, POINTS), ("terms", terms, TERMS))
        for name, entry in sorted(entries.items())
    ]
    key = (tuple(functions), frozen(points), frozen(terms))
    call = _step(objective, image_shape, num_classes, labels_of)
    _call_once(_Call(path, key, call), tuple(image_shape), num_classes)


def _step(
    objective: Objective, image_shape: tuple[int, ...], num_classes: int, labels_of: Callable[[Any], Any]
) -> Callable[[Batch], Any]:
    """What a training step does with an objective."""

    def call(shapes: Any) -> Any:  # a Batch, whose shapes are traced arrays here
        model, labels = Model(lambda x: (shapes.model(x), {}), shapes.model), labels_of(shapes.labels)

        def examples(count: int) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros((count, *image_shape)), jnp.zeros(count, jnp.int32)

        memory = objective.remember(examples, num_classes)
        found = objective.find(model, shapes.images, labels, shapes.keys, memory, 0, 0.0)
        return objective.loss(model, found, labels, 0.0)

    return call


@dataclass(frozen=True)
class _Call:
    """A function of a batch; calls of equal paths and settings are equal."""

    path: str
    settings: Any
    function: Callable[[Batch], Any] = field(compare=False)


@functools.lru_cache(maxsize=1024)
def _call_once(call: _Call, image_shape: tuple[int, ...], num_classes: int) -> None:
    def traced(shapes: Batch) -> Any:
        try:
            return call.function(shapes)
        except Exception as error:
            if raised_by_library(error):
                raise LibraryError(f"{call.path}: {error}") from error
            raise

    jax.eval_shape(traced, batch(image_shape, num_classes))


class LibraryError(ValueError):
    """What JAX or another library says of the shapes that a part was called with."""


def ignoring_libraries(function: Callable[..., None], *given: Any) -> None:
    """``function(*given)`` without what libraries say of nominal shapes, which need not hold for the real ones."""
    with contextlib.suppress(LibraryError):
        function(*given)


def frozen(value: Any) -> Any:
    """A value in hashable form: equal values have equal forms."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, frozen(entry)) for name, entry in value.items()))
    if isinstance(value, tuple | list):
        return tuple(map(frozen, value))
    if hasattr(value, "tolist"):
        return frozen(value.tolist())
    return value
