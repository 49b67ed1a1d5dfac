"""Every training method on CIFAR-10; those of `PAPERS` have their papers' model, schedule and inner steps.

python train.py --config=cifar10_methods:trades --workdir=runs/cifar10_trades --config.data.data_dir=DIR

The methods are the functions of robust_jax.config.methods. The defaults are PreActResNet-18, linf 8/255, 10 steps of
2/255, and 200 epochs of SGD at 0.1, a tenth of it after 100 and 150 epochs (Rice et al. 2020). lfr_wrn is lfr with
WRN-28-10; FGR as in its paper is cifar10_fgr_paper.py. These runs need a GPU, and none
has been run to the end yet. Images are normalised within the model, which some of the papers do not do. A tenth of the
training images is set aside to choose the checkpoint on, for `PAPERS` under a short PGD: late in such long runs robust
accuracy falls while clean accuracy rises (Rice et al. 2020).
"""

from typing import Any

from ml_collections import ConfigDict

from robust_jax.config import base, complete, methods

SIZES = methods.SIZES["cifar10"]
LFR = {"points.roughest.step_size": 0.007, "terms.lfr.weight": 0.03, "schedule.boundaries": (150.0, 250.0),
       "epochs": 300.0, "optimizer.weight_decay": 2e-4}  # fmt: skip
ZHANG = {"epochs": 100.0, "schedule.boundaries": (75.0, 90.0), "optimizer.weight_decay": 2e-4}
TRAIN_MODE = {"points.attacked.batch_norm": "train"}  # in the inner maximisation
WONG = TRAIN_MODE | {"schedule.name": "one_cycle", "epochs": 30.0}

# The settings of the papers: method -> (model, radius of additive linf, keys that differ from the defaults).
PAPERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "linearised": ("maxout_cifar", 0.05, {"optimizer.max_norm": 1.9365, "optimizer.weight_decay": 0.0}),
    "fgsm_rs": ("preact_resnet18", 8 / 255, WONG | {"schedule.learning_rate": 0.2}),
    "gradalign": ("preact_resnet18", 8 / 255, WONG | {"schedule.learning_rate": 0.3}),
    "trades": ("wrn_34_10", 0.031, ZHANG | {"points.attacked.step_size": 0.007, "terms.kl.weight": 6.0}),
    "mart": ("resnet18", 0.031, ZHANG | {
        "points.attacked.step_size": 0.007, "epochs": 120.0, "schedule.learning_rate": 0.01,
        "optimizer.weight_decay": 3.5e-3,
    }),
    "pgd": ("wrn_34_10", 8 / 255, TRAIN_MODE | {
        "points.attacked.steps": 7, "points.attacked.step_size": 2 / 255, "optimizer.weight_decay": 2e-4,
    }),
    "awp": ("preact_resnet18", 8 / 255, TRAIN_MODE),
    "lfr": ("resnet20", 0.031, LFR),
    "lfr_wrn": ("wrn_28_10", 0.031, LFR),
    "universal": ("wrn_28_10", 8 / 255, {"points.all.step_size": 1 / 255}),
}  # fmt: skip


def get_config(method: str = "standard") -> ConfigDict:
    model, radius, keys = PAPERS.get(method, ("preact_resnet18", SIZES.intensity, {}))
    c = base("cifar10", model)
    c.epochs = 200.0
    c.schedule.name = "piecewise"
    c.schedule.learning_rate = 0.1
    c.schedule.boundaries = (100.0, 150.0)
    c.optimizer.weight_decay = 5e-4
    c.data.augment.padding = 4
    c.data.augment.flip = True
    strong = dict(kind="pgd", norm="linf", steps=40, restarts=2)
    c.attacks.additive = strong | dict(perturbation="additive", radius=radius)
    c.attacks.flow = strong | dict(perturbation="flow", radius=SIZES.pixels)
    c.attacks.affine = strong | dict(perturbation="affine", radius=SIZES.rotation)
    if method in PAPERS:
        c.attacks.short = dict(kind="pgd", norm="linf", steps=10, perturbation="additive", radius=radius)
        c.select_by, c.select_limit = "short", 1000
    name = method if method in methods.METHODS else method.removesuffix("_wrn")
    methods.choose(c, name, SIZES._replace(intensity=radius, universal=(radius, SIZES.universal[1])))
    c.update_from_flattened_dict(keys)
    return complete(c)
