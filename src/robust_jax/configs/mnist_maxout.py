"""The maxout networks of Lyu et al. 2015 on MNIST: standard training, or training at x + r for linf (σ = 0.1) or l2.

python train.py --config=mnist_maxout:linearised --workdir=runs/maxout_linf [--config.data.data_dir=DIR]

The argument is a method of robust_jax.config.methods: standard, linearised (linf), linearised_l2, family_l1.5, ...
"""

from ml_collections import ConfigDict

from robust_jax.config import base, complete, methods

SIZES = methods.SIZES["mnist_maxout"]


def get_config(method: str = "standard") -> ConfigDict:
    c = base("mnist", "maxout_cnn")
    c.model.mean, c.model.std = (0.0,), (1.0,)
    c.model.options = dict(irange=0.05, dropout=0.25)  # the paper: 0.005 and 0.5, for hundreds of epochs
    c.epochs = 3.0
    c.schedule.name = "one_cycle"
    c.schedule.learning_rate = 0.002
    c.optimizer.name = "adam"
    c.optimizer.max_norm = 1.9365
    # Standard deviation 0.3: the length of Gaussian noise is the deviation times sqrt(28 * 28).
    c.attacks.noise = dict(
        kind="gaussian_noise", perturbation="additive", norm="l2", radius=0.3 * 28, curve=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    )
    c.attacks.fgsm = dict(kind="fgsm", perturbation="additive", norm="linf", radius=SIZES.intensity)
    methods.choose(c, method, SIZES)
    return complete(c)
