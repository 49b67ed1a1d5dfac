"""Every training method on scikit-learn's digits, and the attacks that compare them.

python train.py --config=digits_methods:trades --workdir=runs/digits_trades

The methods are the functions of robust_jax.config.methods; docs/methods.md has their accuracies, from

python benchmarks/reproduce.py digits_methods
"""

from ml_collections import ConfigDict

from robust_jax.config import complete, methods
from robust_jax.configs.digits_standard import digits

SIZES = methods.SIZES["digits"]


def get_config(method: str = "standard") -> ConfigDict:
    c = digits()
    c.evaluation.batch_size = 360  # the whole test split
    methods.compare(c, SIZES, steps=20, restarts=2)
    methods.choose(c, method, SIZES)
    return complete(c)
