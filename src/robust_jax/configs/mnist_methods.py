"""Every training method on MNIST with SmallCNN, with the papers' radius and number of inner steps.

python train.py --config=mnist_methods:trades --workdir=runs/mnist_trades [--config.data.data_dir=DIR]

The methods are the functions of robust_jax.config.methods. None has been run to the end with these settings yet: 40
inner steps over 54,000 images need a GPU. On a CPU use --config.data.limit=10000 and fewer steps of the method's point,
--config.points.attacked.steps=10. If a method sets a step_size, in units of δ, override it together with the radius.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete, methods
from robust_jax.configs.mnist_standard import mnist

SIZES = methods.SIZES["mnist"]


def get_config(method: str = "standard") -> ConfigDict:
    c = mnist()
    strong = dict(kind="pgd", norm="linf", steps=40, restarts=2)
    c.attacks.additive_0_3 = strong | dict(perturbation="additive", radius=SIZES.intensity)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    methods.choose(c, method, SIZES)
    return complete(c)
