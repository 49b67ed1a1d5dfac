"""FGR of VGG-13 on CIFAR-10 with the settings of its paper, as its repository's first commit has them (Xia & Li 2021).

python train.py --config=cifar10_fgr_paper:fgr --workdir=runs/fgr [--config.model.name=resnet20_xia]

The argument is a method of robust_jax.config.methods. The paper has VGG-13 and ResNet-20, both with BatchNorm, and
also CIFAR-100: cifar100_fgr_paper.py. Its ResNet-20 is not that of He et al. for CIFAR (`resnet20`, 0.27 million
parameters) but one with the widths of ResNet-18 (11.5 million): `resnet20_xia`. The settings differ from the
repository's newest ones, which are in cifar10_vgg11_standard.py, in the batch of 256, the learning rate of 0.1, crops
after a padding of 4, and test images that are not resized. The paper's λ of 300 is the weight 1.10 at this batch size;
the random start alone (method `random_flow`) is its λ = 0. Not run yet.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete, methods
from robust_jax.configs.cifar10_vgg11_standard import reference


def paper(dataset: str, method: str) -> ConfigDict:
    """The settings of all experiments of the paper."""
    c = reference(dataset)
    c.model.name = "vgg13"
    c.batch_size = 256
    c.schedule.learning_rate = 0.1
    c.data.augment.resize = c.data.eval_resize = 0
    c.data.augment.padding = 4
    methods.choose(c, method, methods.SIZES["cifar10"])
    if method == "fgr":
        c.terms.fgr.weight = 1.10
    return complete(c)


def get_config(method: str = "fgr") -> ConfigDict:
    return paper("cifar10", method)
