"""FGR of SmallCNN on MNIST, 5 epochs; λ was chosen on validation as docs/results.md says, σ was not tuned.

python train.py --config=mnist_fgr --workdir=runs/mnist_fgr [--config.data.data_dir=DIR]

The control, random start alone, is --config.terms.fgr.weight=0. What it reaches: table `mnist` of
benchmarks/reproduce.py. About 25 minutes of one CPU core.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.mnist_standard import mnist


def get_config() -> ConfigDict:
    c = mnist()
    c.points.warped = dict(kind="random", perturbation="flow", sigma=0.3)
    c.terms.ce = dict(kind="cross_entropy", at="warped", weight=1.0)
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=3.0)
    return complete(c)
