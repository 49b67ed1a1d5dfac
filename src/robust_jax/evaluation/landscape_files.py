"""The pictures of landscapes that an evaluation writes if ``config.evaluation.surfaces`` asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from robust_jax.evaluation import landscape_pictures, landscapes
from robust_jax.evaluation.drawing import png
from robust_jax.evaluation.outcomes import PerExample

NAME = "model"


def drawn(measured: PerExample, count: int, key: Any) -> Iterator[tuple[str, str, bytes]]:
    """``(kind, attack, PNG)`` of the loss around the first ``count`` images of each attack's sample, and of gradients.

    Args:
      measured: the results, with the model and samples.
      count: the number of images, at most ten; 0: none.
      key: for the random directions.
    """
    for index, (name, outcome) in enumerate(measured.attacks.items() if count and measured.logits_fn else ()):
        if not outcome.sample or outcome.sample["clean"].shape[-1] not in (1, 3):
            continue
        few: Mapping[str, Any] = jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), outcome.sample)
        images, labels = few["clean"], few["labels"]
        surface = landscapes.loss_surface(
            measured.logits_fn, images, labels, outcome.attack.threat, few["delta"], key=jax.random.fold_in(key, index)
        )
        title = f"cross-entropy: up along {name}, across at random"
        figure = landscape_pictures.surface_grid({NAME: surface}, labels=labels.tolist(), title=title)
        yield "loss_surface", name, png(figure)
        if not index:
            gradients = landscapes.loss_gradients(measured.logits_fn, images, labels)
            yield "gradients", "", png(landscape_pictures.gradient_grid(images, {NAME: gradients}))
