"""Signs in what more attacks break, of at most 20 steps or 200 queries, or twice the steps of those that have run."""

from __future__ import annotations

from typing import Any

import numpy as np

from robust_jax import attacks, losses
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.signs.define import (
    Look,
    ball,
    black_box_warning,
    has_many_parameters,
    is_gradient_free,
    one_step_warning,
    sign,
)
from robust_jax.evaluation.statistics import significant_lead
from robust_jax.spaces.threat_models import ThreatModel

STEPS, QUERIES, TARGETS = 20, 200, 9
LEAD = 0.1  # of the images: on honest models other losses break up to 8% more than a PGD of 10 steps


@sign("attacks")
def huge_radius(look: Look) -> list[str]:
    """Additive PGD fails within the whole box."""
    whole_box = ThreatModel("additive", "linf", 1.0)
    broken = look.run({"huge": Attack(attacks.pgd, whole_box, {"steps": STEPS})})["huge"]
    if (left := int((~broken).sum())) > max(2, 0.05 * len(broken)):
        return [
            f"huge_radius: {left} of {len(broken)} images withstand PGD within the whole box, where every image can "
            f"be reached: gradients are masked"
        ]
    return []


@sign("attacks")
def fgsm_is_stronger(look: Look) -> list[str]:
    """FGSM breaks more images than an iterative attack in the same ball."""
    added = {name: Attack(attacks.fgsm, outcome.attack.threat) for name, outcome in look.ascents.items()}
    leads = _leads(look, added, "FGSM")
    return [one_step_warning("FGSM", lead, name) for name, lead in leads.items()]


@sign("attacks")
def more_steps(look: Look) -> list[str]:
    """The same attack with twice the steps breaks more images."""
    added = {}
    for name, outcome in look.ascents.items():
        attack, steps = outcome.attack, outcome.attack.all_settings().get("steps")
        if steps is not None:
            added[name] = Attack(attack.function, attack.threat, dict(attack.settings) | {"steps": 2 * steps})
    leads, n = _leads(look, added, "twice"), len(look.images)
    return [f"more_steps: twice the steps break {lead} of {n} images more than {name}: use more"
            for name, lead in leads.items()]  # fmt: skip


@sign("attacks")
def other_losses(look: Look) -> list[str]:
    """A short APGD on the margin and towards other classes breaks a tenth of the images more than what ran there."""
    warnings, n = [], len(look.images)
    for threat, names in _by_ball(look).items():
        found = look.run(_apgd(", ".join(names), look.measured.attacks[names[0]].attack.threat, look.logits.shape[1]))
        there = [o for o in look.measured.attacks.values() if ball(o.attack.threat) == threat]
        broken = np.any([look.broken(outcome) for outcome in there], 0)
        stronger = np.any(list(found.values()), 0)
        if (lead := significant_lead(stronger, broken)) > LEAD * n:
            left, least = (int((~hit).sum()) for hit in (broken, broken | stronger))
            warnings.append(
                f"other_losses: APGD of {STEPS} steps on the margin and towards other classes breaks {lead} of {n} "
                f"images more than {' and '.join(names)}, {least / n:.0%} instead of {left / n:.0%} are left: use "
                f"auto_attack; gradients may be masked, or the steps too few"
            )
    return warnings


def _by_ball(look: Look) -> dict[Any, list[str]]:
    """The names of the ascents, those with equal threat models together."""
    groups: dict[Any, list[str]] = {}
    for name, outcome in look.ascents.items():
        groups.setdefault(ball(outcome.attack.threat), []).append(name)
    return groups


def _apgd(name: str, threat: ThreatModel, classes: int) -> dict[str, Attack]:
    on_margin = {"steps": STEPS, "loss": losses.margin, "early_stop": True}
    found = {f"{name}, margin": Attack(attacks.apgd, threat, on_margin)}
    if classes > 2:
        towards = {"steps": STEPS, "candidates": TARGETS}
        found[f"{name}, targeted"] = Attack(attacks.apgd_targeted, threat, towards)
    return found


@sign("attacks")
def square_is_stronger(look: Look) -> list[str]:
    """Square breaks more images than an iterative attack in the same ball, if no attack without gradients ran there."""
    tried = {ball(o.attack.threat) for o in look.measured.attacks.values() if is_gradient_free(o)}
    threats = {name: outcome.attack.threat for name, outcome in look.ascents.items()}
    added = {
        name: Attack(attacks.square, threat, {"queries": QUERIES})
        for name, threat in threats.items()
        if has_many_parameters(threat) and ball(threat) not in tried
    }
    leads = _leads(look, added, "Square")
    return [black_box_warning(f"Square ({QUERIES} queries)", lead, name) for name, lead in leads.items()]


def _leads(look: Look, added: dict[str, Attack], suffix: str) -> dict[str, int]:
    """How many more images an added attack breaks than the one it is named after, where that is not noise."""
    if not added:
        return {}
    found = look.run({f"{name}, {suffix}": attack for name, attack in added.items()})
    leads = {
        name: significant_lead(found[f"{name}, {suffix}"], look.broken(look.measured.attacks[name])) for name in added
    }
    return {name: lead for name, lead in leads.items() if lead}
