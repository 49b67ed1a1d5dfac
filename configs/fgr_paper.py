"""FGR with the settings of its paper, which its repository's first commit has (Xia & Li 2021): CIFAR-10 and CIFAR-100.

python train.py --config=configs/fgr_paper.py:cifar100_fgr --workdir=runs/fgr [--config.model.name=resnet20]

The argument is DATASET_METHOD, the method one of robust_jax/config/methods.py. The paper has VGG-13 and ResNet-20, both
with BatchNorm. cifar10_vgg11_standard.py has the repository's newest settings; these differ in the batch of 256, the
learning rate of 0.1, crops after a padding of 4, and test images that are not resized. Its λ of 300 is the weight 1.10
at this batch size; the random start alone (method `random_flow`) is its λ = 0. Not run to the end yet.
"""

from ml_collections import ConfigDict

from configs.cifar10_vgg11_standard import reference
from robust_jax.config import complete, methods
from robust_jax.extensions import choose


def get_config(experiment: str = "cifar10_fgr") -> ConfigDict:
    dataset, _, method = experiment.partition("_")
    choose("dataset", dataset, ("cifar10", "cifar100"))
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
