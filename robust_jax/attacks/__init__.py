"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from robust_jax.attacks.apgd import apgd, apgd_dlr, apgd_targeted
from robust_jax.attacks.auto import auto_attack
from robust_jax.attacks.carlini_wagner import carlini_wagner
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.deformations import adef, check_field, stadv
from robust_jax.attacks.ead import ead
from robust_jax.attacks.estimated import nes, spsa
from robust_jax.attacks.fab import fab, fab_targeted
from robust_jax.attacks.minimal import check_norm
from robust_jax.attacks.pgd import AttackResult, fgsm, pgd
from robust_jax.attacks.sampling import gaussian_noise, grid, random_search, uniform_noise
from robust_jax.attacks.sparse import check_pixelwise, jsma, pointwise
from robust_jax.attacks.square import square
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted
from robust_jax.attacks.wrappers import black_box, bpda, expectation
from robust_jax.threat_models import ThreatModel

# Not the universal ones: made from the batch that they are measured on, their numbers would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = {f.__name__: f for f in (
    adef, apgd, apgd_dlr, apgd_targeted, auto_attack, carlini_wagner, ddn, deepfool, ead, fab, fab_targeted, fgsm,
    gaussian_noise, grid, jsma, nes, pgd, pointwise, random_search, spsa, square, stadv, uniform_noise,
)}  # fmt: skip

_FIELD = partial(check_field, images=jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))  # any shape would do
# What some ask of a threat model, ``(name, threat) -> None`` or ValueError; the others take any.
ASKED: dict[str, Callable[[str, ThreatModel], None]] = {
    "adef": _FIELD, "stadv": _FIELD, "jsma": check_pixelwise, "pointwise": check_pixelwise,
    "carlini_wagner": partial(check_norm, p=2), "ddn": partial(check_norm, p=2), "ead": partial(check_norm, p=1),
}  # fmt: skip

__all__ = [
    "ATTACKS", "AttackResult", "adef", "apgd", "apgd_dlr", "apgd_targeted", "apply_universal", "auto_attack",
    "black_box", "bpda", "carlini_wagner", "ddn", "deepfool", "ead", "expectation", "fab", "fab_targeted",
    "fgsm", "gaussian_noise", "grid", "jsma", "nes", "pgd", "pointwise", "random_search", "spsa", "square",
    "stadv", "uniform_noise", "universal", "universal_gradient", "universal_targeted",
]  # fmt: skip
