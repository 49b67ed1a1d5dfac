"""Attacks that only try points of the ball: a grid, random draws, and noise as the baseline of every other attack.

They need no gradient, so that a model that masks its gradients does not mislead them, and over few parameters
(rotation and translation, Engstrom et al. 2019) they are stronger than PGD. Points are tried one after the other: the
memory is that of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from robust_jax import losses, perturbations, threat_models
from robust_jax.attacks.ascent import Point, best_of, clip_box
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.checks import check_batch
from robust_jax.losses import LossFn
from robust_jax.perturbations import Delta, Images, example_keys
from robust_jax.threat_models import ThreatModel


def grid(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    points: tuple[int, ...] = (31, 5, 5),
    loss: str | LossFn = losses.margin,
    targeted: bool = False,
) -> AttackResult:
    """The best of all points of a grid over few parameters (Engstrom et al. 2019, section 3).

    Along axis j of δ ``points[j]`` values go evenly from -radius[j] to radius[j]; all combinations are tried, by
    default 31 rotations x 5 x 5 shifts of "affine". Points outside the ball (there are none in linf) are projected.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "affine", or any perturbation with δ ``[B, n]``.
      key: not used, the attack is deterministic.
      points: along each of the n axes of δ, in its order (affine: degrees, dy, dx); 1 is the value 0.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, which orders points of equal success.
      targeted: whether labels are targets.

    Returns:
      The best by (misclassified, then loss) of the grid and δ = 0.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), a δ of another
        shape, or numbers of points that do not fit it.
    """
    check_batch(images, labels, logits_fn, threat)
    space = threat.perturbation
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(space.zeros(images))]
    if shapes != [(len(points),)] or min(points) < 1:
        raise ValueError(
            f"grid: points={points!r} must be one number >= 1 for each entry of δ, which for {space.name} is of shape "
            f"{' and '.join(map(str, shapes))} an image: a grid is over few parameters, such as affine's 3; try "
            f"random_search."
        )

    def point(i: Array) -> Delta:
        at = jnp.stack(jnp.unravel_index(i, points))
        last = jnp.asarray(points) - 1
        unit = jnp.where(last > 0, 2 * at / jnp.maximum(last, 1) - 1, 0)
        whole = jnp.broadcast_to(unit * jnp.asarray(threat.radius), (len(images), len(points)))
        return threat_models.project(threat, whole.astype(images.dtype))

    return _try(logits_fn, images, labels, threat, point, math.prod(points), loss, targeted)


def random_search(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    samples: int = 10,
    loss: str | LossFn = losses.margin,
    targeted: bool = False,
) -> AttackResult:
    """The best of some random points of the ball; over "affine" the worst-of-10 attack of Engstrom et al. (2019).

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``.
      samples: points drawn, see `robust_jax.threat_models.random_delta`; one forward pass each.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, which orders points of equal success.
      targeted: whether labels are targets.

    Returns:
      The best by (misclassified, then loss) of the points and δ = 0.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or no sample.
    """
    check_batch(images, labels, logits_fn, threat)
    if samples < 1:
        raise ValueError(f"random_search: samples={samples}, but it must be at least 1.")
    keys = example_keys(key, len(images))

    def point(i: Array) -> Delta:
        return threat_models.random_delta(threat, perturbations.fold_keys(keys, i), images)

    return _try(logits_fn, images, labels, threat, point, samples, loss, targeted)


def uniform_noise(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *, key: Key[Array, "..."]
) -> AttackResult:
    """One random point of the ball, uniform in volume, whatever the model says: a baseline, not an adversary.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays).
    """
    check_batch(images, labels, logits_fn, threat)
    delta = threat_models.random_delta(threat, example_keys(key, len(images)), images)
    return _noisy(logits_fn, images, labels, threat, delta)


def gaussian_noise(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *, key: Key[Array, "..."]
) -> AttackResult:
    """Gaussian noise of the ball's size, ``δ = radius z / ‖z‖`` with z ~ N(0, I), whatever the model says: a baseline.

    A Gaussian has no largest size, a ball has: here its direction is drawn and its size is the radius. In l2 little is
    changed, since ``‖N(0, σ² I)‖`` in D coordinates is ``σ sqrt(D)`` up to one part in ``sqrt(2 D)``: noise of standard
    deviation σ is norm l2 with radius ``σ sqrt(D)``, D = H W C for "additive", and a curve over radii is one over σ. In
    linf σ is the radius over the largest of D Gaussians, about a third of it at D = 1000, and differs between draws by
    a tenth. As in any image with added noise, what leaves [0, 1] is cut off, so that δ is smaller there.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays).
    """
    check_batch(images, labels, logits_fn, threat)
    noise = perturbations.gaussian_delta(threat.perturbation, example_keys(key, len(images)), images, 1.0)
    return _noisy(logits_fn, images, labels, threat, threat_models.on_sphere(threat, noise))


def _tried(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    loss: str | LossFn,
    targeted: bool,
    delta: Delta,
) -> Point:
    space = threat.perturbation
    delta = perturbations.confined(space, images, delta)
    logits = logits_fn(clip_box(space.apply(images, delta)))
    value = losses.get(loss)(logits, labels) * (-1 if targeted else 1)
    return Point(delta, jnp.nan_to_num(value, nan=-jnp.inf), losses.misclassified(logits, labels) != targeted)


def _try(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    point: Callable[[Array], Delta],
    count: int,
    loss: str | LossFn,
    targeted: bool,
) -> AttackResult:
    """The best of δ = 0 and ``point(0)`` to ``point(count - 1)``."""
    tried = partial(_tried, logits_fn, images, labels, threat, loss, targeted)
    clean = tried(threat.perturbation.zeros(images))
    best = jax.lax.fori_loop(0, count, lambda i, best: best_of(tried(point(i)), best), clean)
    return AttackResult(clip_box(threat.perturbation.apply(images, best.delta)), best.delta, best.success)


def _noisy(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, delta: Delta
) -> AttackResult:
    drawn = _tried(logits_fn, images, labels, threat, losses.margin, False, delta)
    return AttackResult(clip_box(threat.perturbation.apply(images, drawn.delta)), drawn.delta, drawn.success)
