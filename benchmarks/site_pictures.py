"""Draws docs/spaces.png, one digit under each perturbation, and docs/front.png, what deformations do to three networks.

python train.py --config=mnist_short_methods:standard --workdir=runs/standard   # and :fgr, :adt
python benchmarks/site_pictures.py --workdirs=runs/standard,runs/fgr,runs/adt [--data_dir=DIR]

The curves are PGD over flows, linf, 20 steps, on the first 200 test images of MNIST, seed 0.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import robust_jax as rj
from robust_jax.workdir import runs

flags.DEFINE_list("workdirs", [], "Of train.py: standard training first.")
flags.DEFINE_list("names", ["standard training", "FGR", "adversarial deformation training"], "Of the workdirs.")
flags.DEFINE_string("data_dir", "", "Of the prepared MNIST; default: as the workdirs say.")
flags.DEFINE_integer("count", 200, "The number of test images of the curves.")
flags.DEFINE_string("out", "docs", "The folder of the pictures.")

RADII = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
COLOURS, MARKERS, ARROW = ("#0072b2", "#d55e00", "#00714f"), "osD", "#b51d00"


def deltas(logits_fn: object, images: jax.Array, labels: jax.Array) -> dict[str, tuple[rj.Perturbation, object]]:
    """Title -> the worst δ that PGD finds for these images, in a ball of each perturbation."""
    threats = {
        "additive, linf 0.2": rj.ThreatModel("additive", "linf", 0.2),
        "flow, linf 0.5 px": rj.ThreatModel("flow", "linf", 0.5),
        "affine, 30°, 3 px": rj.ThreatModel("affine", "linf", (30.0, 3.0, 3.0)),
        "flow and additive": rj.ThreatModel(("flow", "additive"), "linf", (0.5, 0.2)),
    }
    found = {}
    for title, threat in threats.items():
        result = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(1), steps=20, restarts=2)
        found[title] = (threat.perturbation, result.delta)
    return found


def show(axes: Axes, image: np.ndarray) -> None:
    """One grey image."""
    axes.imshow(np.clip(image[..., 0], 0, 1), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def arrows(axes: Axes, image: np.ndarray, flow: np.ndarray) -> None:
    """A flow over its image, magnified by 3."""
    axes.imshow(0.6 + 0.4 * image[..., 0], cmap="gray", vmin=0, vmax=1)
    y, x = np.mgrid[0 : flow.shape[0] : 2, 0 : flow.shape[1] : 2]
    dy, dx = (3 * flow[::2, ::2, i] for i in range(2))
    axes.quiver(x, y, dx, dy, color=ARROW, angles="xy", scale_units="xy", scale=1, width=0.008)
    axes.set_axis_off()


def spaces(logits_fn: object, image: jax.Array, label: jax.Array) -> Figure:
    """The digit under each perturbation, above what δ is."""
    found = deltas(logits_fn, image[None], label[None])
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    axes = figure.subplots(2, len(found) + 1)
    show(axes[0, 0], np.asarray(image))
    axes[0, 0].set_title("the image, δ = 0", fontsize=10)
    axes[1, 0].set_axis_off()
    axes[1, 0].text(0.98, 0.5, "δ", fontsize=16, ha="right", va="center", transform=axes[1, 0].transAxes)
    for column, (title, (space, delta)) in enumerate(found.items(), 1):
        above, below = axes[:, column]
        show(above, np.asarray(space.apply(image[None], delta))[0])
        above.set_title(title, fontsize=10)
        parts = delta if isinstance(delta, tuple) else (delta,)
        if space.name == "additive":
            below.imshow(np.asarray(parts[0])[0, ..., 0], cmap="RdBu_r", vmin=-0.25, vmax=0.25)
            below.set_axis_off()
        elif space.name == "affine":
            angle, dy, dx = np.asarray(parts[0])[0]
            below.set_axis_off()
            text = f"{angle:+.0f}°\ndy = {dy:+.1f} px\ndx = {dx:+.1f} px"
            below.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, transform=below.transAxes)
        else:
            arrows(below, np.asarray(image), np.asarray(parts[0])[0])
            if len(parts) > 1:
                below.imshow(np.asarray(parts[1])[0, ..., 0], cmap="RdBu_r", vmin=-0.25, vmax=0.25, alpha=0.4)
    return figure


def curve(logits_fn: object, images: jax.Array, labels: jax.Array) -> list[float]:
    """Robust accuracy at each radius; an image broken at a radius stays broken at larger ones."""
    broken, accuracies = np.array(logits_fn(images).argmax(-1) != labels), []
    for radius in RADII:
        if radius:
            threat = rj.ThreatModel("flow", "linf", radius)
            broken |= np.asarray(
                rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0), steps=20).success
            )
        accuracies.append(float(1 - broken.mean()))
    return accuracies


def front(models: dict[str, object], images: jax.Array, labels: jax.Array, count: int) -> Figure:
    """Digits that standard training misreads, and accuracy against the radius for each network."""
    standard = next(iter(models.values()))
    result = rj.attacks.pgd(
        standard, images[:40], labels[:40], rj.ThreatModel("flow", "linf", 0.5), key=jax.random.key(0)
    )
    read = np.asarray(standard(result.images).argmax(-1))
    right = np.asarray(standard(images[:40]).argmax(-1) == labels[:40])
    chosen = np.flatnonzero(np.asarray(result.success) & right)[:7]
    figure = Figure(figsize=(9.2, 5.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1.35])
    axes = above.subplots(2, len(chosen))
    for column, i in enumerate(chosen):
        show(axes[0, column], np.asarray(images[i]))
        show(axes[1, column], np.asarray(result.images[i]))
        axes[0, column].set_title(f"“{labels[i]}”", fontsize=12, color="#00714f", pad=3)
        axes[1, column].set_title(f"“{read[i]}”", fontsize=12, color="#c03000", pad=3)
    above.suptitle("Standard training reads these digits right, and misreads them bent by half a pixel", fontsize=11)
    chart = below.subplots()
    for (name, logits_fn), colour, marker in zip(models.items(), COLOURS, MARKERS, strict=False):
        accuracy = curve(logits_fn, images[:count], labels[:count])
        print(name, dict(zip(RADII, accuracy, strict=True)))
        chart.plot(RADII, [100 * a for a in accuracy], color=colour, marker=marker, lw=2, label=name)
    chart.set(xlabel="how far a pixel may move along each axis (px)", ylabel="robust accuracy (%)", ylim=(-2, 102))
    chart.grid(alpha=0.25)
    chart.spines[["top", "right"]].set_visible(False)
    chart.legend(frameon=False, fontsize=10)
    return figure


def main(_: list[str]) -> None:
    """Draws both."""
    flag = flags.FLAGS
    trained = [runs.load(workdir, "best", flag.data_dir or None) for workdir in flag.workdirs]
    models = {name: run.logits_fn for name, run in zip(flag.names, trained, strict=True)}
    images, labels = trained[0].examples(flag.count)
    standard = models[flag.names[0]]
    spaces(standard, images[0], labels[0]).savefig(Path(flag.out) / "spaces.png", dpi=110)
    front(models, images, labels, flag.count).savefig(Path(flag.out) / "front.png", dpi=110)


if __name__ == "__main__":
    app.run(main)
