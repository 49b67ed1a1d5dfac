"""Every training method on scikit-learn's digits, and the attacks that compare them.

python train.py --config=configs/digits_methods.py:trades --workdir=runs/digits_trades

The methods are the functions of configs/methods.py; docs/methods.md has their accuracies, from

python benchmarks/compare.py --configs=digits_methods:all --seeds=0,1,2 --universal=100 --jobs=2
"""

from ml_collections import ConfigDict

from configs.digits_standard import digits
from configs.methods import Sizes, choose
from robust_jax.config import complete

SIZES = Sizes(intensity=0.1, pixels=0.25, universal=(0.25, 0.75), rotation=(15.0, 0.5, 0.5), steps=5, numbers=64)


def get_config(method: str = "standard") -> ConfigDict:
    c = digits()
    c.evaluation.batch_size = 360  # the whole test split
    # For so many methods; eval.py --config.evaluation.checks=64 --config.evaluation.pictures=10 looks at one.
    c.evaluation.checks = c.evaluation.pictures = 0
    c.attacks = {}
    strong = dict(kind="pgd", norm="linf", steps=20, restarts=2)
    c.attacks.additive = strong | dict(perturbation="additive", radius=SIZES.intensity)
    c.attacks.flow = strong | dict(perturbation="flow", radius=SIZES.pixels)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    both = dict(perturbation=("flow", "additive"), radius=(SIZES.pixels / 2, SIZES.intensity / 2))
    c.attacks.composed = strong | both  # at half of both: at the whole of both standard training has nothing left
    choose(c, method, SIZES)
    return complete(c)
