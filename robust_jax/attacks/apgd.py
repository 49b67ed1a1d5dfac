"""Auto-PGD over any threat model: projected ascent that finds its step sizes (Croce & Hein 2020 and 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import Point, best_of, check_effort, clip_box
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.attacks.survivors import while_active
from robust_jax.checks import check_batch
from robust_jax.losses import LossFn
from robust_jax.perturbations import Delta, Images, example_keys
from robust_jax.threat_models import ThreatModel

# (number of the run, what is known of each example, T(x, δ) in the box) -> what to maximise, and where it succeeds.
Score = Callable[[Array, Any, Images], tuple[Float[Array, " b"], Bool[Array, " b"]]]


def apgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    restarts: int = 1,
    loss: str | LossFn = losses.cross_entropy,
    rho: float = 0.75,
    targeted: bool = False,
    early_stop: bool = False,
) -> AttackResult:
    """Maximises ``loss(logits_fn(T(x, δ)), y)`` over the ball, with steps that shrink where they bring nothing.

    Croce & Hein 2020, algorithm 1, in δ, u the unit ball's steepest direction for radius * gradient::

        z = Π(δ_k + η * radius * u),    δ_{k+1} = Π(δ_k + 0.75 (z - δ_k) + 0.25 (δ_k - δ_{k-1}))

    from a random point with η = 2. At the checkpoints, after 22% of the steps and then in periods that shrink from
    19% to 6%, η is halved and the search goes back to its highest point, example by example, where fewer than
    ``rho`` of the steps since the last checkpoint raised the loss, or where neither η nor the highest loss changed.
    For l1, not in compositions, the steps are those of Croce & Hein 2021, algorithm 1: η = 1 spread evenly over the
    largest coordinates of the gradient, at first a fifth of all, then two thirds of those that the highest point
    has changed, but one that the box lets go on at least, and exact projections on the ball within the box; every 4%
    of the steps η becomes 1 again where that point became sparser by 5%, else η / 1.5, but at least 0.1.
    A run costs ``steps`` gradients and one forward pass. Vector norms, other p, flows, affine maps and compositions
    move as in `pgd`.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``, for the random starts.
      steps: gradient steps of each restart.
      restarts: runs from different random starts, for those that no run has broken yet.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      rho: see above.
      targeted: whether labels are targets.
      early_stop: an example goes no further once it is misclassified: the same success in less time, at a point of
        lower loss.

    Returns:
      The best point by (misclassified, then loss), over all iterates and δ = 0; δ = 0 where that is misclassified.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    loss_fn = losses.get(loss)
    sign = -1.0 if targeted else 1.0

    def score(_: Array, labels: Array, perturbed: Images) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        return sign * loss_fn(logits, labels), losses.misclassified(logits, labels) != targeted

    return _climb("apgd", score, labels, images, threat, key, steps, restarts, rho, early_stop)


def apgd_dlr(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *,
    key: Key[Array, "..."], steps: int = 100, restarts: int = 1, rho: float = 0.75, early_stop: bool = False,
) -> AttackResult:  # fmt: skip
    """`apgd` with the loss `losses.dlr`, which large logits do not saturate; for three classes or more."""
    return apgd(
        logits_fn, images, labels, threat, key=key, steps=steps, restarts=restarts, loss=losses.dlr, rho=rho,
        early_stop=early_stop,
    )  # fmt: skip


