"""Pictures of any kind as uint8 ``[H, W, C]`` with C = 1 or 3: one rule for files, arrays, tensors and PIL's images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_jax.extensions import choose

if TYPE_CHECKING:  # imported where it is used: most datasets do without
    from PIL import Image

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB")


def is_grey(what: Any, picture: Image.Image) -> bool:
    """Whether a picture has no colour, by its mode.

    Raises:
      ValueError: a mode of more than 8 bits.
    """
    if picture.mode not in _GREY + _COLOUR:
        raise ValueError(f"{what} has pixels of mode {picture.mode}: save it with 8 bits per channel.")
    return picture.mode in _GREY


def decoded(picture: Image.Image, channels: int, size: int, resize: str) -> np.ndarray:
    """A picture as uint8 ``[H, W, channels]``.

    It is turned as its EXIF data says. What is transparent shows white; palettes become RGB; grey becomes RGB if
    ``channels`` is 3.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if "transparency" in picture.info or picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = resized(picture.convert("L" if channels == 1 else "RGB"), size, resize)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def resized(picture: Image.Image, size: int, resize: str) -> Image.Image:
    """A picture of ``size`` x ``size`` pixels, bilinear with antialiasing as PIL resizes; size 0 changes nothing.

    Args:
      picture: of mode L or RGB.
      size: the height and width.
      resize: "crop" scales the shorter side to ``size`` and cuts out the centre; "stretch" scales both sides, which
        changes the proportions; "pad" scales the longer side to ``size`` and adds black borders.

    Raises:
      ValueError: another ``resize``.
    """
    from PIL import Image, ImageOps

    ways = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}
    choose("resize", resize, ways)
    if not size or picture.size == (size, size):
        return picture
    result: Image.Image = ways[resize](picture, (size, size), Image.Resampling.BILINEAR)  # type: ignore[operator]
    return result


def as_picture(what: Any, image: Any) -> Image.Image:
    """A PIL image of a PIL image or an array: uint8, or floats in [0, 1]; ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``.

    Raises:
      ValueError: anything else; begins with ``what``.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # channels first, as in PyTorch
    array = as_bytes(what, array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(
            f"{what} has shape {list(np.shape(image))}: an image is [H, W] or [H, W, C] with C = 1, 3 or 4."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def as_bytes(what: Any, array: np.ndarray) -> np.ndarray:
    """An array as uint8: floats in [0, 1], up to rounding, become round(255 x); whole numbers must be in 0..255.

    Raises:
      ValueError: other numbers; begins with ``what``.
    """
    array = np.asarray(array)
    if array.dtype == np.uint8:
        return array
    array = array.astype(np.float32) if array.dtype.name.startswith("bfloat") else array  # no float of NumPy's own
    floats = np.issubdtype(array.dtype, np.floating)
    if not (floats or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{what}: pixels must be numbers, not {array.dtype}.")
    values = np.rint(255 * array) if floats else array
    if array.size and not (values.min() >= 0 and values.max() <= 255):
        low, high = float(array.min()), float(array.max())
        raise ValueError(
            f"{what} has pixels from {low:.4g} to {high:.4g}: give uint8, or floats in [0, 1] before any normalisation."
        )
    return values.astype(np.uint8)


def one_shape(named: Iterable[tuple[Any, tuple[int, ...]]], way_out: str = "give data.size") -> tuple[int, ...]:
    """The height and width that all pictures have, of pairs (name, (height, width)).

    Raises:
      ValueError: several sizes; lists them with how often they occur and the first picture of each, and the way out.
    """
    found: dict[tuple[int, ...], list[Any]] = {}
    for name, size in named:
        found.setdefault(tuple(size), [0, name])[0] += 1
    if len(found) > 1:
        common = sorted(found.items(), key=lambda item: -item[1][0])
        shown = [f"{'x'.join(map(str, size))} ({count}, as {name})" for size, (count, name) in common[:4]]
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise ValueError(
            f"the images have {len(found)} sizes, height x width: {', '.join(shown)}{more}. To bring all to one, "
            f"{way_out}; resize says how: crop, stretch or pad."
        )
    return next(iter(found))
