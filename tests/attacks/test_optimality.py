"""How far attacks are from the best there is: from exact distances, and from the best of all attacks together.

The distance of an image is the smallest radius at which it can be broken. An attack is behind by the share of images
within its radius that it leaves. Bounds are what was seen, with room for a few images: an attack that becomes weaker is
beyond them. Where a bound is far from 0, the reason is beside it.
"""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, norms
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import warp
from simple_models import Linear, digits_network

KEY = jax.random.key(0)
SIDE = 5
ENTRANTS = {
    "pgd": partial(attacks.pgd, steps=40, restarts=2),
    "apgd": partial(attacks.apgd, steps=40, restarts=2),
    "apgd_dlr": partial(attacks.apgd_dlr, steps=40, restarts=2),
    "apgd_targeted": partial(attacks.apgd_targeted, steps=40),
    "fab": partial(attacks.fab, steps=40),
    "fab_targeted": partial(attacks.fab_targeted, steps=40),
    "deepfool": attacks.deepfool,
    "ddn": attacks.ddn,
    "carlini_wagner": partial(attacks.carlini_wagner, steps=100),
    "ead": partial(attacks.ead, steps=100),
    "fmn": attacks.fmn,
    "square": partial(attacks.square, queries=300),
    "random_search": partial(attacks.random_search, samples=300),
    "grid": partial(attacks.grid, points=(15, 9, 9)),
}


@jax.tree_util.register_pytree_node_class
class Bowl:
    """Two classes, the first within a sphere: the margin ``‖x - middle‖² - square`` is convex."""

    def __init__(self, middle, square):
        self.middle, self.square = middle, square

    def __call__(self, images):
        inside = self.square - jnp.square(images.reshape(len(images), -1) - self.middle).sum(-1)
        return jnp.stack([inside, -inside], -1)

    def tree_flatten(self):
        return (self.middle, self.square), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


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
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32))


UNITS = {"affine": (10.0, 1.0, 1.0)}


@lru_cache
def linear_in_the_open(norm):
    """Three classes, far from the box: the distance is the margin over the dual norm of the difference of weights."""
    model, images = plane(3), pool(1, 0.45, 0.55)
    logits = np.asarray(model(jnp.asarray(images)), np.float64)
    labels = logits.argmax(-1)
    weights = np.asarray(model.weights, np.float64).T
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
    model = Bowl(jnp.full(n, 0.49), jnp.float32(square))
    return model, images, np.zeros(len(images), int), np.where(lacking > 0, distances, 0)


@lru_cache
def linear_over_flows(norm):
    """Two classes. Pixels move independently: the best flow is that of a knapsack, by dynamic programming."""
    model, images = plane(2, 3), jnp.asarray(pool(3))
    logits = np.asarray(model(images), np.float64)
    labels = logits.argmax(-1)
    weights = np.asarray(model.weights, np.float64)
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


def left_standing(kind, norm, name):
    """The share of images within reach that an attack leaves, over three radii: those with 1.02 distance <= radius."""
    make, space, ranges = KINDS[kind]
    model, images, labels, distances = make(norm)
    low, high = ranges[norm]
    chosen = np.flatnonzero((distances > low) & (distances < high))[:40]
    images, labels, distances = jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), distances[chosen]
    left = within = 0
    for radius in np.quantile(distances, (0.3, 0.6, 0.9)):
        threat = ThreatModel(space, norm, jax.tree.map(lambda unit, r=radius: float(unit * r), UNITS.get(space, 1.0)))
        standing = ~np.asarray(ENTRANTS[name](model, images, labels, threat, key=KEY).success)
        reachable = 1.02 * distances <= radius
        # No attack finds what is not there; over flows and affine maps distances are those of a grid.
        assert standing[distances > 1.2 * radius].all()
        left, within = left + (standing & reachable).sum(), within + reachable.sum()
    return left / within


