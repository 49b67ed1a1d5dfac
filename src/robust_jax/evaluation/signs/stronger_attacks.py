"""Signs in what more attacks break, of at most 20 steps or 200 queries, or twice the steps of those that have run."""

from __future__ import annotations

from typing import Any

import numpy as np

from robust_jax import attacks, losses
from robust_jax.attacks.define import Problem, cost_of
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.outcomes import Outcome
from robust_jax.evaluation.signs.define import (
    Look,
    ball,
    black_box_warning,
    family,
    has_many_parameters,
    is_many,
    one_step_warning,
    sign,
)
from robust_jax.evaluation.statistics import significant_lead
from robust_jax.spaces.threat_models import ThreatModel

STEPS, QUERIES, TARGETS = 20, 200, 9
SEARCHING = ("ascent", "white_box", "boundary", "combined")  # not noise and single steps, which others surpass


@sign("attacks")
def huge_radius(look: Look) -> list[str]:
    """Additive PGD fails within the whole box."""
    whole_box = ThreatModel("additive", "linf", 1.0)
    broken = look.run({"huge": Attack(attacks.pgd, whole_box, {"steps": STEPS})})["huge"]
    if is_many(~broken):
        return [
            f"huge_radius: {(~broken).sum()} of {len(broken)} images withstand PGD within the whole box, where every "
            f"image can be reached: gradients are masked. Try square and auto_attack, and look for what takes the "
            f"gradient away"
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
    return [
        f"more_steps: twice the steps break {lead} of {n} images more than {name}: it has not converged, and its "
        f"accuracy is too high. Use more steps, or apgd"
        for name, lead in leads.items()
    ]


@sign("attacks")
def other_losses(look: Look) -> list[str]:
    """A short APGD on the margin and towards other classes breaks many images that all attacks in the ball leave."""
    warnings, n = [], len(look.images)
    for there in _searched(look):
        name, threat = ", ".join(there), next(iter(there.values())).attack.threat
        broken = np.any([look.broken(outcome) for outcome in there.values()], 0)
        if broken.all():
            continue
        found = look.run(_apgd(name, threat, look.logits.shape[1]))
        more = np.any(list(found.values()), 0) & ~broken
        if is_many(more):
            left = {other: (~look.broken(outcome)).mean() for other, outcome in there.items()}
            before, after = (~broken).mean(), (~broken & ~more).mean()
            warnings.append(
                f"other_losses: APGD of {STEPS} steps on the margin and towards other classes breaks {more.sum()} of "
                f"{n} images that {' and '.join(there)} left, {after:.0%} instead of {before:.0%} are left"
                f"{_each(left)}: gradients of the loss that was used are masked, or the steps too few. Use "
                f"auto_attack, or loss=margin and more steps"
            )
    return warnings


def _each(left: dict[str, float]) -> str:
    """What each of several attacks leaves alone."""
    return f" ({', '.join(f'{name} alone {share:.0%}' for name, share in left.items())})" if len(left) > 1 else ""


def _searched(look: Look) -> list[dict[str, Outcome]]:
    """The attacks measured, those with equal threat models together, where one of them searched with gradients."""
    groups: dict[Any, dict[str, Outcome]] = {}
    for name, outcome in look.measured.attacks.items():
        groups.setdefault(ball(outcome.attack.threat), {})[name] = outcome
    return [group for group in groups.values() if any(family(o) in SEARCHING for o in group.values())]


def _apgd(name: str, threat: ThreatModel, classes: int) -> dict[str, Attack]:
    on_margin = {"steps": STEPS, "loss": losses.margin, "early_stop": True}
    found = {f"{name}, margin": Attack(attacks.apgd, threat, on_margin)}
    if classes > 2:
        towards = {"steps": STEPS, "candidates": TARGETS}
        found[f"{name}, targeted"] = Attack(attacks.apgd_targeted, threat, towards)
    return found


@sign("attacks")
def square_is_stronger(look: Look) -> list[str]:
    """Square breaks more images than an iterative attack in the same ball, if no such search ran there."""
    tried = {ball(o.attack.threat) for o in look.measured.attacks.values() if _has_searched(o, look)}
    threats = {name: outcome.attack.threat for name, outcome in look.ascents.items()}
    added = {
        name: Attack(attacks.square, threat, {"queries": QUERIES})
        for name, threat in threats.items()
        if has_many_parameters(threat) and ball(threat) not in tried
    }
    leads = _leads(look, added, "Square")
    return [black_box_warning(f"Square ({QUERIES} queries)", lead, name) for name, lead in leads.items()]


def _has_searched(outcome: Outcome, look: Look) -> bool:
    """Whether an attack without gradients asked the model as often as Square: noise and transfer attacks do not."""
    if family(outcome) != "black_box":
        return False
    attack = outcome.attack
    problem = Problem(np.shape(look.images)[1:], look.logits.shape[1], attack.threat)
    cost = cost_of(attack.function, attack.settings, problem)
    return cost is not None and cost.forwards >= QUERIES


def _leads(look: Look, added: dict[str, Attack], suffix: str) -> dict[str, int]:
    """How many more images an added attack breaks than the one it is named after, where that is not noise."""
    if not added:
        return {}
    found = look.run({f"{name}, {suffix}": attack for name, attack in added.items()})
    leads = {
        name: significant_lead(found[f"{name}, {suffix}"], look.broken(look.measured.attacks[name])) for name in added
    }
    return {name: lead for name, lead in leads.items() if lead}
