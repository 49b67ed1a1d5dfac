"""Adversarial deformation training of SmallCNN on MNIST, 5 epochs.

python train.py --config=mnist_adt --workdir=runs/mnist_adt [--config.data.data_dir=DIR]

What it reaches: table `mnist` of benchmarks/reproduce.py. About 35 minutes of one CPU core.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.mnist_standard import mnist


def get_config() -> ConfigDict:
    c = mnist()
    c.points.deformed = dict(kind="attack", perturbation="flow", norm="linf", radius=0.5, steps=3)
    c.terms.ce = dict(kind="cross_entropy", at="deformed", weight=1.0)
    return complete(c)