# Of linear models over flows and affine maps, and of a bowl: attack -> the share that it may leave.
QUICK = [
    # A step towards one hyperplane is exact. Cross-entropy mixes the classes, and need not end at the nearest one.
    ("linear", "l1", dict(fab=0.01, apgd=0.15)),
    # Which coordinate gets the budget is decided by luck: each one alone is a local maximum.
    ("bowl", "l1", dict(fab=0.01, pgd=0.05)),
    # Pixels share one budget; from pixel to pixel there is no way uphill. Square has to find the pixel and the way.
    ("flow", "l21", dict(apgd=0.05, apgd_targeted=0.05, square=0.8)),
    # What is minimised must be differentiated as its negative: of slopes across kinks, not only the sign changes. And a
    # step in l1 may take no pixel far beyond a kink.
    ("flow", "l2", dict(carlini_wagner=0.02)),
    ("flow", "l1", dict(apgd=0.1, ead=0.05, fmn=0.1)),
    # Few parameters, many local maxima: what tries points all over the ball is ahead.
    ("affine", "linf", dict(square=0.05)),
    ("affine", "l1", dict(square=0.05)),
]
SLOW = [
    ("linear", "l1", dict(pgd=0.15, apgd_targeted=0.1, fab_targeted=0.01, square=0.5)),
    (
        "linear",
        "l2",
        dict(pgd=0.15, apgd=0.15, apgd_targeted=0.05, fab=0.01, ddn=0.01, carlini_wagner=0.01, square=0.45),
    ),
    ("linear", "linf", dict(pgd=0.15, apgd=0.15, apgd_targeted=0.05, fab=0.01, square=0.05)),
    # The climbs through larger balls end at other coordinates than the largest.
    ("bowl", "l1", dict(apgd=0.6, apgd_targeted=0.75)),
    ("bowl", "l2", dict(pgd=0.1, apgd=0.02, fab=0.02, ddn=0.02)),
    ("bowl", "linf", dict(pgd=0.08, apgd=0.08, apgd_targeted=0.1, fab=0.02, square=0.02)),
    ("flow", "linf", dict(pgd=0.02, apgd=0.02, apgd_targeted=0.02, fab=0.02, square=0.2)),
    ("flow", "l2inf", dict(pgd=0.02, apgd=0.02, apgd_targeted=0.02, fab=0.02, square=0.1)),
    ("flow", "l2", dict(pgd=0.05, apgd=0.05, apgd_targeted=0.05, fab=0.05, square=0.6)),
    ("flow", "l21", dict(pgd=0.2, fab=0.1, fmn=0.05)),
    ("flow", "l1", dict(pgd=0.2, apgd_targeted=0.15, fab=0.2, square=0.8)),
    ("affine", "linf", dict(pgd=0.3, apgd=0.15, apgd_targeted=0.2, fab=0.2, grid=0.02, random_search=0.05)),
    ("affine", "l2", dict(pgd=0.2, apgd=0.2, apgd_targeted=0.2, fab=0.15, square=0.05, grid=0.02)),
    ("affine", "l1", dict(pgd=0.2, apgd=0.2, apgd_targeted=0.2, fab=0.2, grid=0.02)),
]


def cases(table):
    """One parameter for each attack."""
    return [(kind, norm, name, bound) for kind, norm, bounds in table for name, bound in bounds.items()]


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("kind, norm, name, bound", cases(QUICK))
def test_is_near_the_exact_optimum(kind, norm, name, bound):
    assert left_standing(kind, norm, name) <= bound


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("kind, norm, name, bound", cases(SLOW))
def test_others_are_near_the_exact_optimum(kind, norm, name, bound):
    assert left_standing(kind, norm, name) <= bound


# A trained network on the digits: the share of images that the best of all breaks and the attack leaves.
NETWORK = {
    "additive/l1": (1.0, dict(pgd=0.1, apgd=0.05, apgd_targeted=0.05, square=0.3)),
    "flow/l21": (3.0, dict(pgd=0.3, apgd=0.15, apgd_targeted=0.1, square=0.55)),
    "flow/l1": (3.0, dict(pgd=0.35, apgd=0.1, apgd_targeted=0.1, square=0.45)),
    "affine/l1": (0.6, dict(pgd=0.2, apgd=0.1, apgd_targeted=0.05, square=0.1)),
}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("ball", NETWORK)
def test_is_near_the_best_of_all_on_a_network(ball):
    radius, bounds = NETWORK[ball]
    model, images, labels = digits_network()
    images, labels = images[:40], labels[:40]
    space, norm = ball.split("/")
    threat = ThreatModel(space, norm, jax.tree.map(lambda unit: float(unit * radius), UNITS.get(space, 1.0)))
    broken = {name: np.asarray(ENTRANTS[name](model, images, labels, threat, key=KEY).success) for name in bounds}
    best = np.any(list(broken.values()), 0)
    behind = {name: float((best & ~rows).mean()) for name, rows in broken.items()}
    assert 0.1 < best.mean() < 0.98, best.mean()
    assert all(behind[name] <= bound for name, bound in bounds.items()), behind
