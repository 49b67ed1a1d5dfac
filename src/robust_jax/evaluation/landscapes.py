"""What the loss looks like around images: surfaces, gradients, distances to the boundary.

These are the quantities behind the pictures of the papers, for any ``logits_fn``:

- `loss_surface`: the loss in the direction of an attack and in a random one (Xu et al. 2020: flatter when regularised);
- `loss_gradients`: gradients in the image and in a flow of it, which follow the strokes of a digit or the outline of an
  object in regularised models (Xu et al. 2020, Lyu et al. 2015);
- `boundary_distances`: the size of the smallest perturbation that an attack finds.

What a flow can change the loss by is in `robust_jax.evaluation.flow_bounds`. They return arrays;
`robust_jax.evaluation.landscape_pictures` draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.compiled import as_argument
from robust_jax.attacks.fab import fab
from robust_jax.attacks.result import LogitsFn, clip_box
from robust_jax.checks import check_batch, check_images
from robust_jax.losses import LossFn
from robust_jax.options import Range
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.flow import flow
from robust_jax.spaces.per_example import value_and_gradient
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

Positions = Annotated[Any, Range(tuples=True)]
POSITIONS = tuple(np.linspace(-1.5, 1.5, 25).tolist())
"""The default positions of a surface; 0 and 1 are among them."""


class Surface(NamedTuple):
    """The loss over a plane in the space of δ.

    Attributes:
      loss: ``[B, N, N]``, at ``T(x, a δ + b u)`` clipped to [0, 1]; a is constant in a row, b in a column.
      positions: ``[N]``, the values of a and of b.
    """

    loss: Float[Array, "b n n"]
    positions: Float[np.ndarray, " n"]


@checks_arguments
def loss_surface(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, delta: Delta, *,
    key: Key[Array, "..."], positions: Positions = POSITIONS,
    loss: str | LossFn = losses.cross_entropy,
) -> Surface:  # fmt: skip
    """The loss at ``T(x, a δ + b u)``, u a random direction that is orthogonal to δ and as long.

    δ comes from an attack, so that a = 1, b = 0 is the adversarial image and a = b = 0 the clean one. Orthogonality
    and length are those of L2 in units of the radius, all parts of a composition together. Where no direction is
    orthogonal, as δ is 0 or has a single number that may change, u is 0, and the surface constant in b.

    Args:
      logits_fn: any JAX function of images.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: ``[B]``, the true classes.
      threat: perturbation and radius; its norm plays no part.
      delta: a δ of the perturbation for each image, such as ``result.delta`` of an attack.
      key: one key, or one per image, for u.
      positions: the values of a and b.
      loss: ``(logits, labels) -> [B]``, or the name of one of the library.

    Returns:
      The surface; it costs ``len(positions)²`` forward passes.

    Raises:
      ValueError: images, labels or δ that do not fit together.

    Example::

        result = rj.attacks.pgd(logits_fn, images, labels, threat, key=jax.random.key(0))
        surface = loss_surface(logits_fn, images, labels, threat, result.delta, key=jax.random.key(1))
    """
    check_images(images)
    check_batch(images, labels, logits_fn)
    check_threat(threat, images)
    perturbations.check_delta(threat.perturbation, images, delta=delta)
    across = orthogonal(threat, delta, key)
    at = jnp.asarray(positions, images.dtype)
    found = _surface(as_argument(logits_fn), images, labels, threat, (delta, across), at, loss)
    return Surface(found, np.asarray(positions))


@partial(jax.jit, static_argnames="loss")
def _surface(
    logits_fn: Any, images: Any, labels: Any, threat: ThreatModel, plane: Any, at: Array, loss: str | LossFn
) -> Array:
    def one(place: Array) -> Array:
        delta = jax.tree.map(lambda d, u: place[0] * d + place[1] * u, *plane)
        return losses.get(loss)(logits_fn(clip_box(threat.perturbation.apply(images, delta))), labels)

    grid = jnp.stack(jnp.meshgrid(at, at, indexing="ij"), -1)
    return jnp.moveaxis(jax.lax.map(one, grid.reshape(-1, 2)), -1, 0).reshape(-1, len(at), len(at))


@jax.jit
def orthogonal(threat: ThreatModel, delta: Delta, key: Key[Array, "..."]) -> Delta:
    """A random δ that is orthogonal to each example's δ and as long, in units of the radius; 0 where there is none."""
    mine = threat_models.in_radii(threat, delta)
    leaves, tree = jax.tree.flatten(mine)
    keys = per_example.example_keys(key, len(leaves[0]))
    drawn = [jax.vmap(lambda k, d=d, i=i: jax.random.normal(jax.random.fold_in(k, i), d.shape[1:], d.dtype))(keys)
             for i, d in enumerate(leaves)]  # fmt: skip
    # 0 where the radius is.
    random = threat_models.in_radii(threat, _in_units(threat, jax.tree.unflatten(tree, drawn)))
    square = per_example.inner(mine, mine)
    share = per_example.inner(random, mine) / jnp.where(square > 0, square, 1)
    before = per_example.inner(random, random)
    random = jax.tree.map(lambda r, m: r - per_example.expand(share, r) * m, random, mine)
    length = per_example.inner(random, random)
    # What is left of a direction along δ is rounding, some units in the last place of each number.
    is_left = length > (32 * jnp.finfo(length.dtype).eps) ** 2 * before
    factor = jnp.where(is_left, jnp.sqrt(square / jnp.where(is_left, length, 1)), 0)
    return _in_units(threat, per_example.times(factor, random))


