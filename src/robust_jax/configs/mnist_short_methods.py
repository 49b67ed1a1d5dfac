"""Every training method on MNIST in minutes: SmallCNN, 10,000 training images, 625 steps of 32, 10 inner steps.

python train.py --config=mnist_short_methods:trades --workdir=runs/short_trades [--config.data.data_dir=DIR]

The methods are the functions of robust_jax.config.methods. Evaluated on the first 1,000 test images.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete, methods
from robust_jax.configs.mnist_standard import mnist

SIZES = methods.SIZES["mnist_short"]

# Methods that do not train with the weights that suit the digits, and the weights that they have instead.
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
    methods.compare(c, SIZES, steps=20)
    methods.choose(c, method, SIZES)
    c.update_from_flattened_dict(WEIGHTS.get(method, {}))
    return complete(c)
