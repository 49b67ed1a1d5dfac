"""Standard training of VGG-11 on CIFAR-10, with the hyper-parameters of the FGR reference (Xia & Li 2021).

python train.py --config=cifar10_vgg11_standard --workdir=runs/cifar10_standard --config.data.data_dir=DIR

The reference's numbers: 90.27% clean, 6.41% under its attack. Not run to the end yet. What differs: a tenth of the
training images is set aside to choose the checkpoint on, where the reference trains on all and chooses on its test
images; the network normalises images, where the reference's sees them in [0, 1]; and flows are clamped at the border,
where the reference pads with zeros.
"""

from ml_collections import ConfigDict

from robust_jax.config import base, complete


def reference(dataset: str) -> ConfigDict:
    """The settings of all experiments of the reference, with its attack and a stronger one."""
    c = base(dataset, "vgg11")
    c.epochs = 80.0
    c.schedule.name = "piecewise"
    c.schedule.boundaries = (40.0, 60.0)
    c.optimizer.weight_decay = 5e-4
    # The reference resizes and centre-crops its test images too.
    c.data.augment.resize = c.data.eval_resize = 36
    c.data.augment.flip = True
    flow = dict(kind="pgd", perturbation="flow", norm="linf", radius=0.155)  # 0.01 in normalised units
    # 100 steps of radius / 100 from zero: each coordinate travels at most the radius, and cannot turn back.
    c.attacks.reference = flow | dict(steps=100, step_size=0.00155, random_start=False, keep="last")
    c.attacks.strong = flow | dict(steps=40, restarts=3, curve=(0.0, 0.5, 1.0, 1.5, 2.0))
    return c


def get_config() -> ConfigDict:
    c = reference("cifar10")
    c.terms.ce = dict(kind="cross_entropy", at="clean", weight=1.0)
    return complete(c)
