"""`bind`: a model joined to its variables, as the function of images that attacks and penalties take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from robust_jax.checks import check_images
from robust_jax.models.network import Fixed, Network, check_variables, code_of
from robust_jax.options import shown
from robust_jax.options.signatures import checks_arguments


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)  # hashed by identity, because its variables cannot be hashed
class BoundModel:
    """A model and its variables: a function of images, and a pytree of the variables."""

    model: Network
    variables: Mapping[str, Any]

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Logits of the images in eval mode.

        Raises:
          ValueError: images that are no floats ``[B, H, W, C]``, such as bytes.
        """
        check_images(images, in_box=False)
        logits: Any = self.model.apply(self.variables, images, train=False)
        return logits

    def tree_flatten_with_keys(self) -> tuple[Any, Fixed]:
        """The variables, and the model."""
        return ((jax.tree_util.GetAttrKey("variables"), self.variables),), Fixed(self.model)

    @classmethod
    def tree_unflatten(cls, fixed: Fixed, children: tuple[Any]) -> BoundModel:
        """The inverse of `tree_flatten_with_keys`."""
        return cls(fixed.module, *children)

    def __repr__(self) -> str:
        name = getattr(code_of(self.model), "__name__", "model")
        return f"BoundModel({name}, {shown.numbers(self.variables)})"


@checks_arguments
def bind(model: Network, variables: Mapping[str, Any]) -> BoundModel:
    """Joins a model to its variables: `bind(model, variables)(images)` gives logits in eval mode.

    The result is a pytree, so that it can be an argument of a jitted function, which then compiles
    once for all weights of equal models::

        attack = jax.jit(functools.partial(pgd, steps=40))
        for variables in checkpoints:
            attack(bind(model, variables), images, labels, threat, key=key)
    """
    check_variables("bind", variables)
    return BoundModel(model, variables)
