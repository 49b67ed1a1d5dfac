"""Standard training of SmallCNN on MNIST, 5 epochs.

python train.py --config=mnist_standard --workdir=runs/mnist_standard [--config.data.data_dir=DIR]

What it reaches: table `mnist` of benchmarks/reproduce.py. About 12 minutes of one CPU core.
"""

from ml_collections import ConfigDict

from robust_jax.config import base, complete

FLOW_RADII = (0.25, 0.5, 0.75)
ADDITIVE_RADII = (0.1, 0.2)


def mnist() -> ConfigDict:
    """The settings of all MNIST experiments: SmallCNN, 5 epochs, Adam with a one-cycle schedule, and the attacks."""
    c = base("mnist", "small_cnn")
    c.epochs = 5.0
    c.schedule.name = "one_cycle"
    c.schedule.learning_rate = 0.003
    c.optimizer.name = "adam"
    for perturbation, radii in (("flow", FLOW_RADII), ("additive", ADDITIVE_RADII)):
        for radius in radii:
            c.attacks[f"{perturbation}_{radius}".replace(".", "_")] = dict(
                kind="pgd", perturbation=perturbation, norm="linf", radius=radius, steps=20, restarts=2
            )
    c.evaluation.limit = 1000
    return c


def get_config() -> ConfigDict:
    c = mnist()
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    return complete(c)
