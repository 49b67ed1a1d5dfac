"""Square Attack: random search, over any threat model (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.apgd_steps import is_sparse, project_l1
from robust_jax.attacks.define import Cost, Loss, Problem, Share, attack
from robust_jax.attacks.result import AttackResult, Candidate, LogitsFn, best_of, clip_box, equal
from robust_jax.options import Count
from robust_jax.spaces import norms, per_example, perturbations, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# (T(x, δ) clipped to [0, 1], labels) -> what to maximise, and where the attack succeeds.
Score = Callable[[Images, Array], tuple[Array, Array]]

# (keys [B], index of each example's query [B], the start of the search, δ) -> the δ to try next, and another one that
# replaces it if it equals the current δ; both before projection.
Propose = Callable[[Array, Array, Delta, Delta], tuple[Delta, Delta]]


def _cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(1 + o.queries, 0)


@attack(family="black_box", cost=_cost)
def square(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    queries: Count = 5000,
    p_init: Share = 0.8,
    schedule: Count | None = None,
    loss: Loss = losses.margin,
    targeted: bool = False,
) -> AttackResult:
    """Random search by squares: changes a random square of δ and keeps what raises the loss or misclassifies.

    Squares cover a share p of the image: ``p_init``, halved after 0.1%, 0.5%, 2%, 5%, 10%, 20%, 40%, 60% and 80% of
    the ``schedule``. If δ has the image's grid (additive, flows), the content of a square depends on the norm, in units
    of the radius:

    - linf: one random sign per channel (for flows a shift of the square), or the opposite signs if the square has
      these already; the start is vertical stripes of random signs.
    - l2inf: one random direction of length 1, likewise.
    - l2 and other p (algorithm 3 of the paper, with l_p instead of l2): a bump, up in one half and down in the other,
      added to what the square contains; a second square gives it its share of ``‖δ‖_p^p``. The start tiles the image
      with bumps, whose heights are sums of 1 / k².
    - l1 (Croce & Hein 2021): likewise, but heights are sums of 1 / k⁴, a square gets its mass once for each channel,
      and δ is projected on the ball within the box, where it becomes sparse.
    - l21: as l1, but with vectors in random directions, opposite ones in the two halves, whose lengths are the heights
      and add up to the mass.

    Otherwise (affine maps) every other query is a random point of the ball, and the rest are steps from δ by sqrt(p)
    times such a point. All parts of a composition move at once. An example stops once it is misclassified.

    Args:
      logits_fn: any JAX function of images; no gradient is taken.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``.
      queries: the largest number of forward passes, besides one of the clean images.
      p_init: the share of the image that the first squares cover.
      schedule: the number of queries in which squares shrink to their smallest size; by default ``queries``. In
        `auto_attack`, as in the authors' code, it is 10,000 for any number of queries.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      targeted: whether labels are targets.

    Returns:
      The best point by (misclassified, then loss); δ = 0 if that is misclassified or nothing was better.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or an
        option out of its range.
    """
    loss_fn, sign = losses.get(loss), -1.0 if targeted else 1.0

    def score(perturbed: Images, labels: Array) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        value = jnp.nan_to_num(sign * loss_fn(logits, labels), nan=-jnp.inf)
        return value, losses.misclassified(logits, labels) != targeted

    squares = _squares(images.shape[1:3], _shares(queries, p_init, schedule or queries))
    keys = example_keys(key, len(images))
    first = _by_part(threat, partial(_start, squares), keys, threat.perturbation.zeros(images))

    def propose(keys: Array, query: Array, first: Delta, delta: Delta) -> tuple[Delta, Delta]:
        found = _by_part(threat, partial(_step, squares), keys, delta, query)
        one, other = zip(*found, strict=True) if threat.perturbation.parts else found
        return per_example.where(query == 0, first, one), per_example.where(query == 0, first, other)

    return _search(score, images, labels, threat, keys, queries, first, propose)


class _Squares(NamedTuple):
    """The squares of each query.

    Attributes:
      grid: (H, W).
      sides: ``[queries]``, in pixels.
      shares: ``[queries]``, of the image.
    """

    grid: tuple[int, ...]
    sides: Int[Array, " q"]
    shares: Float[Array, " q"]


def _squares(grid: tuple[int, ...], shares: np.ndarray) -> _Squares:
    sides = jnp.asarray(np.clip(np.round(np.sqrt(shares * grid[0] * grid[1])), 1, min(grid)).astype(int))
    return _Squares(grid, sides, jnp.asarray(shares, jnp.float32))


def _step(squares: _Squares, norm: norms.Norm, key: Array, unit: Array, query: Array) -> tuple[Array, Array]:
    """The next δ / radius of one example, and another one, see `Propose`."""
    grid = squares.grid
    if unit.ndim != 3 or unit.shape[:2] != grid:
        point = norms.random_point(key, unit.shape, norm)
        moved = jnp.where(query % 2 == 0, point, unit + jnp.sqrt(squares.shares[query]) * point)
        return moved, moved
    side = squares.sides[query]
    if _bounds_each(norm):
        place, corner = jnp.split(_uniform(key, (2 + unit.shape[2],)), [2])
        inside, corner = _window(place, grid, side)[0], _corner(corner, norm)
        return jnp.where(inside, corner, unit), jnp.where(inside, -corner, unit)
    # Bumps have a centre, so their sides are odd.
    moved = _move_bump(key, unit, jnp.clip(side // 2 * 2 + 1, min(3, *grid), (min(grid) - 1) // 2 * 2 + 1), norm)
    return moved, moved


def _start(squares: _Squares, norm: norms.Norm, key: Array, unit: Array) -> Array:
    """The first δ / radius of one example."""
    if unit.ndim != 3 or unit.shape[:2] != squares.grid:
        return norms.random_point(key, unit.shape, norm)
    if _bounds_each(norm):
        return jnp.broadcast_to(_corner(_uniform(key, (1, *unit.shape[1:])), norm), unit.shape)
    return _tiles(key, unit.shape, norm)


def _bounds_each(norm: norms.Norm) -> bool:
    """Whether the norm is the largest coordinate or vector, each of which may be as large as the radius."""
    return norm == "l2inf" or norms.exponent(norm) == math.inf


def _search(
    score: Score, images: Images, labels: Array, threat: ThreatModel, keys: Array, queries: int, first: Delta,
    propose: Propose,
) -> AttackResult:  # fmt: skip
    """Keeps the better of proposals, and the first in any case; at the end δ = 0 if all are worse."""
    space = threat.perturbation

    def projected(images: Images, delta: Delta) -> Delta:
        if is_sparse(threat):
            return project_l1(threat, images, delta)
        return perturbations.confined(space, images, threat_models.project(threat, delta))

    def scored(images: Images, labels: Array, delta: Delta) -> Candidate:
        return Candidate(delta, *score(clip_box(space.apply(images, delta)), labels))

    def body(query: Array, fixed: tuple[Images, Array, Array, Delta], best: Candidate) -> tuple[Candidate, Array]:
        images, labels, keys, first = fixed
        query_keys = per_example.fold_keys(keys, query)
        one, other = (projected(images, delta) for delta in propose(query_keys, query, first, best.delta))
        delta = per_example.where(equal(one, best.delta), other, one)
        best = best_of(scored(images, labels, delta), best)
        return best, ~best.success

    clean = scored(images, labels, space.zeros(images))
    # The search starts at the first proposal, even if the clean loss is higher.
    start = clean._replace(value=jnp.full_like(clean.value, -jnp.inf))
    found = while_active(body, (images, labels, keys, first), start, ~clean.success, queries)
    best = best_of(found, clean)
    return AttackResult(clip_box(space.apply(images, best.delta)), best.delta, best.success)


def _shares(queries: int, p_init: float, schedule: int) -> np.ndarray:
    """The share of the image that a square covers, for each query: the paper's for 10,000 queries, stretched."""
    halvings = np.searchsorted([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.arange(queries) * 10000 // schedule)
    return p_init / 2.0**halvings


def _by_part(threat: ThreatModel, f: Callable[..., Any], keys: Array, delta: Delta, *more: Array) -> Any:
    """``radius * f(norm, key, δ / radius, *more)`` per example and part."""

    def one(norm: norms.Norm, radius: Array, d: Array, keys: Array) -> Any:
        radius = jnp.asarray(radius, d.dtype)
        found = jax.vmap(partial(f, norm))(keys, d / jnp.where(radius > 0, radius, 1), *more)
        return jax.tree.map(lambda unit: radius * unit.astype(d.dtype), found)

    if not threat.perturbation.parts:
        return one(threat.norm, threat.radius, delta, keys)
    part_keys = [per_example.fold_keys(keys, i) for i in range(len(delta))]
    return tuple(one(*part) for part in zip(threat.norm, threat.radius, delta, part_keys, strict=True))


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Numbers in (0, 1). A step draws all its numbers in one call, as each call takes 0.3 s to compile on CPUs."""
    return jax.random.uniform(key, shape, minval=1e-7)


def _corner(uniform: Array, norm: norms.Norm) -> Array:
    """Random signs, or for l2inf and l21 random vectors of length 1 in the last axis."""
    if norm in ("l2inf", "l21"):
        vectors = jax.scipy.special.ndtri(uniform)
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.where(uniform < 0.5, -1.0, 1.0)


def _window(uniform: Float[Array, "2"], grid: tuple[int, ...], side: Array) -> tuple[Array, Array, Array]:
    """A random square as a mask [H, W, 1], and the row and column of every pixel within it, [H, W]."""
    corner = jnp.floor(uniform * (jnp.asarray(grid) - side + 1)).astype(int)
    i, j = jnp.indices(grid) - corner[:, None, None]
    inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    return inside[..., None], i, j


def _bump(i: Array, j: Array, inside: Array, side: Array, most: int, norm: norms.Norm) -> Array:
    """A bump [H, W] of norm 1: a hill in one half of a square, a pit in the other, of equal norm (section 4.3).

    At distance d from the middle of its half a pixel has the height 1 / (d + 1)^a + 1 / (d + 2)^a + ..., a = 2 in the
    paper, and 4 for l1 and l21.
    """
    norm = "l1" if norm == "l21" else norm  # of numbers
    half = side // 2
    upper = i < half
    row, height = jnp.where(upper, i, i - half), jnp.where(upper, half, side - half)
    distance = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(j - half))
    sums = jnp.cumsum(1.0 / jnp.arange(1, most + 2) ** (4.0 if norms.exponent(norm) == 1 else 2.0))
    below = jnp.where(distance > 0, sums[jnp.clip(distance - 1, 0, half)], 0)
    hill, pit = (_unit(jnp.where(inside & part, sums[half] - below, 0), norm) for part in (upper, ~upper))
    return _unit(hill - pit, norm)


def _mass(x: Array, norm: norms.Norm) -> Array:
    """``|x|^p``, and in l21 the lengths of vectors in the last axis, [H, W, 1]."""
    p = norms.exponent(norm)
    return jnp.linalg.norm(x, axis=-1, keepdims=True) if p is None else jnp.abs(x) ** p


def _unit(x: Array, norm: norms.Norm, axes: tuple[int, ...] = (0, 1)) -> Array:
    """Divided by its norm: in l21 by that of the whole, otherwise by that over these axes."""
    total = _mass(x, norm).sum(axes, keepdims=True)
    return x / jnp.where(total > 0, total, 1) ** (1 / (norms.exponent(norm) or 1))


def _turned(turn: Array, i: Array, j: Array) -> tuple[Array, Array]:
    return jnp.where(turn, j, i), jnp.where(turn, i, j)


def _tiles(key: Array, shape: tuple[int, ...], norm: norms.Norm) -> Array:
    """The middle of the image [H, W, V] covered with bumps of random signs (in l21 directions) and turns.

    In l1 each is of norm 1, otherwise all together.
    """
    side = max(min(shape[:2]) // 5, 1)
    count = shape[0] // side, shape[1] // side
    at, within = zip(*(divmod(np.arange(n) - n % side // 2, side) for n in shape[:2]), strict=True)
    covered = np.logical_and.outer(*((a >= 0) & (a < n) for a, n in zip(at, count, strict=True)))[..., None]
    rows, columns = np.meshgrid(*(np.clip(a, 0, n - 1) for a, n in zip(at, count, strict=True)), indexing="ij")
    drawn = _uniform(key, (*count, 1 + shape[2]))[rows, columns]
    turn, sign = drawn[..., 0] < 0.5, _corner(drawn[..., 1:], norm)
    i, j = jnp.indices((side, side))
    bump = _bump(i, j, jnp.ones((side, side), bool), jnp.asarray(side), side, norm)
    heights = bump[_turned(turn, *np.meshgrid(*within, indexing="ij"))]
    tiles = jnp.where(covered, sign * heights[..., None], 0)
    return tiles if norms.exponent(norm) == 1 else _unit(tiles, norm, (0, 1, 2))


def _move_bump(key: Array, unit: Array, side: Array, norm: norms.Norm) -> Array:
    """Algorithm 3: a bump in one square, of the mass that another square gives up and that the ball has left."""
    p, grid, channels = norms.exponent(norm) or 1, unit.shape[:2], unit.shape[2]
    at, source_at, turn, signs = jnp.split(_uniform(key, (5 + channels,)), [2, 4, 5])
    (to, i, j), (source, _, _) = _window(at, grid, side), _window(source_at, grid, side)
    mass = _mass(unit, norm)
    left = jnp.maximum(1 - mass.sum(), 0) / mass.shape[2]
    given = jnp.where(to | source, mass, 0).sum((0, 1))
    heights = _bump(*_turned(turn < 0.5, i, j), to[..., 0], side, max(grid), norm)[..., None]
    bump = heights * _corner(signs, norm) + _unit(jnp.where(to, unit, 0), norm)
    moved = _unit(bump, norm) * ((mass.shape[2] if p == 1 else 1) * (left + given)) ** (1 / p)
    return jnp.where(to, moved, jnp.where(source, 0, unit))
