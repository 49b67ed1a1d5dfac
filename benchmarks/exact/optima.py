"""Models whose nearest misclassified point is known exactly: of each image the smallest radius that breaks it."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robust_jax import norms
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import warp

SIDE = 5


def _linear(weights, bias, images):
    """``images @ weights + bias``."""
    return images.reshape(len(images), -1) @ weights + bias


def _bowl(middle, square, images):
    """Two classes, the first within a sphere: the margin ``‖x - middle‖² - square`` is convex."""
    inside = square - jnp.square(images.reshape(len(images), -1) - middle).sum(-1)
    return jnp.stack([inside, -inside], -1)


def pool(seed, low=0.0, high=1.0, count=200):
    """Smooth random images, `[count, SIDE, SIDE, 1]`."""
    noise = np.random.default_rng(seed).normal(size=(count, SIDE + 1, SIDE + 1))
    smooth = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]
    spread = np.ptp(smooth, axis=(1, 2), keepdims=True)
    unit = (smooth - smooth.min((1, 2), keepdims=True)) / spread
    return (low + (high - low) * unit)[..., None].astype(np.float32)


def plane(classes, seed=0):
    """A linear model."""
    weights = np.random.default_rng(seed).normal(size=(SIDE**2, classes))
    bias = -weights.T @ np.full(SIDE**2, 0.5)  # so that grey is on the boundary
    return Partial(_linear, jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32))


UNITS = {"affine": (10.0, 1.0, 1.0)}


@lru_cache
def linear_in_the_open(norm):
    """Three classes, far from the box: the distance is the margin over the dual norm of the difference of weights."""
    model, images = plane(3), pool(1, 0.45, 0.55)
    logits = np.asarray(model(jnp.asarray(images)), np.float64)
    labels = logits.argmax(-1)
    weights = np.asarray(model.args[0], np.float64).T
    away = weights[labels][:, None] - weights[None]
    gain = np.asarray(norms.norm(jnp.asarray(away.reshape(-1, SIDE**2)), norms.dual(norm))).reshape(-1, 3)
    margins = logits[np.arange(len(labels)), labels][:, None] - logits
    distances = np.where(gain > 0, margins / np.where(gain > 0, gain, 1), np.inf).min(-1)
    return model, images, labels, distances


@lru_cache
def bowl_in_the_open(norm):
    """The farthest point of a ball from the bowl's middle: in l1 the largest coordinate takes the whole radius."""
    images = pool(2, 0.45, 0.55)
    offsets = images.reshape(len(images), -1).astype(np.float64) - 0.49
    inside, n = np.square(offsets).sum(-1), SIDE**2
    square = np.median(inside) + 0.02
    lacking = square - inside
    rate = {"l1": abs(offsets).max(-1), "l2": np.sqrt(inside), "linf": abs(offsets).mean(-1)}[norm]
    curve = lacking / {"l1": 1, "l2": 1, "linf": n}[norm]
    distances = np.sqrt(np.maximum(rate**2 + curve, 0)) - rate
    model = Partial(_bowl, jnp.full(n, 0.49), jnp.float32(square))
    return model, images, np.zeros(len(images), int), np.where(lacking > 0, distances, 0)


@lru_cache
def linear_over_flows(norm):
    """Two classes. Pixels move independently: the best flow is that of a knapsack, by dynamic programming."""
    model, images = plane(2, 3), jnp.asarray(pool(3))
    logits = np.asarray(model(images), np.float64)
    labels = logits.argmax(-1)
    weights = np.asarray(model.args[0], np.float64)
    w = (weights[:, 1] - weights[:, 0]).reshape(SIDE, SIDE, 1) * np.where(labels == 0, 1, -1)[:, None, None, None]
    count = 100
    parts = np.linspace(0, 1, count + 1)  # of the budget, which in l2 is the squared size
    sizes = 2 * np.sqrt(parts) if norm == "l2" else 3 * parts
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    ways = np.stack([np.sin(angles), np.cos(angles)], -1)
    ways /= np.linalg.norm(ways, {"l1": 1, "linf": np.inf}.get(norm, 2), axis=-1, keepdims=True)
    moved = jax.jit(jax.vmap(lambda way: warp(images, jnp.broadcast_to(way, (*images.shape[:3], 2)))))
    at = np.asarray(moved(jnp.asarray((sizes[:, None, None] * ways).reshape(-1, 2), jnp.float32)), np.float64)
    gains = ((at - np.asarray(images)) * w).reshape(count + 1, len(ways), len(images), -1).max(1)
    gains = np.maximum.accumulate(gains)  # [sizes, images, pixels]
    if norm in ("linf", "l2inf"):
        most = gains.sum(-1)
    else:
        most = np.zeros((count + 1, len(images)))
        for pixel in np.moveaxis(gains, -1, 0):
            # What is spent on this pixel, and on those before it.
            most = np.stack([(most[budget::-1] + pixel[: budget + 1]).max(0) for budget in range(count + 1)])
    margins = abs(logits[:, 1] - logits[:, 0])
    return model, np.asarray(images), labels, np.array(
        [np.interp(m, g, sizes, right=np.inf) for m, g in zip(margins, most.T, strict=True)]
    )  # fmt: skip


@lru_cache
def linear_over_affine_maps(norm):
    """Three classes; the smallest of a fine grid of rotations and shifts that breaks an image."""
    model, images = plane(3, 4), jnp.asarray(pool(4, count=60))
    labels = np.asarray(model(images).argmax(-1))
    axis = np.linspace(-2, 2, 41)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    size = np.asarray(norms.norm(jnp.asarray(points), norm))
    order = np.argsort(size)
    order = order[size[order] <= 2]
    apply = ThreatModel("affine", norm, 1.0).perturbation.apply

    def broken(image, label):
        deltas = jnp.asarray(points[order] * UNITS["affine"], jnp.float32)
        moved = jax.vmap(lambda delta: apply(image[None], delta[None])[0])(deltas)
        return model(moved).argmax(-1) != label

    hit = np.asarray(jax.jit(lambda: jax.lax.map(lambda pair: broken(*pair), (images, jnp.asarray(labels))))())
    distances = np.where(hit.any(-1), size[order][hit.argmax(-1)], np.inf)
    return model, np.asarray(images), labels, distances


KINDS = {
    "linear": (linear_in_the_open, "additive", {"l1": (0.02, 0.3), "l2": (0.01, 0.1), "linf": (0.002, 0.02)}),
    "bowl": (bowl_in_the_open, "additive", {"l1": (0.03, 0.3), "l2": (0.01, 0.2), "linf": (0.001, 0.05)}),
    "flow": (
        linear_over_flows, "flow",
        dict.fromkeys(("linf", "l2inf"), (0.1, 1)) | dict.fromkeys(("l2", "l21", "l1"), (0.3, 1.9)),
    ),
    "affine": (linear_over_affine_maps, "affine", dict.fromkeys(("linf", "l2", "l1"), (0.3, 1.8))),
}  # fmt: skip
