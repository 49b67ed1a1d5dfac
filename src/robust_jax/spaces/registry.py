"""Perturbations by name: the built-in ones, compositions, and ``module:name`` of your own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from robust_jax.extensions import collect, find, module_of
from robust_jax.options import Convert
from robust_jax.spaces.perturbations import Perturbation, compose


@cache
def built_in() -> dict[str, Perturbation]:
    """The perturbations that the modules of `robust_jax.spaces` define, by name."""
    found = collect(__package__, [str(Path(__file__).parent)], lambda value: isinstance(value, Perturbation))
    return {space.name: space for space in found.values()}


def get(perturbation: str | Perturbation | Sequence[Any]) -> Perturbation:
    """A perturbation from its name; a `Perturbation` is returned, a sequence gives the composition of its entries.

    One of your own has the name ``module:name`` then.

    Raises:
      ValueError: an unknown name, or ``module:name`` of something else.
    """
    if isinstance(perturbation, Perturbation):
        return perturbation
    if isinstance(perturbation, tuple | list) and len(perturbation) > 0:
        return compose(*map(get, perturbation))
    if isinstance(perturbation, str) and (perturbation in built_in() or module_of(perturbation)):
        found = find("perturbation", perturbation, built_in())
        if not isinstance(found, Perturbation):
            raise ValueError(f"perturbation={perturbation!r} is a {type(found).__name__}, no robust_jax.Perturbation.")
        # By where it lies, results tell it from others of its name, and it is found again.
        return found if found in built_in().values() else replace(found, name=perturbation)
    near = difflib.get_close_matches(str(perturbation), list(built_in()), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"perturbation={perturbation!r} is unknown: choose one of {sorted(built_in())}, a tuple of them (their "
        f"composition), a robust_jax.Perturbation of your own, or in a config 'module:name' of one.{hint}"
    )


Space = Annotated[Any, Convert(get)]
"""An option that a config gives by a perturbation's name, or a tuple of names."""
