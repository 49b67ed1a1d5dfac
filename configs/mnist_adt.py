"""Adversarial deformation training of SmallCNN on MNIST, 5 epochs. Not run to the end here yet.

python train.py --config=configs/mnist_adt.py --workdir=runs/mnist_adt [--config.data.data_dir=DIR]
"""

from ml_collections import ConfigDict

from configs.mnist_standard import mnist
from robust_jax.config import complete


def get_config() -> ConfigDict:
    c = mnist()
    c.points.deformed = dict(kind="attack", perturbation="flow", norm="linf", radius=0.5, steps=3)
    c.terms.ce = dict(kind="cross_entropy", at="deformed", weight=1.0)
    return complete(c)
