"""Draws what `robust_jax.evaluation.landscapes` computes.

As in `pictures`, each function draws on a figure of its own and returns it. It writes a PNG to ``path``, a path or an
open binary file, unless that is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_jax.evaluation.curves import COLOURS
from robust_jax.evaluation.drawing import SIGNED, Picture, Target, saved
from robust_jax.evaluation.landscapes import Gradients, Surface
from robust_jax.options.signatures import checks_arguments


@checks_arguments
def surface_grid(
    surfaces: Mapping[str, Surface], *, path: Target | None = None, labels: Sequence[int] = (), title: str = ""
) -> Figure:
    """Draws loss surfaces as contours: a row per model, a column per image, all of a column on one scale.

    Up is the direction of the attack, with the clean image at the cross and the adversarial one at the dot; to the
    right is the random direction.

    Args:
      surfaces: model name -> its surface, all of the same images and positions.
      path: the PNG file, or an open binary file.
      labels: of the images, above the columns.
      title: above the picture.

    Raises:
      ValueError: no surface, or surfaces of different shapes.
    """
    if not surfaces or len({np.shape(s.loss) for s in surfaces.values()}) != 1:
        shapes = {name: np.shape(s.loss) for name, s in surfaces.items()}
        raise ValueError(f"surface_grid needs at least one surface, all of the same shape: got {shapes}.")
    columns = len(next(iter(surfaces.values())).loss)
    figure, axes = _figure(len(surfaces), columns, 1.7, title)
    losses = np.stack([np.asarray(s.loss, float) for s in surfaces.values()])
    for column in range(columns):
        shown = np.ma.masked_invalid(losses[:, column])
        if shown.mask.all():  # nothing to draw
            shown = np.ma.zeros(shown.shape)
        levels = np.linspace(shown.min(), max(shown.max(), shown.min() + 1e-6), 16)
        for row, surface in enumerate(surfaces.values()):
            at = surface.positions
            drawn = axes[row, column].contourf(at, at, shown[row], levels=levels, cmap="viridis")
            axes[row, column].plot(0, 0, "+", color="white", ms=7)
            axes[row, column].plot(0, 1, "o", color="#b2182b", ms=3)
        bar = figure.colorbar(drawn, ax=axes[:, column], location="bottom", shrink=0.9, pad=0.02)
        bar.set_ticks([levels[0], levels[-1]])
        bar.ax.tick_params(labelsize=7)
        if len(labels):
            axes[0, column].set_title(str(labels[column]), fontsize=9)
    _name_rows(axes, list(surfaces))
    return saved(figure, path)


@checks_arguments
def gradient_grid(
    images: Float[np.ndarray, "b h w c"],
    gradients: Mapping[str, Gradients],
    *,
    path: Target | None = None,
    title: str = "",
) -> Figure:
    """Draws images, and below them the input and flow gradients of each model.

    The input gradient is the sum over channels, red where a brighter pixel raises the loss and blue where it lowers it;
    of the flow gradient the length per pixel is drawn. Each picture has its own scale, up to the 99.5th percentile.

    Args:
      images: ``[B, H, W, C]`` in [0, 1], C = 1 or 3.
      gradients: model name -> the gradients of these images.
      path: the PNG file, or an open binary file.
      title: above the picture.
    """
    figure, axes = _figure(1 + 2 * len(gradients), len(images), 0.85, title)
    images = np.asarray(images)
    for i, image in enumerate(images):
        grey = image.shape[-1] == 1
        axes[0, i].imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
        for row, one in enumerate(gradients.values()):
            signed, length = np.asarray(one.image[i]).sum(-1), np.linalg.norm(np.asarray(one.flow[i]), axis=-1)
            top = _top(np.abs(signed))
            axes[1 + 2 * row, i].imshow(signed, cmap=SIGNED, vmin=-top, vmax=top, interpolation="nearest")
            axes[2 + 2 * row, i].imshow(length, cmap="gray_r", vmin=0, vmax=_top(length), interpolation="nearest")
    _name_rows(axes, ["image", *(f"{name}\n{kind}" for name in gradients for kind in ("input", "flow"))])
    return saved(figure, path)


@checks_arguments
def histograms(
    values: Mapping[str, Any], *, xlabel: str, path: Target | None = None, title: str = "", log: bool = False
) -> Figure:
    """Draws the distribution of one number per image for several models, such as distances or gradient norms.

    Each is a step outline over common bins, with a line at the median of all its numbers but NaN, if that can be drawn.
    What is not finite, such as the distance of an image whose boundary was not found, is counted in the legend.

    Args:
      values: model name -> ``[n]``.
      xlabel: what the numbers are, with their unit.
      path: the PNG file, or an open binary file.
      title: above the chart.
      log: whether bins are even in the logarithm; numbers that are not positive are then left out.

    Raises:
      ValueError: no number that can be drawn.
    """
    every = {name: np.asarray(one, float).reshape(-1) for name, one in values.items()}
    drawn = {name: one[np.isfinite(one) & ((one > 0) | (not log))] for name, one in every.items()}
    if not sum(map(len, drawn.values())):
        raise ValueError(f"histograms: {xlabel} has no {'positive ' if log else ''}finite number to draw.")
    low, high = (f(np.concatenate(list(drawn.values()))) for f in (np.min, np.max))
    high = high if high > low else low + 1e-6
    bins = np.geomspace(low, high, 41) if log else np.linspace(low, high, 41)
    figure = Picture(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, one) in enumerate(drawn.items()):
        colour, rest = COLOURS[index % len(COLOURS)], len(every[name]) - len(one)
        label = f"{name} ({rest} of {len(every[name])} not drawn)" if rest else name
        axes.hist(one, bins=bins.tolist(), histtype="step", lw=1.6, color=colour, label=label)
        known = every[name][~np.isnan(every[name])]
        middle = float(np.median(known)) if len(known) else np.nan
        if np.isfinite(middle) and (middle > 0 or not log):
            axes.axvline(middle, color=colour, ls=":", lw=1.2)
    axes.set(xlabel=xlabel, ylabel="images", xscale="log" if log else "linear")
    _finish(axes, title)
    return saved(figure, path)


def _figure(rows: int, columns: int, size: float, title: str) -> tuple[Figure, np.ndarray]:
    figure = Picture(figsize=(0.9 + size * columns, 0.7 + size * rows), dpi=150, layout="constrained")
    axes = np.reshape(figure.subplots(rows, columns), (rows, columns))
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    return figure, axes


def _name_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    for one, name in zip(axes[:, 0], names, strict=True):
        one.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def _top(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.995)) or 1.0


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10) if title else None
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
