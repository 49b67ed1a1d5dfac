"""Signs in the input gradients at the clean images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from robust_jax.evaluation.signs.define import Look, sign

MANY = 0.1  # of the images


@sign("gradients")
def no_gradient(look: Look) -> list[str]:
    """The model cannot be differentiated."""
    if look.gradient_error is None:
        return []
    reason = str(look.gradient_error).splitlines()[0]
    return [
        f"no_gradient: the model cannot be differentiated ({reason}): attacks had values only, and numbers are upper "
        f"bounds; attacks.bpda gives it a gradient"
    ]


@sign("gradients")
def nan_gradient(look: Look) -> list[str]:
    """The input gradient is NaN or infinite at many images."""
    of_loss, of_margin = look.slopes
    seen = "the input gradient is NaN or infinite: gradient attacks are blind there"
    return _at_many("nan_gradient", look, ~np.isfinite(of_loss + of_margin), seen)


@sign("gradients")
def zero_gradient(look: Look) -> list[str]:
    """The input gradient is exactly 0 at many images."""
    _, of_margin = look.slopes
    seen = "the logits' input gradient is exactly 0: gradient attacks are blind there"
    return _at_many("zero_gradient", look, of_margin == 0, seen)


@sign("gradients")
def saturated_loss(look: Look) -> list[str]:
    """The gradient of the cross-entropy is exactly 0 at many images where the margin's is not."""
    of_loss, of_margin = look.slopes
    seen = "cross-entropy's input gradient is exactly 0, the margin's is not: use loss=margin or dlr"
    return _at_many("saturated_loss", look, (of_loss == 0) & (of_margin != 0), seen)


def _at_many(name: str, look: Look, where: Bool[np.ndarray, " b"], seen: str) -> list[str]:
    if look.gradient_error is not None or where.sum() <= MANY * len(where):
        return []
    return [f"{name}: at {where.sum()} of {len(where)} images {seen}"]
