"""What pictures are made of: figures, images, signed differences, arrows, and the names of classes.

A figure is drawn without `pyplot`, so that no global state changes: no backend to choose, no window.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

RIGHT, WRONG, MUTED, ARROW = "#00714f", "#c03000", "#666666", "#b51d00"

SIGNED = LinearSegmentedColormap.from_list("signed", ["#2166ac", "#ffffff", "#b2182b"])

Target = str | os.PathLike[str] | BinaryIO


class Picture(Figure):
    """A figure that a notebook displays without `pyplot`."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def saved(figure: Figure, path: Target | None) -> Figure:
    """The figure, written as PNG if there is a path."""
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def arrow_scale(flow: np.ndarray) -> tuple[float, int]:
    """The factor that makes the longest arrow span the stride, and the stride: about 9 arrows per side."""
    stride = max(1, round(max(flow.shape[1:3]) / 9))
    longest = float(np.linalg.norm(flow, axis=-1).max())
    if longest == 0:
        return 1.0, stride
    factor = stride / longest
    digits = 10 ** np.floor(np.log10(factor))  # to one digit, as stated and drawn
    return float(max(np.floor(factor / digits), 1) * digits), stride


def show(axes: Axes, image: np.ndarray) -> None:
    """Draws one image, grey or RGB, each pixel as a square."""
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )


def show_difference(axes: Axes, difference: np.ndarray, scale: float) -> None:
    """Draws a signed difference on a symmetric scale: from blue over white to red, or for RGB around grey."""
    if difference.shape[-1] == 1:
        axes.imshow(difference[..., 0], cmap=SIGNED, vmin=-scale, vmax=scale, interpolation="nearest")
        axes.spines[:].set(visible=True, color="#cccccc", linewidth=0.6)
    else:
        axes.imshow(np.clip(0.5 + difference / (2 * scale), 0, 1), interpolation="nearest")


def arrows(axes: Axes, flow: np.ndarray, magnify: float, stride: int) -> None:
    """Draws the arrows of a flow on every `stride`-th pixel: dx to the right, dy downwards."""
    rows = np.arange(stride // 2, flow.shape[0], stride)
    columns = np.arange(stride // 2, flow.shape[1], stride)
    picked = flow[np.ix_(rows, columns)] * magnify
    # In data units a vector follows the axes, and imshow's y axis grows downwards.
    axes.quiver(
        columns,
        rows,
        picked[..., 1],
        picked[..., 0],
        angles="xy",
        scale_units="xy",
        scale=1,
        color=ARROW,
        units="width",
        width=0.013,
        headwidth=4,
        headlength=4,
        headaxislength=3.5,
        minlength=0.3,
    )


def class_name(names: Sequence[str], label: Any) -> str:
    """The name of a class, or its number if it has none; '?' for -1, the class of non-finite logits."""
    label = int(label)
    return "?" if label < 0 else str(names[label]) if label < len(names) else str(label)


def ordinal(number: int) -> str:
    """2nd, 3rd, 4th, ..."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number not in (11, 12, 13) else "th"
    return f"{number}{suffix}"
