"""FGR on scikit-learn's digits."""

from ml_collections import ConfigDict

from configs.digits_standard import digits
from robust_jax.config import complete


def get_config() -> ConfigDict:
    c = digits()
    c.points.warped = dict(kind="random", perturbation="flow", sigma=0.155)
    c.terms.ce = dict(kind="cross_entropy", at="warped", weight=1.0)
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=3.0)
    return complete(c)
