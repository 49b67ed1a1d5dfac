"""Every training method on scikit-learn's digits, and the attacks that compare them.

python train.py --config=configs/digits_methods.py:trades --workdir=runs/digits_trades

The methods are the functions of configs/methods.py. Seen (seed 0, all 360 test images, under two minutes each on two
CPU cores): an additive perturbation of 0.25 made from 100 training images turns 42.0% of images into its target after
standard training, 8.6% after rat; one flow of 0.75 px 67.8%, after rat_flow 27.7%. Clean 98.6, 99.2, 97.5%.

python benchmarks/compare.py --seeds=0 --universal=100 --configs=digits_methods:standard,digits_methods:rat
"""

from ml_collections import ConfigDict

from configs.digits_standard import digits
from configs.methods import Sizes, choose
from robust_jax.config import complete

SIZES = Sizes(intensity=0.1, pixels=0.25, universal=(0.25, 0.75), rotation=(15.0, 0.5, 0.5), steps=5, side=8)


def get_config(method: str = "standard") -> ConfigDict:
    c = digits()
    c.attacks = {}
    strong = dict(kind="pgd", norm="linf", steps=20, restarts=2)
    c.attacks.additive = strong | dict(perturbation="additive", radius=SIZES.intensity)
    c.attacks.flow = strong | dict(perturbation="flow", radius=SIZES.pixels)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    both = dict(perturbation=("flow", "additive"), radius=(SIZES.pixels, SIZES.intensity))
    c.attacks.composed = strong | both
    choose(c, method, SIZES)
    return complete(c)
