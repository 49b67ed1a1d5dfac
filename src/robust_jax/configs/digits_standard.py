"""Standard training of a small CNN on scikit-learn's digits.

python train.py --config=digits_standard --workdir=runs/digits_standard

docs/results.md has what it reaches. Under a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from robust_jax.config import base, complete


def digits() -> ConfigDict:
    """The settings of all experiments on the digits."""
    c = base("digits", "digits_cnn")
    c.epochs = 30.0
    c.batch_size = 64
    c.schedule.name = "one_cycle"
    c.schedule.learning_rate = 0.003
    c.optimizer.name = "adam"
    flow = dict(kind="pgd", perturbation="flow", norm="linf", steps=20, restarts=3)
    c.attacks.flow_0_155 = flow | dict(radius=0.155, curve=(0.0, 0.5, 1.0, 1.5, 2.0))
    c.attacks.flow_0_25 = flow | dict(radius=0.25)
    c.eval_every_epochs = 5.0
    c.evaluation.checkpoint = "latest"  # 144 validation images are too few to tell late checkpoints apart
    c.attacks.additive = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.1, steps=20, restarts=3)
    return c


def get_config() -> ConfigDict:
    c = digits()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    return complete(c)
