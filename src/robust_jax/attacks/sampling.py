"""Attacks that only try points of the ball: a grid, random draws, and noise as the baseline of other attacks.

They need no gradient, so that masked gradients do not mislead them, and over few parameters (rotation and translation,
Engstrom et al. 2019) they are stronger than PGD. Points are tried one after the other, in the memory of one forward
pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from robust_jax import losses
from robust_jax.attacks.define import Cost, Loss, Problem, attack
from robust_jax.attacks.result import AttackResult, Candidate, LogitsFn, best_of, clip_box
from robust_jax.losses import LossFn
from robust_jax.options import Count
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _grid_cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(1 + math.prod(o.points), 0)


@attack(family="black_box", cost=_grid_cost)
def grid(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    points: tuple[int, ...] = (31, 5, 5),
    loss: Loss = losses.margin,
    targeted: bool = False,
) -> AttackResult:
    """The best of all points of a grid over few parameters (Engstrom et al. 2019, section 3).

    Along axis j of δ there are ``points[j]`` values, spaced evenly from -radius[j] to radius[j]. All combinations are
    tried, by default 31 rotations x 5 x 5 shifts of "affine". Points outside the ball (none in linf) are projected.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "affine", or any perturbation with δ ``[B, n]``.
      key: not used: the attack is deterministic.
      points: the number of values along each of the n axes of δ, in its order (affine: degrees, dy, dx); a single one
        is 0.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, which ranks points of equal success.
      targeted: whether labels are targets.

    Returns:
      The best by (misclassified, then loss) of the grid and δ = 0.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), a δ of
        another shape, or numbers of points that do not fit it.
    """
    space = threat.perturbation
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(space.zeros(images))]
    whole = isinstance(points, tuple | list) and all(isinstance(n, int | np.integer) and n >= 1 for n in points)
    if not whole or shapes != [(len(points),)]:
        raise ValueError(
            f"grid: points={points!r} must be one whole number from 1 per entry of δ, which for {space.name} is of "
            f"shape {' and '.join(map(str, shapes))} per image: a grid is for few parameters, such as affine's 3; "
            f"otherwise use random_search."
        )

    def candidate(i: Array) -> Delta:
        at = jnp.stack(jnp.unravel_index(i, points))
        last = jnp.asarray(points) - 1
        unit = jnp.where(last > 0, 2 * at / jnp.maximum(last, 1) - 1, 0)
        whole = jnp.broadcast_to(unit * jnp.asarray(threat.radius), (len(images), len(points)))
        return threat_models.project(threat, whole.astype(images.dtype))

    tried = partial(_tried, logits_fn, images, labels, threat, losses.get(loss), targeted)
    return _best(tried, images, threat, candidate, math.prod(points))


def _search_cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(1 + o.samples, 0)


@attack(family="black_box", cost=_search_cost)
def random_search(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    samples: Count = 10,
    loss: Loss = losses.margin,
    targeted: bool = False,
) -> AttackResult:
    """The best of some random points of the ball; over "affine" the worst-of-10 attack of Engstrom et al. (2019).

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``.
      samples: the number of points, see `robust_jax.threat_models.random_delta`; one forward pass each.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, which ranks points of equal success.
      targeted: whether labels are targets.

    Returns:
      The best by (misclassified, then loss) of the points and δ = 0.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or no
        samples.
    """
    keys = example_keys(key, len(images))

    def candidate(i: Array) -> Delta:
        return threat_models.random_delta(threat, per_example.fold_keys(keys, i), images)

    tried = partial(_tried, logits_fn, images, labels, threat, losses.get(loss), targeted)
    return _best(tried, images, threat, candidate, samples)


@attack(family="black_box", cost=lambda o, _: Cost(1, 0))
def uniform_noise(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *, key: Key[Array, "..."]
) -> AttackResult:
    """One random point of the ball, uniform in volume, regardless of the model: a baseline, not an adversary.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays).
    """
    delta = threat_models.random_delta(threat, example_keys(key, len(images)), images)
    return _noisy(logits_fn, images, labels, threat, delta)


@attack(family="black_box", cost=lambda o, _: Cost(1, 0))
def gaussian_noise(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *, key: Key[Array, "..."]
) -> AttackResult:
    """Gaussian noise of the ball's size, ``δ = radius z / ‖z‖`` with z ~ N(0, I), regardless of the model: a baseline.

    A Gaussian has no largest size, but a ball has: the direction is that of a Gaussian, and the size is the radius. In
    l2 this changes little, since ``‖N(0, σ² I)‖`` in D coordinates is ``σ sqrt(D)`` up to one part in ``sqrt(2 D)``:
    noise of standard deviation σ is norm l2 with radius ``σ sqrt(D)``, D = H W C for "additive", and a curve over radii
    is one over σ. In linf σ is the radius divided by the largest of D Gaussians, about a third of it at D = 1000, and
    varies between draws by a tenth. As in any image with added noise, intensities are clipped to [0, 1], so that δ is
    smaller there.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays).
    """
    noise = perturbations.gaussian_delta(threat.perturbation, example_keys(key, len(images)), images, 1.0)
    return _noisy(logits_fn, images, labels, threat, threat_models.on_sphere(threat, noise))


def _tried(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    loss_fn: LossFn,
    targeted: bool,
    delta: Delta,
) -> Candidate:
    """A δ confined to the box, with its loss and success."""
    space = threat.perturbation
    delta = perturbations.confined(space, images, delta)
    logits = logits_fn(clip_box(space.apply(images, delta)))
    value = loss_fn(logits, labels) * (-1 if targeted else 1)
    return Candidate(delta, jnp.nan_to_num(value, nan=-jnp.inf), losses.misclassified(logits, labels) != targeted)


def _best(
    tried: Callable[[Delta], Candidate], images: Images, threat: ThreatModel, candidate: Callable[[Array], Delta],
    count: int,
) -> AttackResult:  # fmt: skip
    """The best of δ = 0 and ``candidate(0)`` to ``candidate(count - 1)``."""
    clean = tried(threat.perturbation.zeros(images))
    best = jax.lax.fori_loop(0, count, lambda i, best: best_of(tried(candidate(i)), best), clean)
    return AttackResult(clip_box(threat.perturbation.apply(images, best.delta)), best.delta, best.success)


def _noisy(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, delta: Delta
) -> AttackResult:
    drawn = _tried(logits_fn, images, labels, threat, losses.margin, False, delta)
    return AttackResult(clip_box(threat.perturbation.apply(images, drawn.delta)), drawn.delta, drawn.success)