def apgd_targeted(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    restarts: int = 1,
    candidates: int = 9,
    rho: float = 0.75,
) -> AttackResult:
    """APGD-T: `apgd` with `losses.dlr_targeted` towards each of the likeliest other classes, in turn.

    The labels are the true ones: any misclassification is a success, and ends an example's search.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``, for the random starts.
      steps: gradient steps of each run.
      restarts: runs for each target.
      candidates: so many targets, those of the largest logits at the clean image.
      rho: see `apgd`.

    Raises:
      ValueError: as `apgd`; fewer than three classes.
    """
    check_batch(images, labels, logits_fn, threat)
    if candidates < 1 or restarts < 1:
        raise ValueError(f"apgd_targeted: candidates={candidates}, restarts={restarts}, but both must be at least 1.")
    targets = losses.rivals(logits_fn(images), labels, candidates)

    def score(run: Array, known: tuple[Array, Array], perturbed: Images) -> tuple[Array, Array]:
        labels, targets = known
        logits = logits_fn(perturbed)
        value = losses.dlr_targeted(logits, labels, targets[:, run // restarts])
        return value, losses.misclassified(logits, labels)

    runs = restarts * targets.shape[1]
    return _climb("apgd_targeted", score, (labels, targets), images, threat, key, steps, runs, rho, early_stop=True)


class _State(NamedTuple):
    """One run: where it is, its highest and its kept point, and what the checkpoints need."""

    delta: Delta
    previous: Delta
    value: Array
    top: tuple[Delta, Delta, Array]  # δ, gradient, value
    kept: Point
    step: Array  # in radii
    rises: Array
    halved: Array  # l1: how many coordinates of δ were changed at the last checkpoint
    checked: Array  # l1: how many coordinates to move


def _climb(
    path: str, score: Score, known: Any, images: Images, threat: ThreatModel, key: Array,
    steps: int, runs: int, rho: float, early_stop: bool,
) -> AttackResult:  # fmt: skip
    """Runs one after the other, each for the examples that none has broken yet; the best point."""
    check_effort(path, steps, runs)
    if not 0 <= rho <= 1:
        raise ValueError(f"{path}: rho={rho} is a share of the steps, from 0 to 1.")
    space, keys = threat.perturbation, example_keys(key, len(images))

    def going(carry: tuple[Array, Point]) -> Array:
        return (carry[0] < runs) & ~carry[1].success.all()

    def one_run(carry: tuple[Array, Point]) -> tuple[Array, Point]:
        run, best = carry
        run_keys = perturbations.fold_keys(keys, run)
        return run + 1, _run(partial(score, run), known, images, threat, run_keys, steps, rho, early_stop, best)

    zeros = space.zeros(images)
    value, success = score(jnp.array(0), known, clip_box(space.apply(images, zeros)))
    first = Point(zeros, jnp.nan_to_num(value, nan=-jnp.inf), success)
    best = jax.lax.while_loop(going, one_run, (jnp.array(0), first))[1]
    return AttackResult(clip_box(space.apply(images, best.delta)), best.delta, best.success)


def _run(
    score: Callable[[Any, Images], tuple[Array, Array]], known: Any, images: Images, threat: ThreatModel, keys: Array,
    steps: int, rho: float, early_stop: bool, best: Point,
) -> Point:  # fmt: skip
    """One run of `apgd` for those that are not broken; the best point with those before."""
    space = threat.perturbation
    sparse = not space.parts and norms.exponent(threat.norm) == 1
    periods = jnp.asarray(_sparse_checkpoints(steps) if sparse else _checkpoints(steps))
    zeros = space.zeros(images)
    count = sum(leaf[0].size for leaf in jax.tree.leaves(zeros))

    def scored(images: Images, known: Any, delta: Delta) -> tuple[Array, Point]:
        value, success = score(known, clip_box(threat_models.followed(threat, images, delta)))
        return value.sum(), Point(delta, jnp.nan_to_num(value, nan=-jnp.inf), success)

    def moved(i: Array, images: Images, state: _State, delta: Delta, gradient: Delta) -> Delta:
        confined = partial(perturbations.confined, space, images)
        free = perturbations.room(space, images, delta, gradient)
        size = jax.tree.map(lambda r, d: norms.expand(state.step, d) * r, threat.radius, delta)
        target = confined(threat_models.move(threat, delta, gradient, size, free))

        def ahead(d: Array, t: Array, before: Array) -> Array:
            pull = norms.expand(jnp.where(i > 0, 0.75, 1.0), d)
            return d + pull * (t - d) + (1 - pull) * (d - before)

        return confined(threat_models.project(threat, jax.tree.map(ahead, delta, target, state.previous)))

    def halve(period: Array, state: _State) -> tuple[Array, _State]:
        highest = state.top[2]
        back = (period > 0) & ((state.rises < rho * period) | (~state.halved & (highest <= state.checked)))
        return back, state._replace(
            step=jnp.where(back, state.step / 2, state.step),
            rises=jnp.where(period > 0, 0, state.rises),
            halved=jnp.where(period > 0, back, state.halved),
            checked=jnp.where(period > 0, highest, state.checked),
        )

    def sparsify(period: Array, state: _State) -> tuple[Array, _State]:
        changed = (state.top[0] != 0).reshape(len(state.step), -1).sum(-1)
        back = (period > 0) & (changed < 0.95 * state.halved)
        return back, state._replace(
            step=jnp.where(period > 0, jnp.where(back, 1, jnp.maximum(state.step / 1.5, 0.1)), state.step),
            halved=jnp.where(period > 0, changed, state.halved),
            checked=jnp.where(period > 0, changed / 1.5, state.checked),
        )

    def moved_sparsely(_: Array, images: Images, state: _State, delta: Delta, gradient: Delta) -> Delta:
        size = jnp.abs(gradient * jnp.asarray(threat.radius, delta.dtype)).reshape(len(images), -1)
        free = perturbations.room(space, images, delta, gradient).reshape(size.shape) > 0
        count = jnp.clip(state.checked, 1, size.shape[1]).astype(int)
        least = jnp.take_along_axis(jnp.sort(size, descending=True), count[:, None] - 1, axis=-1)[:, 0]
        # At least the best of those that the box lets go on.
        largest = size >= jnp.minimum(least, jnp.where(free, size, 0).max(-1))[:, None]
        # What the box holds back is pushed too, beyond the count: the projection would take from it first.
        share = norms.expand(state.step / jnp.maximum((largest & free).sum(-1), 1), delta)
        step = share * largest.reshape(delta.shape) * jnp.sign(gradient) * jnp.asarray(threat.radius, delta.dtype)
        return _project_l1(threat, images, delta + step)

    adapt, go = (sparsify, moved_sparsely) if sparse else (halve, moved)

    def body(i: Array, fixed: tuple[Images, Any], state: _State) -> tuple[_State, Array]:
        images, known = fixed
        gradient, point = jax.grad(partial(scored, images, known), has_aux=True)(state.delta)
        gradient = jax.tree.map(jnp.nan_to_num, gradient)
        rises = state.rises + ((i > 0) & (point.value > state.value))
        higher = (i == 0) | (point.value > state.top[2])
        top = norms.where(higher, (state.delta, gradient, point.value), state.top)
        state = state._replace(rises=rises, top=top, kept=best_of(point, state.kept))
        back, state = adapt(periods[i], state)
        delta, gradient, value = norms.where(back, top, (state.delta, gradient, point.value))
        state = state._replace(delta=go(i, images, state, delta, gradient), previous=delta, value=value)
        return state, ~state.kept.success if early_stop else jnp.ones_like(state.kept.success)

    start = perturbations.confined(space, images, threat_models.random_delta(threat, keys, images))
    lowest = jnp.full(len(images), -jnp.inf)
    state = _State(
        start, start, lowest, (start, zeros, lowest), best,
        step=jnp.full(len(images), 1.0 if sparse else 2.0), rises=jnp.zeros(len(images), int),
        halved=jnp.full(len(images), count) if sparse else jnp.ones(len(images), bool),
        checked=jnp.full(len(images), 0.2 * count) if sparse else lowest,
    )  # fmt: skip
    state = while_active(body, (images, known), state, ~best.success, steps)
    found = best_of(scored(images, known, state.delta)[1], state.kept)
    return norms.where(best.success, best, found)


def _checkpoints(steps: int) -> np.ndarray:
    """For each number of steps done, how many since the last checkpoint if there is one now, else 0."""
    at, before, now = [0], 0.0, 0.22
    while now <= 1:
        at.append(math.ceil(round(now * steps, 6)))
        before, now = now, now + max(now - before - 0.03, 0.06)
    periods = np.zeros(steps + 1, int)
    periods[at[1:]] = np.diff(at)
    return periods


def _sparse_checkpoints(steps: int) -> np.ndarray:
    period = max(round(0.04 * steps), 1)
    return np.where((np.arange(steps) > 0) & (np.arange(steps) % period == 0), period, 0)


def _project_l1(threat: ThreatModel, images: Images, delta: Array) -> Array:
    """The nearest point of the l1 ball within the box: soft-thresholded, then confined, the threshold by bisection."""
    radius = jnp.asarray(threat.radius, delta.dtype)

    def shrunk(threshold: Array) -> Array:
        soft = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - norms.expand(threshold, delta) * radius, 0)
        return perturbations.confined(threat.perturbation, images, soft)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        inside = threat_models.size(threat, shrunk(middle)) <= 1
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    size = threat_models.size(threat, delta)
    inside = threat_models.size(threat, shrunk(jnp.zeros_like(size))) <= 1
    return shrunk(jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(size), jnp.where(inside, 0, size)))[1])
