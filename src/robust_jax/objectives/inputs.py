"""What points and terms are given: a model, labels and keys; and the kinds of their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from robust_jax.options import Range
from robust_jax.options.hints import described
from robust_jax.spaces import per_example
from robust_jax.spaces.perturbations import Images

Labels = Int[Array, " b"] | Float[Array, "b k"]
"""Classes, or probabilities of each class as mixup makes them, of points and terms that take these."""
Keys = Key[Array, " b"]
LogitsFn = Callable[[Images], Float[Array, "b k"]]

Examples = Callable[[int], tuple[Images, Labels]]
"""``n -> (images, labels)``, the first n training examples."""

Mode = Literal["eval", "train"]
"""The mode of BatchNorm (and dropout) in an inner maximisation."""
Sigma = Annotated[Any, Range(least=0, tuples=True, schedule=True)]
"""A standard deviation in units of δ: a number, or one per axis of δ; for a composition a tuple with one per part."""
Scale = Annotated[Any, Range(tuples=True)]
"""Units of δ: a number, or one per axis of δ; for a composition a tuple with one per part."""
StepSize = Annotated[Any, Range(least=0, tuples=True)]
"""A step in units of δ: a number, or one per axis of δ; for a composition a tuple with one per part."""


def _identity(value: Any) -> Any:
    return value


class Model(NamedTuple):
    """A model as an objective sees it, its parameters closed over.

    Attributes:
      train: ``images -> (logits, state)`` in train mode; state is what training updates besides the parameters, such as
        running statistics.
      eval: ``images -> logits`` in eval mode.
      mean: the mean of a pytree over all devices.
    """

    train: Callable[[Images], tuple[Float[Array, "b k"], Any]]
    eval: LogitsFn
    mean: Callable[[Any], Any] = _identity

    @classmethod
    def of(
        cls, network: Any, variables: Mapping[str, Any], key: Any = None, mean: Callable[[Any], Any] = _identity
    ) -> Model:
        """Of a network with variables, as `robust_jax.models.trainable` and `robust_jax.models.create` give it.

        Args:
          network: has ``apply(variables, images, train=, mutable=, rngs=)``.
          variables: ``{"params": ..., "batch_stats": ...}``.
          key: of dropout, and of all else that a network draws in training; None for a network that draws nothing.
          mean: see `Model`.
        """
        # What Linen modules draw from streams of other names comes from "params".
        rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 0)}

        def train(images: Images) -> tuple[Float[Array, "b k"], Any]:
            logits, new = network.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return logits, new.get("batch_stats", {})

        return cls(train, lambda images: network.apply(variables, images, train=False), mean)


def as_model(model: Any) -> Model:
    """A model, or a function ``images -> logits`` that is the same in training and in evaluation.

    Its logits are in single precision at least: losses are computed from them.

    Raises:
      ValueError: anything else.
    """
    if isinstance(model, Model):
        return _widened(model)
    if not callable(model):
        raise ValueError(
            f"model is {described(model)}: give robust_jax.objectives.Model(train, eval), or a function of images that "
            f"returns logits."
        )
    return _widened(Model(lambda images: (model(images), {}), model))


def _widened(model: Model) -> Model:
    def train(images: Images) -> tuple[Float[Array, "b k"], Any]:
        found = model.train(images)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError(
                f"model.train must return (logits, new state), and returned {described(found)}: of a network without "
                f"state give the function itself in place of the Model."
            )
        logits, state = found
        return per_example.widened(logits), state

    return model._replace(train=train, eval=lambda images: per_example.widened(model.eval(images)))


def classes_of(labels: Labels) -> Int[Array, " b"]:
    """The classes themselves; of soft labels those of the largest probability."""
    return labels if labels.ndim == 1 else labels.argmax(-1)
