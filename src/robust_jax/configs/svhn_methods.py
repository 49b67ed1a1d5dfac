"""Every training method on SVHN with WRN-16-8, the third data set of local flatness regularisation (Xu et al. 2020).

python train.py --config=svhn_methods:lfr --workdir=runs/svhn_lfr --config.data.data_dir=DIR

The methods are the functions of robust_jax.config.methods. The learning rate is 0.01, a tenth of it after 90 of 100
epochs, without weight decay, as in the authors' program for MNIST and SVHN. Its radius, ascent steps and λ are those of
MNIST, and what the paper took for SVHN we do not know: here they are those of LFR on CIFAR-10, in cifar10_methods.py.
Digits are neither flipped nor cropped. Not run yet; it needs a GPU.
"""

from ml_collections import ConfigDict

from robust_jax.config import base, complete, methods
from robust_jax.configs import cifar10_methods

RADIUS = 0.031
SIZES = methods.SIZES["cifar10"]._replace(intensity=RADIUS)


def get_config(method: str = "lfr") -> ConfigDict:
    c = base("svhn_cropped", "wrn_16_8")
    strong = dict(kind="pgd", norm="linf", steps=40, restarts=2)
    c.attacks.additive = strong | dict(perturbation="additive", radius=RADIUS)
    c.attacks.flow = strong | dict(perturbation="flow", radius=SIZES.pixels)
    c.attacks.short = dict(kind="pgd", norm="linf", steps=10, perturbation="additive", radius=RADIUS)
    c.select_by, c.select_limit = "short", 1000
    methods.choose(c, method, SIZES)
    if method == "lfr":
        c.update_from_flattened_dict(cifar10_methods.LFR)
    c.optimizer.weight_decay = 0.0
    c.epochs = 100.0
    c.schedule.name = "piecewise"
    c.schedule.learning_rate = 0.01
    c.schedule.boundaries = (90.0,)
    return complete(c)
