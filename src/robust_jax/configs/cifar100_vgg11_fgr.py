"""FGR of VGG-11 on CIFAR-100, otherwise as cifar10_vgg11_fgr. Not run yet.

python train.py --config=cifar100_vgg11_fgr --workdir=runs/cifar100_fgr
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.cifar10_vgg11_fgr import fgr


def get_config() -> ConfigDict:
    return complete(fgr("cifar100"))
