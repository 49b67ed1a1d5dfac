"""FGR of VGG-13 on CIFAR-100 with the settings of its paper, see cifar10_fgr_paper.py. Not run yet.

python train.py --config=cifar100_fgr_paper:fgr --workdir=runs/fgr [--config.model.name=resnet20_xia]
"""

from ml_collections import ConfigDict

from robust_jax.configs.cifar10_fgr_paper import paper


def get_config(method: str = "fgr") -> ConfigDict:
    return paper("cifar100", method)
