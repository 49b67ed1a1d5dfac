"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from collections.abc import Callable

from robust_jax.attacks.carlini_wagner import carlini_wagner
from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.pgd import AttackResult, fgsm, pgd
from robust_jax.attacks.sampling import gaussian_noise, grid, random_search, uniform_noise
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted

# Not the universal ones: made from the batch that they are measured on, their numbers would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    f.__name__: f
    for f in (
        fgsm,
        pgd,
        deepfool,
        carlini_wagner,
        grid,
        random_search,
        uniform_noise,
        gaussian_noise,
    )
}

__all__ = [
    "ATTACKS",
    "AttackResult",
    "apply_universal",
    "carlini_wagner",
    "deepfool",
    "fgsm",
    "gaussian_noise",
    "grid",
    "pgd",
    "random_search",
    "uniform_noise",
    "universal",
    "universal_gradient",
    "universal_targeted",
]
