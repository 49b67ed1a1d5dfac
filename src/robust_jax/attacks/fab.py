"""FAB, the fast adaptive boundary attack, over any threat model: small perturbations (Croce & Hein 2020b)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks import linearised
from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.define import Cost, OpenFraction, Problem, attack
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box, crossed, found_or_clean
from robust_jax.options import Count, Fraction, Range
from robust_jax.spaces import capped, norms, per_example, perturbations, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# (logits, labels, likeliest other classes [B, n], index of each example's run [B]) -> the differences of logits that
# should become positive, as rows of signs [N, B, K].
Rows = Callable[[Array, Array, Array, Array], Array]

Overshoot = Annotated[float, Range(least=1)]


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    others = min(o.candidates, problem.classes - 1)
    return Cost(2 + 2 * o.restarts * o.steps, o.restarts * o.steps * others)


@attack(family="white_box", cost=_cost)
def fab(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    restarts: Count = 1,
    candidates: Count = 9,
    alpha_max: Fraction = 0.1,
    eta: Overshoot = 1.05,
    beta: OpenFraction = 0.9,
    targeted: bool = False,
    early_stop: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖`` that FAB finds with ``argmax logits_fn(T(x, δ)) != y``, in the ball.

    At each step ``z_k - z_y`` is linearised at δ for each class k. The nearest of the zero sets is a hyperplane of δs,
    and both δ and 0 are projected on its part within the box, in the threat model's norm (Croce & Hein 2020b,
    algorithm 1)::

        δ <- (1 - α) (δ + η (P(δ) - δ)) + α η P(0),    α = min(‖P(δ) - δ‖ / (‖P(δ) - δ‖ + ‖P(0)‖), alpha_max)

    If the new δ is misclassified, it is kept if it is the smallest so far, and the search continues from β δ. The first
    run starts from 0, the others at random points, half as far as the smallest δ so far and at most half the radius.
    The projections are exact for l_p, p >= 1, of one perturbation without a box or whose box bounds the coordinates of
    δ (additive), and for compositions without a box; otherwise they are points of the hyperplane, but maybe not the
    nearest. If the box does not reach the hyperplane, they go as far as it allows. The paper's final search is left
    out, as in AutoAttack.

    The radius is both the unit of size and the bound, see `robust_jax.attacks.deepfool`; on the way δ may leave the
    ball. Each step costs two forward passes, one gradient per candidate, and memory for these gradients.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``, for the restarts.
      steps: of each run.
      restarts: the number of runs.
      candidates: the number of classes that are considered, those of the largest logits at the clean image.
      alpha_max: the largest share α of a step that leads back towards δ = 0.
      eta: how far each projection is followed; above 1 it crosses the boundary.
      beta: the factor that shrinks a misclassified δ.
      targeted: whether labels are targets; then only the difference to the target's logit is considered, from the
        largest other logit.
      early_stop: whether an example gets no further run once a δ in the ball was found, which then need not be the
        smallest: for accuracies, as AutoAttack does it.

    Returns:
      δ and image if one was found in the ball; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or an
        option out of its range.
    """
    others = losses.rivals(logits_fn(images), labels, candidates)

    def rows(logits: Array, labels: Array, others: Array, _: Array) -> Array:
        return linearised.rows(logits, labels, others, targeted)

    effort = _Effort(steps, restarts, restarts, alpha_max, eta, beta, targeted, early_stop)
    return _search(rows, others, logits_fn, images, labels, threat, key, effort)


def _cost_targeted(o: SimpleNamespace, problem: Problem) -> Cost:
    runs = o.restarts * min(o.candidates, problem.classes - 1)
    return Cost(2 + 2 * runs * o.steps, runs * o.steps)


