"""Every training method on CIFAR-10 with the settings of the FGR reference, which cifar10_vgg11_standard.py describes.

python train.py --config=cifar10_reference_methods:adt --workdir=runs/adt [--config.model.name=resnet20]

The methods are the functions of robust_jax.config.methods. Most rows of benchmarks/tables_cifar.py are of this config;
those of the FGR paper, of local flatness and of the maxout network have others.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete, methods
from robust_jax.configs.cifar10_vgg11_standard import reference


def get_config(method: str = "standard") -> ConfigDict:
    c = reference("cifar10")
    methods.choose(c, method, methods.SIZES["cifar10"])
    return complete(c)
