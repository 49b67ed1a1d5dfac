"""Input-gradient regularisation (Ross & Doshi-Velez 2018) on scikit-learn's digits.

python train.py --config=digits_igr --workdir=runs/digits_igr

docs/results.md has what it reaches. Under a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.digits_standard import digits


def get_config() -> ConfigDict:
    c = digits()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    c.terms.igr = dict(kind="gradient_norm", at="clean", perturbation="additive", norm="l2", power=2, weight=1.0)
    return complete(c)
