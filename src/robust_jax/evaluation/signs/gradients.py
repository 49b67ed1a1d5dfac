"""Signs in the input gradients at the clean images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from robust_jax.evaluation.signs.define import RANDOM_STEPS, STEP, Look, is_many, sign


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
    return _at_many(
        "nan_gradient", look, ~np.isfinite(of_loss + of_margin),
        "the input gradient is NaN or infinite: gradient attacks are blind there. Look for a square root, logarithm or "
        "quotient that is not differentiable at 0 or overflows",
    )  # fmt: skip


@sign("gradients")
def zero_gradient(look: Look) -> list[str]:
    """The input gradient is exactly 0 at many images."""
    _, of_margin = look.slopes
    return _at_many(
        "zero_gradient", look, of_margin == 0,
        "the logits' input gradient is exactly 0: gradient attacks are blind there. Attack through what rounds, "
        "thresholds or saturates (attacks.bpda gives it a gradient), and without gradients (square)",
    )  # fmt: skip


@sign("gradients")
def saturated_loss(look: Look) -> list[str]:
    """The gradient of the cross-entropy is exactly 0 at many images where the margin's is not."""
    of_loss, of_margin = look.slopes
    return _at_many(
        "saturated_loss", look, (of_loss == 0) & (of_margin != 0) & np.isfinite(of_margin),
        "cross-entropy's input gradient is exactly 0, the margin's is not: attacks on cross-entropy are blind there. "
        "Use loss=margin, apgd_dlr or auto_attack",
    )  # fmt: skip


@sign("gradients")
def misleading_gradient(look: Look) -> list[str]:
    """A small step along the margin's gradient raises the margin no more than steps in random directions, at many
    images.
    """
    _, of_margin = look.slopes
    if look.gradient_error is not None:
        return []
    return _at_many(
        "misleading_gradient", look, look.misled & np.isfinite(of_margin) & (of_margin != 0),
        f"a step of {STEP:g} along the margin's gradient raises the margin no more than the best of {RANDOM_STEPS} "
        f"random directions: gradient attacks search at random there. The gradient may be replaced, noisy, or that of "
        f"fine ripples. Attack what is behind it (attacks.bpda, attacks.expectation), and without gradients (square)",
    )  # fmt: skip


def _at_many(name: str, look: Look, where: Bool[np.ndarray, " b"], seen: str) -> list[str]:
    """The warning, if that is seen at more than a few images."""
    if look.gradient_error is not None or not is_many(where):
        return []
    return [f"{name}: at {where.sum()} of {len(where)} images {seen}"]
