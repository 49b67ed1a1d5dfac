"""Pictures of adversarial examples, and of the perturbations of several norms side by side.

Each function draws on a figure of its own, so no global state changes: no `pyplot`, no backend to choose, no window. It
returns the figure, which a notebook displays, and writes a PNG to `path` (a path or an open binary file) unless that is
None.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_jax.evaluation.drawing import (
    MUTED,
    RIGHT,
    WRONG,
    Picture,
    Target,
    arrow_scale,
    arrows,
    class_name,
    ordinal,
    saved,
    show,
    show_difference,
)  # fmt: skip
from robust_jax.evaluation.drawn import flow_of
from robust_jax.options.signatures import checks_arguments


@checks_arguments
def adversarial_grid(
    clean: Float[np.ndarray, "b h w c"],
    adversarial: Float[np.ndarray, "b h w c"],
    delta: Any,
    labels: Sequence[int],
    clean_predictions: Sequence[int],
    adversarial_predictions: Sequence[int],
    *,
    path: Target | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draws one column per example: clean image, adversarial image, what changed, and the two predictions.

    A flow `[B, H, W, 2]` is drawn as arrows over the clean image, from a pixel to the place from which its new value
    is sampled (dx to the right and dy downwards, as in the image), magnified by a factor that is stated. Any other
    perturbation is drawn as the difference of the images on a symmetric scale, which is stated too; a composition with
    a flow as both.

    Args:
      clean: `[B, H, W, C]` in [0, 1], C = 1 or 3; B columns, of which at most about 10 are readable.
      adversarial: `[B, H, W, C]`, the images that the attack returned.
      delta: the attack's perturbation; only a flow, or the first flow of a composition, is used.
      labels: `[B]` true classes.
      clean_predictions: `[B]`.
      adversarial_predictions: `[B]`.
      path: the PNG file, or an open binary file; None: none is written.
      class_names: one per class, in place of its number.
      title: above the picture.

    Returns:
      The figure.

    Raises:
      ValueError: images that are neither grey nor RGB, no example, or classes that are not one per image.
    """
    clean, adversarial = np.asarray(clean), np.asarray(adversarial)
    if clean.ndim != 4 or clean.shape[-1] not in (1, 3) or not len(clean):
        raise ValueError(f"adversarial_grid needs [B, H, W, 1 or 3] images with B > 0, got {clean.shape}")
    classes_of = dict(
        labels=labels, clean_predictions=clean_predictions, adversarial_predictions=adversarial_predictions
    )
    for name, classes in classes_of.items():
        if np.shape(classes) != clean.shape[:1] or not np.issubdtype(np.asarray(classes).dtype, np.integer):
            raise ValueError(f"adversarial_grid: {name} must be integers [{len(clean)}], one per image.")
    flow, is_all = _as_flow(delta, clean.shape)
    difference = adversarial - clean
    scale = float(np.abs(difference).max()) or 1.0
    magnify, stride = arrow_scale(flow) if flow is not None else (1.0, 1)
    rows = ["clean", "adversarial"]
    rows += [] if flow is None else [_flow_legend(magnify, stride)]
    rows += [] if is_all else [f"difference\n±{scale:.3g}"]
    caption = _caption(flow, is_all, grey=clean.shape[-1] == 1) + _prediction_legend(labels, clean_predictions)
    layout = _layout(clean.shape, len(rows), caption, title)
    figure, axes = _axes(layout, len(rows), len(clean))

    names = list(class_names or ())
    for i in range(len(clean)):
        axes[0][i].set_title(class_name(names, labels[i]), fontsize=9, pad=3)
        show(axes[0][i], clean[i])
        show(axes[1][i], adversarial[i])
        if flow is not None:
            show(axes[2][i], 0.6 + 0.4 * clean[i])  # pale, under the arrows
            arrows(axes[2][i], flow[i], magnify, stride)
        if not is_all:
            show_difference(axes[-2][i], difference[i], scale)
        three = (int(clean_predictions[i]), int(adversarial_predictions[i]), int(labels[i]))
        _show_predictions(axes[-1][i], three, names, layout.cell)

    _write_margins(figure, axes, layout, (*rows, "predicted"))
    return saved(figure, path)


class _Layout(NamedTuple):
    """Measures of a grid of examples, in inches.

    Attributes:
      cell: the width of an image.
      image: the height of an image.
      line: the height of the row of predictions.
      left: the margin for the names of the rows.
      bottom: the margin for the caption.
      top: the margin for the title.
      across: the width of the whole.
      tall: the height of the whole.
      caption: wrapped to the width.
      title: wrapped to the width.
    """

    cell: float
    image: float
    line: float
    left: float
    bottom: float
    top: float
    across: float
    tall: float
    caption: str
    title: str


def _layout(shape: tuple[int, ...], rows: int, caption: str, title: str) -> _Layout:
    count, height, width, _ = shape
    cell, left, line = float(np.clip(8.2 / count, 0.82, 1.6)), 1.25, 0.4
    across = left + count * cell + 0.1
    caption = textwrap.fill(caption, int(13 * (across - 0.3)))
    title = textwrap.fill(title, int(10.5 * (across - 0.3)))
    bottom, top = 0.2 + 0.16 * (1 + caption.count("\n")), 0.35 + (0.1 + 0.18 * len(title.splitlines())) * bool(title)
    tall = rows * cell * height / width + line + bottom + top
    return _Layout(cell, cell * height / width, line, left, bottom, top, across, tall, caption, title)


