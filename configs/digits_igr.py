"""Input-gradient regularisation (Ross & Doshi-Velez 2018) on scikit-learn's digits."""

from ml_collections import ConfigDict

from configs.digits_standard import digits
from robust_jax.config import complete


def get_config() -> ConfigDict:
    c = digits()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    c.terms.igr = dict(kind="gradient_norm", at="clean", perturbation="additive", norm="l2", power=2, weight=1.0)
    return complete(c)
