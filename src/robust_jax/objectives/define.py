"""How a point or a term is defined: a function, marked by a decorator that says what others need to know of it.

Example, in a file of your own, named in a config as ``kind="my_parts:entropy"``::

    @term
    def entropy(point: PointOutput, *, temperature: Positive = 1.0):
        log_p = jax.nn.log_softmax(point.logits / temperature)
        return -(jnp.exp(log_p) * log_p).sum(-1)

A plain function without the decorator serves as well: then a point remembers nothing, and a term does not classify.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def point(function: Function) -> Function: ...
@overload
def point(*, memory: Callable[..., Any] | None = None, soft_labels: bool = False) -> Callable[[Function], Function]: ...
def point(function: Any = None, *, memory: Callable[..., Any] | None = None, soft_labels: bool = False) -> Any:
    """Marks a function ``(model, images, labels, keys, *, options) -> Point`` as a point of an objective.

    Args:
      function: the point.
      memory: ``(examples, classes, **options) -> memory`` before the first step, of a point that carries something from
        step to step; ``examples(n)`` are the first n training images and labels. The point then takes ``memory`` and
        ``steps_done`` too, and returns what to remember as ``Point.memory``.
      soft_labels: whether the point takes probabilities ``[B, K]`` in place of classes ``[B]``, as mixup makes them.
    """
    return _mark(function, part="point", memory=memory, soft_labels=soft_labels)


@overload
def term(function: Function) -> Function: ...
@overload
def term(*, classifies: bool = False, soft_labels: bool = False) -> Callable[[Function], Function]: ...
def term(function: Any = None, *, classifies: bool = False, soft_labels: bool = False) -> Any:
    """Marks a function ``(point, *, options) -> [B]`` as a term of an objective.

    Args:
      function: the term.
      classifies: whether it is a classification loss: accuracy and running statistics are those at its point.
      soft_labels: whether ``point.labels`` may be probabilities ``[B, K]``, as mixup makes them; so are those of a term
        that does not look at them.
    """
    return _mark(function, part="term", classifies=classifies, soft_labels=soft_labels)


def _mark(function: Function | None, **marks: Any) -> Any:
    def decorate(function: Function) -> Function:
        if not callable(function):
            raise ValueError(f"{marks['part']} marks a function, got function={function!r}.")
        vars(function).update(marks)
        return function

    return decorate if function is None else decorate(function)


def marked(module: Mapping[str, Any], part: str) -> dict[str, Callable[..., Any]]:
    """The functions of a module that are marked as points or as terms, by name."""
    return {name: value for name, value in module.items() if getattr(value, "part", None) == part}


def memory_of(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What makes the memory of a point before the first step; None if it remembers nothing."""
    return getattr(function, "memory", None)


def classifies(function: Callable[..., Any]) -> bool:
    """Whether a term is a classification loss."""
    return getattr(function, "classifies", False)


def check_labels(function: Callable[..., Any], labels: Any) -> None:
    """Raises ValueError for soft labels ``[B, K]`` of a point or term that is not marked as one that takes them."""
    if labels.ndim > 1 and not getattr(function, "soft_labels", False):
        name = getattr(function, "__name__", function)
        raise ValueError(
            f"{name} needs one class per image, and mixup and cutmix mix two: mark a part of your own that "
            f"takes probabilities [B, K] by soft_labels=True, or set data.augment.mixup and data.augment.cutmix to 0."
        )
