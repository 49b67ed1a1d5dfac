"""FGR (Xia & Li 2021) on scikit-learn's digits.

python train.py --config=digits_fgr --workdir=runs/digits_fgr

The control, random start alone, is --config.terms.fgr.weight=0.
docs/results.md has what it reaches. Under a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.digits_standard import digits


def get_config() -> ConfigDict:
    c = digits()
    c.points.warped = dict(kind="random", perturbation="flow", sigma=0.155)
    c.terms.ce = dict(kind="cross_entropy", at="warped", weight=1.0)
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=3.0)
    return complete(c)
