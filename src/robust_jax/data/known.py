"""Facts about well-known datasets that a config needs before any data is read. It imports neither grain nor TFDS.

A dataset needs no entry: without one its images are not normalised unless the config says how.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from robust_jax.extensions import module_of


class Facts(NamedTuple):
    """What is known about a dataset.

    Attributes:
      image_shape: (height, width, channels) of every image.
      num_classes: labels are 0 to ``num_classes - 1``.
      mean: of the training images in [0, 1], one per channel.
      std: their standard deviation, one per channel.
      class_names: one per class.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_HUNDRED = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee",
    "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant",
    "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower",
    "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
    "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate",
    "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark",
    "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip",
    "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip

KNOWN = {
    "digits": Facts((8, 8, 1), 10, (0.305,), (0.376,), _DIGITS),
    "mnist": Facts((28, 28, 1), 10, (0.1307,), (0.3081,), _DIGITS),
    "fashion_mnist": Facts((28, 28, 1), 10, (0.2860,), (0.3530,), _CLOTHES),
    "cifar10": Facts((32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _THINGS),
    "cifar100": Facts((32, 32, 3), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), _HUNDRED),
    "svhn_cropped": Facts((32, 32, 3), 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), _DIGITS),
}
NAMES = tuple(KNOWN)
"""The names of these datasets; any other image-classification dataset of TFDS can be loaded too."""


def facts(name: str) -> Facts | None:
    """What is known about a dataset, also by a name with version or config, such as "mnist:3.0.1"."""
    return None if module_of(name) else KNOWN.get(name.split("/")[0].split(":")[0])


STATISTICS = {name: (known.mean, known.std) for name, known in KNOWN.items()}
"""Name -> mean and standard deviation of the training images, in [0, 1]."""
IMAGE_SHAPES = {name: (known.image_shape, known.num_classes) for name, known in KNOWN.items()}
"""Name -> (image shape, number of classes)."""


def is_well_known(mean: Any, std: Any) -> bool:
    """Whether a normalisation is none, or that of a well-known dataset: `robust_jax.config.base` fills these in."""

    def same(given: Any, known: tuple[float, ...]) -> bool:
        return np.size(given) == len(known) and np.allclose(np.ravel(given), known, rtol=1e-5)

    return any(same(mean, a) and same(std, b) for a, b in (((0.0,), (1.0,)), *STATISTICS.values()))
