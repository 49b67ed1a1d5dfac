"""Charts of evaluations: accuracy against the radius, and robust against clean accuracy over a sweep.

As in `pictures`, each function draws on a figure of its own, writes it to `path`, and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robust_jax.evaluation.pictures import MUTED, Target
from robust_jax.options import Range
from robust_jax.options.signatures import checks_arguments

# Okabe and Ito's colours: distinct for colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@checks_arguments
def accuracy_curves(
    curves: Mapping[str, Mapping[str, Any]],
    path: Target,
    *,
    title: str = "",
    xlabel: str = "radius",
    highlight: Annotated[float, Range()] | None = None,
) -> Figure:
    """Draws robust accuracy against the radius of the ball, one line per model with its confidence band.

    Args:
      curves: model name -> `{"radius": [R], "accuracy": [R], "interval": [R, 2]}`, accuracies in
        [0, 1]; the form of `curve` in `evaluation.json`. Radius 0 is the clean accuracy.
      path: the PNG file, or an open binary file.
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
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
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
    _finish(axes, title)
    axes.legend(frameon=False, loc="best", title="95% Wilson bands", title_fontsize=8)
    figure.savefig(path, format="png")
    return figure


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
    path: Target,
    *,
    title: str = "",
) -> Figure:
    """Draws robust against clean accuracy, one line per attack through the runs of a sweep, in the order given.

    Args:
      clean: the clean accuracy of each run, in [0, 1].
      robust: attack -> the accuracy of each run under it.
      labels: one per run, such as the value of the key that was swept.
      path: the PNG file, or an open binary file.
      title: above the chart; say what was swept.

    Returns:
      The figure.

    Raises:
      ValueError: lists that differ in length.
    """
    if any(len(clean) != len(other) for other in (labels, *robust.values())):
        counts = {"labels": len(labels)} | {f"robust[{name!r}]": len(other) for name, other in robust.items()}
        raise ValueError(f"trade_off: clean has {len(clean)} accuracies, one per run, but there are {counts}.")
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, accuracy) in enumerate(robust.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(clean, accuracy, color=colour, marker=marker, ms=5, lw=1.2, label=name)
        for x, y, label in zip(clean, accuracy, labels, strict=True):
            axes.annotate(label, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel="clean accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(0.12)
    _finish(axes, title)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, format="png")
    return figure


def _finish(axes: Axes, title: str) -> None:
    axes.set(ylabel="robust accuracy")
    axes.set_title(title, fontsize=11, loc="left")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
