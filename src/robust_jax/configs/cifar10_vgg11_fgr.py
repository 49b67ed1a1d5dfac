"""FGR of VGG-11 on CIFAR-10, with the hyper-parameters of the reference (Xia & Li 2021).

python train.py --config=cifar10_vgg11_fgr --workdir=runs/cifar10_fgr --config.data.data_dir=DIR

The reference penalises the gradient of the batch-mean loss (batch 128) in normalised units: its coefficient is
λ / 128² (31 / 2)² here, so 300, 200, 100 are the weights 4.40, 2.93, 1.47 (and 0 is the control, random start alone):
--config.terms.fgr.weight=1.47. Its numbers, clean and under its attack: 85.36 and 55.15% at 300, 86.02 and 53.06% at
200, 87.24 and 47.95% at 100. Not run to the end yet; cifar10_vgg11_standard says what differs.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs.cifar10_vgg11_standard import reference


def fgr(dataset: str) -> ConfigDict:
    """Random flows of 0.155 pixels (0.01 in normalised units), and the squared L2 norm of the flow gradient there."""
    c = reference(dataset)
    c.points.warped = dict(kind="random", perturbation="flow", sigma=0.155)
    c.terms.ce = dict(kind="cross_entropy", at="warped", weight=1.0)
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=4.40)
    return c


def get_config() -> ConfigDict:
    return complete(fgr("cifar10"))
