"""Draws docs/flow_slope.png, the slope that attacks over flows follow: `python benchmarks/flow_slope.py`.

One pixel of one row is sampled at its own position + dx. Above: ``<g, T>`` of that pixel, which is linear between grid
lines and has a kink on them, with its derivative and the chord that attacks follow at one dx. Below: both slopes at
every dx. All curves are values of `robust_jax.spaces.flow.flow`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from robust_jax.spaces.flow import flow

flags.DEFINE_string("out", "docs/flow_slope.png", "The picture.")

# A bright stroke, dark on its left and grey on its right; a darker pixel means a larger loss, hence g < 0.
ROW, PIXEL, GRADIENT = (0.05, 0.05, 0.1, 0.9, 0.65, 0.75, 0.8), 3, -1.0
# The radius of the linf ball, in pixels, and the dx at which the upper picture shows the two slopes.
REACH, START = 1.5, 0.25
REWARD, DERIVATIVE, CHORD = "0.25", "#c44e52", "#2a6fbb"


def at(dx: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, flows and gradients ``[len(dx), 1, W, ...]``, in which one pixel is sampled dx away from its position."""
    images = jnp.broadcast_to(jnp.asarray(ROW)[None, None, :, None], (len(dx), 1, len(ROW), 1))
    delta = jnp.zeros((len(dx), 1, len(ROW), 2)).at[:, 0, PIXEL, 1].set(dx)
    return images, delta, jnp.zeros_like(images).at[:, 0, PIXEL, 0].set(GRADIENT)


def rewards(dx: np.ndarray) -> np.ndarray:
    """``<g, T>`` of the pixel at each dx."""
    images, delta, gradient = at(dx)
    return np.asarray((gradient * flow.apply(images, delta)).sum((1, 2, 3)))


def derivatives(dx: np.ndarray) -> np.ndarray:
    """The derivative of `rewards`, by JAX through the sampler."""
    images, delta, gradient = at(dx)
    return np.asarray(jax.vjp(lambda d: flow.apply(images, d), delta)[1](gradient)[0][:, 0, PIXEL, 1])


def slopes(dx: np.ndarray, reach: float | None) -> np.ndarray:
    """What attacks follow at each dx, with a reach (balls linf and l2inf) and without (l2)."""
    images, delta, gradient = at(dx)
    return np.asarray(flow.slope(images, delta, gradient, reach)[:, 0, PIXEL, 1])


def draw_rewards(axes: Axes, dx: np.ndarray) -> None:
    """``<g, T>``, and at one dx the tangent and the chord."""
    start, (value,) = np.array([START]), rewards(np.array([START]))
    axes.plot(dx, rewards(dx), color=REWARD, lw=2, label=r"$\langle g, T\rangle$ of the pixel, to be increased")
    lines = np.arange(-1, 2.0)
    axes.plot(lines, rewards(lines), "o", color=REWARD, ms=5)
    for slope, end, color, label in (
        (derivatives(start)[0], 1.0, DERIVATIVE, "the derivative at δ leads right, to the lower maximum"),
        (slopes(start, REACH)[0], -1.0, CHORD, "the chord that attacks follow leads left, across the kink"),
    ):
        tip = value + slope * (end - START)
        axes.annotate("", (end, tip), (START, value), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        axes.plot([], [], color=color, lw=2, label=label)
    axes.plot(start, [value], "o", color="white", mec="black", ms=8, zorder=3)
    axes.annotate("δ", (START, value), (4, -16), textcoords="offset points", fontsize=12)
    axes.set_ylabel(r"$\langle g, T(x, \delta)\rangle$")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.42), frameon=False, fontsize=9)


def draw_slopes(axes: Axes, dx: np.ndarray) -> None:
    """The derivative and what is followed in its place, at every dx."""
    axes.axhline(0, color="0.6", lw=0.8)
    axes.plot(dx, derivatives(dx), color=DERIVATIVE, lw=2, label="derivative")
    axes.plot(dx, slopes(dx, REACH), color=CHORD, lw=2, label="followed in linf and l2inf balls: the best chord")
    other = "followed in l2 balls: from the nearest grid line to its better side"
    axes.plot(dx, slopes(dx, None), color=CHORD, lw=1.5, ls=":", label=other)
    axes.set_ylabel("slope in dx")
    axes.set_xlabel("dx in pixels, within a linf ball of radius 1.5")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), frameon=False, fontsize=9)


def main(_: list[str]) -> None:
    """Draws and saves the picture."""
    matplotlib.use("Agg")
    dx = np.linspace(-REACH, REACH, 1201)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.4, 6), sharex=True, constrained_layout=True)
    draw_rewards(upper, dx)
    draw_slopes(lower, dx)
    for axes in (upper, lower):
        for line in np.arange(-1, 2):
            axes.axvline(line, color="0.85", lw=1, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(flags.FLAGS.out, dpi=120)


if __name__ == "__main__":
    app.run(main)