@attack(family="white_box", cost=_cost_targeted)
def fab_targeted(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    restarts: Count = 1,
    candidates: Count = 9,
    alpha_max: Fraction = 0.1,
    eta: Overshoot = 1.05,
    beta: OpenFraction = 0.9,
    early_stop: bool = False,
) -> AttackResult:
    """FAB-T: `fab` towards each of the likeliest other classes in a run of its own, one hyperplane per step.

    The labels are the true ones: any misclassification is a success. A step takes one gradient, whatever the number
    of classes. Arguments, result and errors are those of `fab`, with ``restarts`` runs for each of the ``candidates``.
    """
    others = losses.rivals(logits_fn(images), labels, candidates)

    def rows(logits: Array, labels: Array, others: Array, run: Array) -> Array:
        one_hot = partial(jax.nn.one_hot, num_classes=logits.shape[-1], dtype=logits.dtype)
        target = jnp.take_along_axis(others, (run // restarts)[:, None], -1)[:, 0]
        return (one_hot(target) - one_hot(labels))[None]

    runs = restarts * others.shape[1]
    effort = _Effort(steps, restarts, runs, alpha_max, eta, beta, targeted=False, early_stop=early_stop)
    return _search(rows, others, logits_fn, images, labels, threat, key, effort)


class _Effort(NamedTuple):
    """The options of a search, see `fab`; ``runs`` is the number of runs, ``restarts`` that of each target."""

    steps: int
    restarts: int
    runs: int
    alpha_max: float
    eta: float
    beta: float
    targeted: bool
    early_stop: bool


def _search(
    rows: Rows, others: Array, logits_fn: LogitsFn, images: Images, labels: Array, threat: ThreatModel, key: Array,
    effort: _Effort,
) -> AttackResult:  # fmt: skip
    """The smallest δ of several runs of the examples that are classified correctly."""
    space = threat.perturbation

    def one_run(
        run: Array, fixed: tuple[Images, Array, Array, Array], best: tuple[Delta, Array]
    ) -> tuple[tuple[Delta, Array], Array]:
        images, labels, keys, others = fixed

        def logits_at(delta: Delta) -> Array:
            return logits_fn(clip_box(perturbations.apply_with_slope(space, images, delta)))

        def signs(logits: Array) -> Array:
            return rows(logits, labels, others, run)

        run_keys = per_example.fold_keys(keys, run)
        reach = jnp.where(run % effort.restarts > 0, jnp.minimum(best[1], 1) / 2, 0)
        start = _mixed(reach, space.zeros(images), threat_models.random_delta(threat, run_keys, images))
        start = perturbations.confined(space, images, start)

        def body(_: Array, carry: tuple[Delta, Delta, Array]) -> tuple[Delta, Delta, Array]:
            delta, found, smallest = carry
            delta = _step(logits_at, signs, images, threat, delta, effort)
            success = crossed(logits_at(delta), labels, effort.targeted)
            size = threat_models.size(threat, delta)
            smaller = success & (size < smallest)
            found, smallest = per_example.where(smaller, (delta, size), (found, smallest))
            shrunk = jax.tree.map(lambda d: effort.beta * d, delta)
            return per_example.where(success, shrunk, delta), found, smallest

        _, found, smallest = jax.lax.fori_loop(0, effort.steps, body, (start, *best))
        return (found, smallest), (smallest > 1) | jnp.logical_not(effort.early_stop)

    clean = losses.misclassified(logits_fn(images), labels) != effort.targeted
    start = space.zeros(images), jnp.where(clean, 0.0, jnp.inf)
    fixed = (images, labels, example_keys(key, len(images)), others)
    delta, size = while_active(one_run, fixed, start, ~clean, effort.runs)
    return found_or_clean(threat, images, delta, size <= 1)


def _step(
    logits_at: Callable[[Delta], Array], signs_of: Callable[[Array], Array], images: Images, threat: ThreatModel,
    delta: Delta, effort: _Effort,
) -> Delta:  # fmt: skip
    """The next δ: towards the nearest hyperplane, by its projections of δ and of 0."""
    logits, pull = jax.vjp(logits_at, delta)
    signs = signs_of(logits)
    gradients, lacking = linearised.boundaries(logits, pull, signs)
    lacking = jnp.nan_to_num(lacking, posinf=0.0, neginf=0.0)
    gains = jax.vmap(partial(threat_models.gain, threat))(gradients)
    nearest = per_example.quotient(jnp.abs(lacking), gains, jnp.inf).argmin(0)
    index = nearest, jnp.arange(len(images))
    gradient, lacking = jax.tree.map(lambda g: g[index], gradients), lacking[index]
    near = _to_plane(threat, images, delta, gradient, lacking)
    zeros = threat.perturbation.zeros(images)
    central = _to_plane(threat, images, zeros, gradient, lacking + per_example.inner(gradient, delta))
    moves = jax.tree.map(jnp.subtract, near, delta)
    short, long = threat_models.size(threat, moves), threat_models.size(threat, central)
    total = short + long
    share = jnp.minimum(per_example.quotient(short, total), effort.alpha_max)
    ahead = jax.tree.map(lambda d, m: d + effort.eta * m, delta, moves)
    mixed = _mixed(share, ahead, jax.tree.map(lambda c: effort.eta * c, central))
    return perturbations.confined(threat.perturbation, images, mixed)


def _mixed(share: Array, one: Delta, other: Delta) -> Delta:
    """``(1 - share) one + share other``, per example."""
    return jax.tree.map(lambda a, b: a + per_example.expand(share, a) * (b - a), one, other)


def _to_plane(threat: ThreatModel, images: Images, delta: Delta, gradient: Delta, lacking: Float[Array, " b"]) -> Delta:
    """The δ' nearest to δ in the box with ``<gradient, δ' - δ> = lacking``, or as near to that plane as the box allows.

    With t the distance and u the unit ball's steepest direction, ``|δ' - δ|_i = min(t |u_i|, headroom_i)``. l1 fills
    the best coordinates in turn.
    """
    toward = per_example.times(jnp.sign(lacking), gradient)
    headroom = perturbations.headroom(threat.perturbation, images, delta, toward)
    leaves, tree = jax.tree.flatten(toward)

    def flat(x: Delta) -> Array:
        return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)], -1)

    slopes, headroom = jnp.abs(flat(toward)), flat(headroom)
    wanted = jnp.abs(lacking)[:, None].astype(slopes.dtype)
    if not threat.perturbation.parts and norms.exponent(threat.norm) == 1:
        radius = flat(jnp.broadcast_to(jnp.asarray(threat.radius, delta.dtype), delta.shape))
        most = jnp.where((slopes > 0) & (radius > 0), jnp.minimum(slopes * headroom, wanted), 0)
        moves = capped.fill(slopes * radius, most, wanted) / jnp.where(slopes > 0, slopes, 1)
    else:
        moves = capped.spread(slopes, headroom, jnp.abs(flat(threat_models.steepest(threat, toward))), wanted)
    parts = jnp.split(jnp.nan_to_num(moves, posinf=0.0), np.cumsum([leaf[0].size for leaf in leaves])[:-1], -1)
    moved = [jnp.sign(g) * part.reshape(g.shape) for g, part in zip(leaves, parts, strict=True)]
    return jax.tree.map(jnp.add, delta, jax.tree.unflatten(tree, moved))
