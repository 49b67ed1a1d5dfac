"""FGR (Xia & Li 2021) on scikit-learn's digits.

python train.py --config=digits_fgr --workdir=runs/digits_fgr

Seen, seeds 0 to 2, 360 test images: clean 99.2%; flow linf 0.155 and 0.25 px (PGD-20 × 3 restarts) 76.9 and 20.0%; the
control --config.terms.fgr.weight=0, random start alone: 99.2; 69.2 and 13.1%; docs/results.md has the command. Under a
minute on two CPU cores.
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