def _in_units(threat: ThreatModel, delta: Delta) -> Delta:
    """δ in radii times the radius."""
    radius = tuple(threat.radius) if threat.perturbation.parts else threat.radius
    return jax.tree.map(lambda d, r: d * jnp.asarray(r, d.dtype), delta, radius)


class Gradients(NamedTuple):
    """Gradients of each image's loss.

    Attributes:
      image: ``[B, H, W, C]``, in the image.
      flow: ``[B, H, W, 2]``, in a flow (dy, dx) at 0.
    """

    image: Images
    flow: Float[Array, "b h w 2"]


@checks_arguments
def loss_gradients(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], loss: str | LossFn = losses.cross_entropy
) -> Gradients:
    """The gradients of ``loss(logits_fn(x), y)`` in the image and in a flow of it.

    Example::

        gradients = loss_gradients(logits_fn, images, labels)
        figure = landscape_pictures.gradient_grid(images, {"standard": gradients})
    """
    check_images(images)
    check_batch(images, labels, logits_fn)
    return _gradients(as_argument(logits_fn), images, labels, loss)


@partial(jax.jit, static_argnames="loss")
def _gradients(logits_fn: Any, images: Any, labels: Any, loss: str | LossFn) -> Gradients:
    _, gradient, _ = value_and_gradient(lambda x: losses.get(loss)(logits_fn(x), labels), images)
    return Gradients(gradient, perturbations.pullback(flow, images, gradient))


class Distances(NamedTuple):
    """How far images are from the decision boundary.

    Attributes:
      distance: ``[B]``, ‖δ / radius‖ of the smallest δ that was found: 0 where the image is misclassified, infinite
        where none was found in the ball. True distances may be smaller.
      found: ``[B]``, where it is finite.
    """

    distance: Float[Array, " b"]
    found: Bool[Array, " b"]


@checks_arguments
def boundary_distances(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *,
    key: Key[Array, "..."], attack: Callable[..., Any] = fab, **options: Any,
) -> Distances:  # fmt: skip
    """The distance to the decision boundary, in radii, as far as an attack for the smallest perturbation finds it.

    Args:
      logits_fn: any JAX function of images.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: ``[B]``, the true classes.
      threat: perturbation, norm, and radius, the unit and the largest distance.
      key: one key, or one per image.
      attack: one that seeks the smallest δ, such as `robust_jax.attacks.fab`, ``deepfool``, ``ddn``.
      **options: of the attack.

    Raises:
      ValueError: what the attack refuses.

    Example::

        threat = rj.ThreatModel("additive", "l2", 5.0)
        distances = boundary_distances(logits_fn, images, labels, threat, key=jax.random.key(0), attack=rj.attacks.ddn)
    """
    result = attack(logits_fn, images, labels, threat, key=key, **options)
    size = threat_models.size(threat, result.delta)
    return Distances(jnp.where(result.success, size, jnp.inf), result.success)
