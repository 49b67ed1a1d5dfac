"""The maxout networks of Lyu et al. 2015 on MNIST: standard training, and at x + r for linf (σ = 0.1) and l2.

python train.py --config=configs/mnist_maxout.py:linearised --workdir=runs/maxout_linf [--config.data.data_dir=DIR]

The argument is a method of configs/methods.py: standard, linearised (linf), linearised_l2, family_l1.5, ...
"""

from ml_collections import ConfigDict

from configs.methods import Sizes, choose
from robust_jax.config import base, complete

SIZES = Sizes(intensity=0.1, pixels=0.5, universal=(0.3, 1.5), rotation=(15.0, 2.0, 2.0), steps=10, numbers=784)


def get_config(method: str = "standard") -> ConfigDict:
    c = base("mnist", "maxout_cnn")
    c.model.mean, c.model.std = (0.0,), (1.0,)
    c.model.options = dict(irange=0.05, dropout=0.25)  # the paper: 0.005 and 0.5, for hundreds of epochs
    c.epochs = 3.0
    c.schedule.name = "one_cycle"
    c.schedule.learning_rate = 0.002
    c.optimizer.name = "adam"
    c.optimizer.max_norm = 1.9365
    # Of standard deviation 0.3: the length of Gaussian noise is that times sqrt(28 * 28).
    c.attacks.noise = dict(
        kind="gaussian_noise", perturbation="additive", norm="l2", radius=0.3 * 28, curve=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    )
    c.attacks.fgsm = dict(kind="fgsm", perturbation="additive", norm="linf", radius=SIZES.intensity)
    choose(c, method, SIZES)
    return complete(c)
