"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from collections.abc import Callable

from robust_jax.attacks.apgd import apgd, apgd_dlr, apgd_targeted
from robust_jax.attacks.auto import auto_attack
from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.fab import fab, fab_targeted
from robust_jax.attacks.pgd import AttackResult, fgsm, pgd
from robust_jax.attacks.square import random_search, square
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted

# Not the universal ones: made from the batch that they are measured on, their numbers would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "pgd": pgd,
    "fgsm": fgsm,
    "deepfool": deepfool,
    "apgd": apgd,
    "apgd_dlr": apgd_dlr,
    "apgd_targeted": apgd_targeted,
    "square": square,
    "fab": fab,
    "fab_targeted": fab_targeted,
    "auto_attack": auto_attack,
    "random_search": random_search,
}

__all__ = [
    "ATTACKS",
    "AttackResult",
    "apgd",
    "apgd_dlr",
    "apgd_targeted",
    "apply_universal",
    "auto_attack",
    "deepfool",
    "fab",
    "fab_targeted",
    "fgsm",
    "pgd",
    "random_search",
    "square",
    "universal",
    "universal_gradient",
    "universal_targeted",
]
