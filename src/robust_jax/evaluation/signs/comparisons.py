"""Signs in what attacks that have run did, compared on the same examples in the same threat model."""

from __future__ import annotations

from typing import Any

import numpy as np

from robust_jax.evaluation.outcomes import Outcome
from robust_jax.evaluation.signs.define import (
    TOLERATED,
    Look,
    ball,
    black_box_warning,
    family,
    has_many_parameters,
    is_gradient_free,
    is_persistent,
    one_step_warning,
    sign,
)
from robust_jax.evaluation.statistics import exceeds, significant_lead

LEAST_LOSS = 1e-4  # below, cross-entropy in float32 may not rise although the logits change


@sign("outcomes")
def black_box(look: Look) -> list[str]:
    """An attack without gradients of the model breaks more images than all attacks with gradients together."""
    warnings = []
    for group in _by_ball(look):
        persistent = {name: outcome for name, outcome in group.items() if is_persistent(outcome)}
        if not persistent:
            continue
        broken = np.any([outcome.broken for outcome in persistent.values()], 0)
        for name, outcome in group.items():
            if is_gradient_free(outcome) and (lead := significant_lead(outcome.broken, broken)):
                warnings.append(black_box_warning(name, lead, " and ".join(persistent)))
    return warnings


@sign("outcomes")
def one_step(look: Look) -> list[str]:
    """An attack of a single step breaks more images than an iterative one."""
    warnings = []
    for group in _by_ball(look):
        persistent = {name: outcome for name, outcome in group.items() if is_persistent(outcome)}
        single = {name: outcome for name, outcome in group.items() if family(outcome) == "one_step"}
        for name, outcome in single.items():
            for other, iterative in persistent.items():
                if lead := significant_lead(outcome.broken, iterative.broken):
                    warnings.append(one_step_warning(name, lead, other))
    return warnings


@sign("outcomes")
def unmoved_loss(look: Look) -> list[str]:
    """An ascent of many steps does not raise the loss of many of the images that it leaves."""
    warnings = []
    before = look.measured.loss
    for name, outcome in look.measured.attacks.items():
        if family(outcome) != "ascent":
            continue
        left = ~outcome.broken & (before > LEAST_LOSS)
        stuck = int((outcome.loss[left] <= before[left]).sum())
        if exceeds(stuck, len(before), TOLERATED):
            warnings.append(
                f"unmoved_loss: {name} does not raise the loss of {stuck} of {int(left.sum())} images that it leaves, "
                f"as any gradient would: gradients are masked, or its steps or its radius are far too small. Try "
                f"square, which needs no gradients"
            )
    return warnings


def _by_ball(look: Look) -> list[dict[str, Outcome]]:
    """The attacks measured on all examples, those with equal threat models together."""
    groups: dict[Any, dict[str, Outcome]] = {}
    for name, outcome in look.measured.attacks.items():
        # An attack that saw only what others had left cannot be compared with them.
        if outcome.after is None and has_many_parameters(outcome.attack.threat):
            groups.setdefault(ball(outcome.attack.threat), {})[name] = outcome
    return list(groups.values())
