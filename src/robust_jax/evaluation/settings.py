"""How a workdir is measured: ``config.evaluation``, the seed and the precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from robust_jax.config.defaults import RANGES, SPLITS
from robust_jax.evaluation import masking
from robust_jax.extensions import choose


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a workdir is measured: ``config.evaluation``, the seed and the precision.

    Attributes:
      split: "test", "validation" or "train".
      limit: the number of examples, the first ones of the split; 0: all.
      checkpoint: "best" on validation, or "latest".
      batch_size: examples at a time.
      worst_case_only: whether each attack sees only what those before it have not broken.
      checks: the number of images on which signs of masked gradients are looked for; 0: only by `masking.glance`.
      pictures: the number of examples drawn per attack; 0: none.
      surfaces: the number of examples per attack around which the loss is drawn; 0: none.
      signs: the user's own signs of masked gradients, ``"module:name"``.
      seed: of the attacks.
      precision: of matrix products.

    Raises:
      ValueError: an unknown split or sign, or a number out of range.
    """

    split: str = "test"
    limit: int = 0
    checkpoint: str = "best"
    batch_size: int = 250
    worst_case_only: bool = False
    checks: int = 64
    pictures: int = 10
    surfaces: int = 0
    signs: tuple[str, ...] = ()
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose("split", self.split, SPLITS)
        for name, least, meaning in (
            ("seed", 0, "it numbers the random draws"), ("limit", 0, "0 for all examples"),
            ("checks", 0, "0 for none"), ("pictures", 0, "0 for none"), ("surfaces", 0, "0 for none"),
            ("batch_size", 1, "the number of examples at a time"),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}={value!r} must be a whole number: {meaning}.")
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}: {meaning}.")
            object.__setattr__(self, name, int(value))  # NumPy's are no JSON
        RANGES["seed"].check("seed", self.seed)
        if not isinstance(self.signs, Sequence):
            raise ValueError(f"signs={self.signs!r}: give a tuple of names 'module:name'.")
        masking.find(self.signs)

    @classmethod
    def of(cls, config: ConfigDict, given: Mapping[str, Any]) -> Settings:
        """The settings of a workdir's config, replaced by those given in the call of `evaluate`."""
        own = {field.name: config.evaluation[field.name] for field in dataclasses.fields(cls)
               if field.name in config.evaluation}  # fmt: skip
        own |= {"seed": int(config.seed), "precision": config.get("precision", "float32")}
        return cls(**(own | dict(given)))
