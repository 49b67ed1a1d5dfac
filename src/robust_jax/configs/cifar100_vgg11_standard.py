"""Standard training of VGG-11 on CIFAR-100, otherwise as cifar10_vgg11_standard. Not run yet.

python train.py --config=cifar100_vgg11_standard --workdir=runs/cifar100_standard
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.cifar10_vgg11_standard import reference


def get_config() -> ConfigDict:
    c = reference("cifar100")
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    return complete(c)
