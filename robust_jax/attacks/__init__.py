"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from collections.abc import Callable

from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.deformations import adef, stadv
from robust_jax.attacks.estimated import nes, spsa
from robust_jax.attacks.pgd import AttackResult, fgsm, pgd
from robust_jax.attacks.sampling import gaussian_noise, grid, random_search, uniform_noise
from robust_jax.attacks.sparse import jsma, pointwise
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted

# Not the universal ones: made from the batch that they are measured on, their numbers would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "pgd": pgd,
    "fgsm": fgsm,
    "deepfool": deepfool,
    "grid": grid,
    "random_search": random_search,
    "uniform_noise": uniform_noise,
    "gaussian_noise": gaussian_noise,
    "stadv": stadv,
    "adef": adef,
    "spsa": spsa,
    "nes": nes,
    "jsma": jsma,
    "pointwise": pointwise,
}

__all__ = [
    "ATTACKS",
    "AttackResult",
    "adef",
    "apply_universal",
    "deepfool",
    "fgsm",
    "gaussian_noise",
    "grid",
    "jsma",
    "nes",
    "pgd",
    "pointwise",
    "random_search",
    "spsa",
    "stadv",
    "uniform_noise",
    "universal",
    "universal_gradient",
    "universal_targeted",
]
