"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from collections.abc import Callable

from robust_jax.attacks.carlini_wagner import carlini_wagner
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.ead import ead
from robust_jax.attacks.pgd import AttackResult, fgsm, pgd
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted

# Not the universal ones: made from the batch that they are measured on, their numbers would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "pgd": pgd,
    "fgsm": fgsm,
    "deepfool": deepfool,
    "carlini_wagner": carlini_wagner,
    "ddn": ddn,
    "ead": ead,
}

__all__ = [
    "ATTACKS",
    "AttackResult",
    "apply_universal",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "ead",
    "fgsm",
    "pgd",
    "universal",
    "universal_gradient",
    "universal_targeted",
]
