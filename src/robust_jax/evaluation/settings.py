"""How a workdir is measured: ``config.evaluation``, the seed and the precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from robust_jax.config.defaults import CHOICES
from robust_jax.config.validation import plain_options
from robust_jax.evaluation import masking
from robust_jax.extensions import choose
from robust_jax.files import plain


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
      ValueError: what the keys of a config raise.
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
        for field in dataclasses.fields(self):
            path = field.name if field.name in ("seed", "precision") else f"evaluation.{field.name}"
            value = getattr(self, field.name)
            if path in CHOICES:
                choose(field.name, value, CHOICES[path])
            elif path in plain_options():
                plain_options()[path].check(field.name, value)
                object.__setattr__(self, field.name, plain(value))  # NumPy's numbers are no JSON
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
