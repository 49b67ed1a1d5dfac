"""Every training method on MNIST in minutes: SmallCNN, 10,000 training images, 625 steps of 32, 10 inner steps.

python train.py --config=configs/mnist_short_methods.py:trades --workdir=runs/short_trades [--config.data.data_dir=DIR]

The methods are the functions of configs/methods.py. Evaluated on the first 1,000 test images.
"""

from ml_collections import ConfigDict

from configs.methods import Sizes, choose
from configs.mnist_standard import mnist
from robust_jax.config import complete

SIZES = Sizes(intensity=0.2, pixels=0.5, universal=(0.2, 1.5), rotation=(20.0, 2.0, 2.0), steps=10, numbers=784)

# Where a method does not train here with the weights that it has on the digits: those that replace them.
WEIGHTS = {
    "family_l1": {"terms.gain.weight": 0.1},
    "family_composed": {"terms.gain.weight": 0.3},
    "llr": {"terms.gap.weight": 1.0, "terms.slope.weight": 0.5},
}


def get_config(method: str = "standard") -> ConfigDict:
    c = mnist()
    c.data.limit = 10_000
    c.batch_size = 32
    c.epochs = 2.0
    c.eval_every_epochs = 1.0
    c.select_limit = 1000
    # For so many methods; eval.py --config.evaluation.checks=64 --config.evaluation.pictures=10 looks at one.
    c.evaluation.checks = c.evaluation.pictures = 0
    c.attacks = {}
    strong = dict(kind="pgd", norm="linf", steps=20)
    c.attacks.additive = strong | dict(perturbation="additive", radius=SIZES.intensity)
    c.attacks.flow = strong | dict(perturbation="flow", radius=SIZES.pixels)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    both = dict(perturbation=("flow", "additive"), radius=(SIZES.pixels / 2, SIZES.intensity / 2))
    c.attacks.composed = strong | both  # at half of both
    choose(c, method, SIZES)
    c.update_from_flattened_dict(WEIGHTS.get(method, {}))
    return complete(c)
