"""Region adversarial training on the digits (Wang et al. 2021), under attacks that it was not trained on.

python train.py --config=digits_rat:100 --workdir=runs/digits_rat_100

The argument is the number of training images from which the universal perturbations are made; 0 is standard training.
"""

from ml_collections import ConfigDict

from robust_jax.config import complete
from robust_jax.configs import digits_methods


def get_config(examples: str = "100") -> ConfigDict:
    c = digits_methods.get_config("rat" if int(examples) else "standard")
    if int(examples):
        c.points.region.examples = int(examples)
    additive = dict(perturbation="additive", norm="linf", radius=digits_methods.SIZES.intensity)
    c.attacks = {
        "fgsm": dict(kind="fgsm", **additive),
        "pgd": dict(kind="pgd", steps=20, restarts=2, **additive),
        "carlini_wagner": dict(kind="carlini_wagner", perturbation="additive", norm="l2", radius=0.5, steps=100),
    }
    return complete(c)
