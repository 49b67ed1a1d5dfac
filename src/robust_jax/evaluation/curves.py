"""Charts of evaluations: accuracy against the radius, and robust against clean accuracy over a sweep.

As in `pictures`, each function draws on a figure of its own, returns it, and writes it to `path` if one is given.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from robust_jax.evaluation.drawing import MUTED, Picture, Target, saved
from robust_jax.options import Range
from robust_jax.options.signatures import checks_arguments

# Okabe and Ito's colours: distinct for colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@checks_arguments
def accuracy_curves(
    curves: Mapping[str, Mapping[str, Any]],
    path: Target | None = None,
    *,
    title: str = "",
    xlabel: str = "radius",
    highlight: Annotated[float, Range()] | None = None,
) -> Figure:
    """Draws robust accuracy against the radius of the ball, one line per model with its confidence band.

    Args:
      curves: model name -> `{"radius": [R], "accuracy": [R], "interval": [R, 2]}`, accuracies in
        [0, 1]; the form of `curve` in `evaluation.json`. Radius 0 is the clean accuracy.
      path: the PNG file, or an open binary file; None: none is written.
      title: above the chart; say which attack.
      xlabel: of the radius axis; name the unit.
      highlight: a radius to mark by a dotted line, such as the one that accuracies are reported at.

    Returns:
      The figure.

    Raises:
      ValueError: no curve, or one whose lists differ in length.
    """
    if not curves:
        raise ValueError("accuracy_curves got no curve: give at least one model name -> curve")
    figure = Picture(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        radius, accuracy, interval = _checked(name, curve)
        order = np.argsort(radius)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(radius[order], accuracy[order], color=colour, marker=marker, ms=5, lw=1.8, label=name)
        low, high = interval[order].T
        axes.fill_between(radius[order], low, high, color=colour, alpha=0.15, lw=0)
    if highlight is not None:
        axes.axvline(highlight, color=MUTED, ls=":", lw=1, zorder=0)
    axes.set(ylim=(-0.02, 1.02), xlabel=xlabel)
    _finish(figure, axes, title)
    _legend(figure, axes, "95% Wilson bands")
    return saved(figure, path)


def _checked(name: str, curve: Mapping[str, Any]) -> list[np.ndarray]:
    """The radii, accuracies and intervals of a curve; raises ValueError unless there is one of each per radius."""
    try:
        radius, accuracy, interval = arrays = [np.asarray(curve[k], float) for k in ("radius", "accuracy", "interval")]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"curves[{name!r}] must have the numbers radius [R], accuracy [R] and interval [R, 2]: {error!r}."
        ) from error
    if radius.ndim != 1 or accuracy.shape != radius.shape or interval.shape != (*radius.shape, 2):
        raise ValueError(
            f"curves[{name!r}] has radius {radius.shape}, accuracy {accuracy.shape} and interval {interval.shape}: it "
            f"needs [R], [R] and [R, 2], one of each per radius."
        )
    return arrays


@checks_arguments
def trade_off(
    clean: Sequence[float],
    robust: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    path: Target | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draws robust against clean accuracy, one line per attack through the runs of a sweep, in the order given.

    Args:
      clean: the clean accuracy of each run, in [0, 1].
      robust: attack -> the accuracy of each run under it.
      labels: one per run, such as the value of the key that was swept.
      path: the PNG file, or an open binary file; None: none is written.
      title: above the chart; say what was swept.

    Returns:
      The figure.

    Raises:
      ValueError: lists that differ in length.
    """
    if any(len(clean) != len(other) for other in (labels, *robust.values())):
        counts = {"labels": len(labels)} | {f"robust[{name!r}]": len(other) for name, other in robust.items()}
        raise ValueError(f"trade_off: clean has {len(clean)} accuracies, one per run, but there are {counts}.")
    figure = Picture(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    points = []
    for index, (name, accuracy) in enumerate(robust.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(clean, accuracy, color=colour, marker=marker, ms=5, lw=1.2, label=name)
        points += [(x, y, label, colour) for x, y, label in zip(clean, accuracy, labels, strict=True)]
    axes.set(xlabel="clean accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(0.12)
    _finish(figure, axes, title)
    _legend(figure, axes)
    _label(figure, axes, points)
    return saved(figure, path)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes a label beside each point, inside of the axes, where it covers no other label, no point and, if possible,
    no line.

    Args:
      figure: its layout is computed, since labels are placed by their size on it.
      axes: of the chart.
      points: (x, y, label, colour).
    """
    figure.draw_without_rendering()
    inside, dot = axes.get_window_extent(), 3 * figure.dpi / 72
    on_screen = axes.transData.transform
    lines = [_square(x, y, 1) for line in axes.get_lines() for x, y in _along(on_screen(line.get_xydata()))]
    taken = [_square(x, y, dot) for x, y in (on_screen(point[:2]) for point in points)]
    for x, y, label, colour in points:
        text = axes.annotate(
            textwrap.shorten(label, 40, placeholder="…"), (x, y), (0, 0), textcoords="offset points", fontsize=7,
            color=colour,
        )  # fmt: skip
        text.set_in_layout(False)
        place = _free_place(text, inside, [*taken, *lines]) or _free_place(text, inside, taken)
        if place is None:
            text.remove()  # of points that lie on each other one label says enough
        else:
            taken.append(place)


def _free_place(text: Annotation, inside: Bbox, taken: Sequence[Bbox]) -> Bbox | None:
    """Moves a label to the first place that is free, and returns that; None if there is none."""
    for dx, dy, align in _PLACES:
        text.set(position=(dx, dy), ha=align)
        box = text.get_window_extent()
        fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if fits and not box.count_overlaps(taken):
            return box
    return None


def _square(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _along(corners: np.ndarray) -> Iterator[np.ndarray]:
    """Points on a line, a few pixels apart."""
    for start, end in pairwise(corners):
        count = int(np.hypot(*(end - start)) // 4) + 2
        yield from np.linspace(start, end, count)


# Offsets of a label from its point in typographic points, the best first, and its alignment.
_PLACES = [
    (side * far, up, "left" if side > 0 else "right")
    for far, heights in ((5, (3, -9, 10, -16)), (16, (0, 10, -10, 18, -18)), (30, (0, 12, -12, 24, -24)))
    for up in heights
    for side in (1, -1)
]


def _legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """The names below the chart, where they cover nothing."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), 75 // (8 + max(map(len, names), default=1))))
    figure.set_figheight(3.9 + 0.21 * -(-len(names) // columns))
    figure.legend(
        handles, [textwrap.fill(name, 80) for name in names], loc="outside lower center", ncols=columns, frameon=False,
        fontsize=9, title=title, title_fontsize=8,
    )  # fmt: skip


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    axes.set(ylabel="robust accuracy")
    if title:
        figure.suptitle(textwrap.fill(title, 68), fontsize=11, x=0.01, ha="left")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
