"""FGR of VGG-11 on CIFAR-100, otherwise as configs/cifar10_vgg11_fgr.py. Not run yet.

python train.py --config=configs/cifar100_vgg11_fgr.py --workdir=runs/cifar100_fgr
"""

from ml_collections import ConfigDict

from configs.cifar10_vgg11_fgr import fgr
from robust_jax.config import complete


def get_config() -> ConfigDict:
    return complete(fgr("cifar100"))
