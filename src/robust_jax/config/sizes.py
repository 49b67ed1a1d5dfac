"""The sizes of perturbations that training methods share, for each dataset and setting."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """What the methods of one dataset share.

    Attributes:
      intensity: the radius of additive linf.
      pixels: the radius of flow linf; also sigma of the random starts of FGR.
      universal: the radii of additive and flow linf for one δ that serves all images, which has to be larger.
      rotation: (degrees, pixels, pixels), the radius of affine linf.
      steps: the number of steps of inner maximisations.
      numbers: D, the number of values of an image, over all pixels and channels.
    """

    intensity: float
    pixels: float
    universal: tuple[float, float]
    rotation: tuple[float, float, float]
    steps: int
    numbers: int


SIZES: dict[str, Sizes] = {
    "digits": Sizes(0.1, 0.25, universal=(0.25, 0.75), rotation=(15.0, 0.5, 0.5), steps=5, numbers=64),
    # The papers' radius and number of inner steps, and what shorter runs take instead.
    "mnist": Sizes(0.3, 0.5, universal=(0.3, 1.5), rotation=(30.0, 3.0, 3.0), steps=40, numbers=784),
    "mnist_short": Sizes(0.2, 0.5, universal=(0.2, 1.5), rotation=(20.0, 2.0, 2.0), steps=10, numbers=784),
    "mnist_maxout": Sizes(0.1, 0.5, universal=(0.3, 1.5), rotation=(15.0, 2.0, 2.0), steps=10, numbers=784),
    "cifar10": Sizes(8 / 255, 0.155, universal=(8 / 255, 1.5), rotation=(30.0, 3.0, 3.0), steps=10, numbers=3072),
}
