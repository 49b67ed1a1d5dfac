"""Standard training of VGG-11 on CIFAR-100, otherwise as configs/cifar10_vgg11_standard.py. Not run yet.

python train.py --config=configs/cifar100_vgg11_standard.py --workdir=runs/cifar100_standard
"""

from ml_collections import ConfigDict

from configs.cifar10_vgg11_standard import reference
from robust_jax.config import complete


def get_config() -> ConfigDict:
    c = reference("cifar100")
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    return complete(c)
