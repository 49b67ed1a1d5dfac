"""Input-gradient regularisation (Ross & Doshi-Velez 2018) of SmallCNN on MNIST, 5 epochs.

python train.py --config=mnist_igr --workdir=runs/mnist_igr [--config.data.data_dir=DIR]

docs/results.md says how λ was chosen on validation; what it reaches: table `mnist` of
benchmarks/reproduce.py. About 25 minutes of one CPU core.

The paper's λ, of half the squared norm of the mean loss's gradient over a batch of B, is λ / (2 B) here.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.mnist_standard import mnist


def get_config() -> ConfigDict:
    c = mnist()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    c.terms.igr = dict(kind="gradient_norm", at="clean", perturbation="additive", norm="l2", power=2, weight=1.0)
    return complete(c)