def _axes(layout: _Layout, rows: int, count: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of images and one of predictions, without ticks and frames."""
    figure = Picture(figsize=(layout.across, layout.tall), dpi=150)
    grid = figure.add_gridspec(
        rows + 1,
        count,
        height_ratios=[layout.image] * rows + [layout.line],
        wspace=0.06,
        hspace=0.05,
        left=layout.left / layout.across,
        right=1 - 0.1 / layout.across,
        bottom=layout.bottom / layout.tall,
        top=1 - layout.top / layout.tall,
    )
    axes = [[figure.add_subplot(grid[row, column]) for column in range(count)] for row in range(rows + 1)]
    for one in (one for row in axes for one in row):
        one.set(xticks=[], yticks=[])
        one.spines[:].set_visible(False)
    return figure, axes


def _show_predictions(axes: Axes, classes: tuple[int, int, int], names: Sequence[str], cell: float) -> None:
    """The classes predicted before and after the attack, coloured by the true class, the last of ``classes``."""
    before, after, truth = classes
    colour = MUTED if before != truth else RIGHT if after == truth else WRONG
    text = class_name(names, before)
    if before != after:
        text += ("\n→ " if len(text) > 4 else " → ") + class_name(names, after)
    longest = max(len(part) for part in text.split("\n"))
    axes.text(
        0.5,
        0.5,
        text,
        ha="center",
        va="center",
        color=colour,
        linespacing=1.1,
        fontsize=float(np.clip(100 * cell / longest, 5, 9 if "\n" in text else 10)),
        fontweight="bold" if before != after else "normal",
    )


def _write_margins(figure: Figure, axes: list[list[Axes]], layout: _Layout, rows: Sequence[str]) -> None:
    """The names of the rows to their left, the title above and the caption below."""
    edge = (layout.left - 0.12) / layout.across
    for row, text in enumerate(rows):
        box = axes[row][0].get_position()
        figure.text(edge, (box.y0 + box.y1) / 2, text, ha="right", va="center", fontsize=9)
    above = axes[0][0].get_position().y1 + 0.045 / layout.tall
    figure.text(edge, above, "true class", ha="right", va="baseline", fontsize=9)
    figure.text(0.12 / layout.across, 0.1 / layout.tall, layout.caption, fontsize=8, color=MUTED, va="bottom")
    figure.text(0.12 / layout.across, 1 - 0.12 / layout.tall, layout.title, fontsize=11, va="top", linespacing=1.15)


@checks_arguments
def perturbation_grid(
    images: Float[np.ndarray, "b h w c"],
    perturbations: Mapping[str, Float[np.ndarray, "b h w c"]],
    *,
    path: Target | None = None,
    title: str = "",
) -> Figure:
    """Draws images, and below each its perturbations, one row per kind.

    Each perturbation is drawn on a symmetric scale of its own, up to the 99.5th percentile of its absolute values:
    norms near l1 concentrate on few pixels.

    Args:
      images: `[B, H, W, C]` in [0, 1], C = 1 or 3.
      perturbations: name -> `[B, H, W, C]`, to be added to the images.
      path: the PNG file, or an open binary file; None: none is written.
      title: above the picture.

    Returns:
      The figure.

    Raises:
      ValueError: a perturbation that is not of the images' shape.
    """
    for name, perturbation in perturbations.items():
        if perturbation.shape != images.shape:
            raise ValueError(f"perturbation {name!r} has shape {perturbation.shape}, the images have {images.shape}.")
    rows, columns = 1 + len(perturbations), len(images)
    figure = Picture(figsize=(0.9 + 0.85 * columns, 0.4 + 0.85 * rows), dpi=150, layout="constrained")
    axes = np.reshape(figure.subplots(rows, columns), (rows, columns))
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    for i in range(columns):
        show(axes[0, i], images[i])
        for row, perturbation in zip(axes[1:], perturbations.values(), strict=True):
            show_difference(row[i], perturbation[i], float(np.quantile(np.abs(perturbation[i]), 0.995)) or 1.0)
    for one, name in zip(axes[:, 0], ["image", *perturbations], strict=True):
        one.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(textwrap.fill(title, int(10.5 * figure.get_figwidth())), fontsize=11)
    return saved(figure, path)


def _as_flow(delta: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, bool]:
    """The flow of these images in δ, None if there is none, and whether it is all of δ."""
    flow = flow_of(delta, shape)
    return flow, flow is not None and not isinstance(delta, tuple | list)


def _flow_legend(magnify: float, stride: int) -> str:
    every = "" if stride == 1 else f",\nevery {ordinal(stride)} pixel"
    return f"flow\narrows ×{magnify:.3g}{every}"


def _caption(flow: np.ndarray | None, is_all: bool, *, grey: bool) -> str:
    """What arrows and colours mean."""
    sentences = []
    if flow is not None:
        longest = float(np.linalg.norm(flow, axis=-1).max())
        sentences.append(
            "An arrow points from a pixel to the place its new value is taken from. "
            f"The longest stands for {longest:.3g} px."
        )
    if not is_all:
        subject = "" if flow is None else "Difference: "
        colours = "white is no change, red brighter, blue darker." if grey else "grey is no change."
        sentences.append(subject + (colours if subject else colours.capitalize()))
    return " ".join(sentences)


def _prediction_legend(labels: Sequence[int], clean_predictions: Sequence[int]) -> str:
    """What the colours of the predictions mean."""
    before = "; grey, wrong without it" if np.any(np.asarray(labels) != np.asarray(clean_predictions)) else ""
    return f" Predictions: green, right under the attack; red, broken by it{before}."
