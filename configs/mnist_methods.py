"""Every training method on MNIST with SmallCNN, with the papers' radius and number of inner steps.

python train.py --config=configs/mnist_methods.py:trades --workdir=runs/mnist_trades [--config.data.data_dir=DIR]

The methods are the functions of configs/methods.py. None was run to the end with these settings here yet: 40 inner
steps over 60,000 images are work for a GPU. On a CPU --config.data.limit=10000 and, of the method's point, fewer steps:
--config.points.attacked.steps=10. A step_size is in units of δ: one that is set is overridden with the radius.
"""

from ml_collections import ConfigDict

from configs.methods import Sizes, choose
from configs.mnist_standard import mnist
from robust_jax.config import complete

SIZES = Sizes(intensity=0.3, pixels=0.5, universal=(0.3, 1.5), rotation=(30.0, 3.0, 3.0), steps=40, numbers=784)


def get_config(method: str = "standard") -> ConfigDict:
    c = mnist()
    strong = dict(kind="pgd", norm="linf", steps=40, restarts=2)
    c.attacks.additive_0_3 = strong | dict(perturbation="additive", radius=SIZES.intensity)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    choose(c, method, SIZES)
    return complete(c)
