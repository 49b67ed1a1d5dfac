"""Augmentation on the device: pure functions of (images, keys), for inside the jitted train step.

Randomness is per example: `keys[i]` alone decides what happens to image i, so that a batch split
over devices or hosts draws the same. Make the keys by folding in the examples' ids:
`jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch["id"])`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MIXING = ("mixup", "cutmix")
"""Keys of a config's ``data.augment`` that `mix` takes; the others are those of `augment`."""


def augment(
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    *,
    resize: int = 0,
    padding: int = 0,
    flip: bool = False,
) -> Float[Array, "b h w c"]:
    """Resizes, pads with zeros, crops at random to the input's size, flips half of the images sideways.

    The FGR reference trains with `resize=36, flip=True` (CIFAR-10); usual is `padding=4, flip=True`.

    Args:
      images: In [0, 1]; the result is too.
      keys: One typed key per example.
      resize: The new length of the shorter side, at least the old one; 0 for none.
      padding: Pixels of zeros on each side, after resizing; fewer than a side has.
      flip: Whether to flip each image with probability 1/2.

    Raises:
      ValueError: `resize` less than the image, padding out of its range, wrong rank or type, or another number of keys
        than images.
    """
    if images.ndim != 4 or keys.shape != images.shape[:1]:
        raise ValueError(f"augment takes images [B, H, W, C] and keys [B], not {images.shape} and {keys.shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"augment takes float images, not {images.dtype}: use data.to_float.")
    height, width = images.shape[1:3]
    if not 0 <= padding < min(height, width):
        raise ValueError(
            f"padding = {padding} of {height}x{width} images must be at least 0 and less than a side: other crops "
            f"hold nothing of the image."
        )
    images = resize_images(images, resize)
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    spare = images.shape[1] - height, images.shape[2] - width
    if not flip and not any(spare):
        return images  # for small networks the draws would take longer than the training step

    def draw(key: Array) -> tuple[Array, Array, Array]:
        row, column, mirror = jax.random.split(key, 3)
        return (
            jax.random.randint(row, (), 0, spare[0] + 1),
            jax.random.randint(column, (), 0, spare[1] + 1),
            jax.random.bernoulli(mirror),
        )

    rows, columns, mirrored = jax.vmap(draw)(keys)
    return crop(images, rows, columns, (height, width), mirrored if flip else None)


def crop(
    images: Float[Array, "b h w c"],
    rows: Int[Array, " b"],
    columns: Int[Array, " b"],
    size: tuple[int, int],
    mirrored: Bool[Array, " b"] | None = None,
) -> Float[Array, "b y x c"]:
    """The window of `size` at (rows[i], columns[i]) of image i, reversed in x where mirrored[i]."""
    x = jnp.arange(size[1])
    x = x if mirrored is None else jnp.where(mirrored[:, None], x[::-1], x)
    y = rows[:, None] + jnp.arange(size[0])
    x = columns[:, None] + x
    return images[jnp.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]]


def resize_images(images: Float[Array, "b h w c"], resize: int) -> Float[Array, "b y x c"]:
    """Bilinear upsampling that makes the shorter side `resize` long; 0 returns the images.

    Pixel centres are aligned as in torchvision and PIL (`align_corners=False`: output i reads input
    (i + 1/2) H / resize - 1/2, clamped). The result is not rounded to 8 bits, as PIL's is.
    """
    height, width = images.shape[1:3]
    shorter = min(height, width)
    if resize in (0, shorter):
        return images
    if resize < shorter:
        raise ValueError(f"resize = {resize} is less than the images' {height}x{width}; give 0 or >= {shorter}.")
    size = resize * height // shorter, resize * width // shorter
    resized = jax.image.resize(images, (len(images), *size, images.shape[3]), "bilinear")
    return jnp.clip(resized, 0, 1)  # the weights sum to 1 only up to rounding


def resize_and_center_crop(images: Float[Array, "b h w c"], resize: int) -> Float[Array, "b h w c"]:
    """The counterpart of `augment(resize=...)` at test time: resizes, then crops the centre to the input's size."""
    height, width = images.shape[1:3]
    images = resize_images(images, resize)
    # torchvision's CenterCrop rounds half to even.
    row, column = round((images.shape[1] - height) / 2), round((images.shape[2] - width) / 2)
    return images[:, row : row + height, column : column + width]


def mix(
    images: Float[Array, "b h w c"],
    labels: Float[Array, "b k"],
    other_images: Float[Array, "b h w c"],
    other_labels: Float[Array, "b k"],
    keys: Key[Array, " b"],
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Each image and its label mixed with another's: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    mixup: ``λ x + (1 - λ) x'`` and ``λ y + (1 - λ) y'``, ``λ ~ Beta(α, α)``. CutMix: a box of the other image, of
    ``sqrt(1 - λ)`` of the height and width, centred at a random place and cut off at the border, replaces the image's
    own; the labels' shares are those of the areas. If both are asked for, each image gets one of them, by a fair coin.

    Args:
      images: in [0, 1].
      labels: the probability of each class, such as one-hot ones.
      other_images: the images to mix with, such as ``images`` in another order.
      other_labels: theirs.
      keys: one typed key per example.
      mixup: α of mixup, 0 for none; 0.2 for ImageNet and 1 for CIFAR-10 in the paper.
      cutmix: α of CutMix, 0 for none; 1 in the paper.

    Returns:
      Images and soft labels.

    Example::

        mixed, soft = mix(images, onehot, images[::-1], onehot[::-1], keys, mixup=0.2)
    """
    if not (mixup or cutmix):
        return images, labels
    alphas = jnp.array([alpha for alpha in (mixup, cutmix) if alpha])
    kinds = [kind for kind, alpha in ((_blended, mixup), (_pasted, cutmix)) if alpha]

    def one(image: Array, label: Array, other: Array, others: Array, key: Array) -> tuple[Array, Array]:
        coin, beta, place = jax.random.split(key, 3)
        chosen = jax.random.randint(coin, (), 0, len(kinds))
        share = jax.random.beta(beta, alphas[chosen], alphas[chosen])
        image, share = jax.lax.switch(chosen, kinds, image, other, share, place)
        return image, share * label + (1 - share) * others

    return jax.vmap(one)(images, labels, other_images, other_labels, keys)


def _blended(image: Array, other: Array, share: Array, key: Array) -> tuple[Array, Array]:
    return share * image + (1 - share) * other, share


def _pasted(image: Array, other: Array, share: Array, key: Array) -> tuple[Array, Array]:
    """The image with a box of the other one, and the share of it that is left."""
    inside = jnp.array(True)
    for axis, axis_key in zip((0, 1), jax.random.split(key), strict=True):
        size = image.shape[axis]
        half = jnp.sqrt(1 - share) * size / 2
        centre = jax.random.uniform(axis_key, (), maxval=size)
        at = jnp.expand_dims(jnp.arange(size) + 0.5, 1 - axis)
        inside &= jnp.abs(at - centre) <= half
    return jnp.where(inside[..., None], other, image), 1 - inside.mean()
