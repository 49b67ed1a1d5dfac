"""Attacks: ``attack(logits_fn, images, labels, threat, *, key, ...) -> AttackResult``, pure and not jitted inside.

An attack is a function decorated by `define.attack` in a module of this package; no list has to be extended. The
imports below show editors and type checkers the same names.
"""

from collections.abc import Callable

from robust_jax import extensions
from robust_jax.attacks.apgd import apgd, apgd_dlr, apgd_targeted
from robust_jax.attacks.auto import auto_attack
from robust_jax.attacks.carlini_wagner import carlini_wagner
from robust_jax.attacks.ddn import ddn
from robust_jax.attacks.deepfool import deepfool
from robust_jax.attacks.define import Cost, Problem, about, attack, cost_of
from robust_jax.attacks.deformations import adef, stadv
from robust_jax.attacks.ead import ead
from robust_jax.attacks.estimated import nes, spsa
from robust_jax.attacks.fab import fab, fab_targeted
from robust_jax.attacks.fmn import fmn
from robust_jax.attacks.pgd import fgsm, pgd
from robust_jax.attacks.result import AttackResult
from robust_jax.attacks.sampling import gaussian_noise, grid, random_search, uniform_noise
from robust_jax.attacks.sigma_zero import sigma_zero
from robust_jax.attacks.sparse import jsma, pointwise
from robust_jax.attacks.square import square
from robust_jax.attacks.universal import apply_universal, universal, universal_gradient, universal_targeted
from robust_jax.attacks.wrappers import black_box, bpda, expectation

# The attacks that a config can name. Universal ones are not among them: made from the batch that they are measured on,
# their results would depend on its size.
ATTACKS: dict[str, Callable[..., AttackResult]] = extensions.collect(
    __name__, __path__, lambda value: callable(value) and about(value) is not None
)

__all__ = [
    "ATTACKS", "AttackResult", "Cost", "Problem", "about", "adef", "apgd", "apgd_dlr", "apgd_targeted",
    "apply_universal", "attack", "auto_attack", "black_box", "bpda", "carlini_wagner", "cost_of", "ddn", "deepfool",
    "ead", "expectation", "fab", "fab_targeted", "fgsm", "fmn", "gaussian_noise", "grid", "jsma", "nes", "pgd",
    "pointwise", "random_search", "sigma_zero", "spsa", "square", "stadv", "uniform_noise", "universal",
    "universal_gradient", "universal_targeted",
]  # fmt: skip
