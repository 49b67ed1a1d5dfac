"""Input-gradient regularisation (Ross & Doshi-Velez 2018) of SmallCNN on MNIST, 5 epochs. Not run to the end here yet.

python train.py --config=configs/mnist_igr.py --workdir=runs/mnist_igr [--config.data.data_dir=DIR]

The paper's λ, of the loss's sum over a batch of B, is λ / (2 B) here.
"""

from ml_collections import ConfigDict

from configs.mnist_standard import mnist
from robust_jax.config import complete


def get_config() -> ConfigDict:
    c = mnist()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    c.terms.igr = dict(kind="gradient_norm", at="clean", perturbation="additive", norm="l2", power=2, weight=1.0)
    return complete(c)
