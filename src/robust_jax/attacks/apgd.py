"""Auto-PGD over any threat model: projected ascent that adapts its step size (Croce & Hein 2020 and 2021)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.apgd_steps import State, gradients, steps_for
from robust_jax.attacks.define import Cost, Loss, Problem, attack
from robust_jax.attacks.result import AttackResult, Candidate, LogitsFn, best_of, clip_box
from robust_jax.options import Count, Fraction
from robust_jax.spaces import per_example, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# (index of the run, what is known of each example, T(x, δ) clipped to [0, 1]) -> what to maximise, where it succeeds.
Score = Callable[[Array, Any, Images], tuple[Float[Array, " b"], Bool[Array, " b"]]]


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    each = gradients(problem.threat, o.steps)
    return Cost(1 + o.restarts * (each + 1), o.restarts * each)


@attack(family="ascent", cost=_cost)
def apgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    restarts: Count = 1,
    loss: Loss = losses.cross_entropy,
    rho: Fraction = 0.75,
    targeted: bool = False,
    early_stop: bool = False,
) -> AttackResult:
    """Maximises ``loss(logits_fn(T(x, δ)), y)`` over the ball, with steps that shrink when they stop helping.

    Croce & Hein 2020, algorithm 1, in δ, u the unit ball's steepest direction for radius * gradient::

        z = Π(δ_k + η * radius * u),    δ_{k+1} = Π(δ_k + 0.75 (z - δ_k) + 0.25 (δ_k - δ_{k-1}))

    from a random point with η = 2. At the checkpoints, after 22% of the steps and then in periods that shrink from
    19% to 6%, η is halved and the search returns to its highest point, per example, if fewer than ``rho`` of the
    steps since the last checkpoint raised the loss, or if neither η nor the highest loss changed.

    For l1, except in compositions, the attack is that of Croce & Hein 2021: three climbs, of 30, 30 and 40% of the
    steps in balls of 3, 2 and 1 radii, each from the highest point of the one before it, projected on its own ball. The
    first starts at Gaussian noise of standard deviation 1, projected: few coordinates are changed, others in each
    restart. Their steps are those of algorithm 1: η = 1 is spread evenly over the largest coordinates of the gradient,
    and projections on the ball within the box are exact. The number of these coordinates is two thirds of those that
    the highest point changes, and at least one that the box does not hold back. Every 4% of a climb's steps, η becomes
    1 again and the climb returns to its highest point if that became sparser by 5%; otherwise η becomes η / 1.5, but at
    least 0.1. Only the last climb is in the ball: its points are the candidates.

    A run costs ``steps`` gradients, in l1 two more, and one forward pass. Outside of l1, vector norms, other p, flows,
    affine maps and compositions move as in `pgd`, with four times its stride. In l1 flows and affine maps have the
    steps above, without a box.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``, for the random starts.
      steps: gradient steps of each restart.
      restarts: runs from different random starts, each of the examples that no earlier run has broken.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      rho: the share of steps that must raise the loss, see above.
      targeted: whether labels are targets.
      early_stop: an example stops once it is misclassified: the same success in less time, at a point of lower loss.

    Returns:
      The best point by (misclassified, then loss), among all iterates and δ = 0; δ = 0 where that is misclassified.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or an
        option out of its range.
    """
    loss_fn = losses.get(loss)
    sign = -1.0 if targeted else 1.0

    def score(_: Array, labels: Array, perturbed: Images) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        return sign * loss_fn(logits, labels), losses.misclassified(logits, labels) != targeted

    return _climb(score, labels, images, threat, key, _Effort(steps, restarts, rho, early_stop))


@attack(family="ascent", cost=_cost)
def apgd_dlr(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, *,
    key: Key[Array, "..."], steps: Count = 100, restarts: Count = 1, rho: Fraction = 0.75, early_stop: bool = False,
) -> AttackResult:  # fmt: skip
    """`apgd` with `losses.dlr`, which large logits do not saturate; with two classes with `losses.margin`.

    Arguments, result and errors are those of `apgd`.
    """
    loss = losses.dlr if _classes(logits_fn, images) > 2 else losses.margin
    return apgd(
        logits_fn, images, labels, threat, key=key, steps=steps, restarts=restarts, loss=loss, rho=rho,
        early_stop=early_stop,
    )  # fmt: skip


def _classes(logits_fn: LogitsFn, images: Images) -> int:
    return jax.eval_shape(logits_fn, images).shape[-1]


def _cost_targeted(o: SimpleNamespace, problem: Problem) -> Cost:
    runs = o.restarts * min(o.candidates, problem.classes - 1)
    each = gradients(problem.threat, o.steps)
    return Cost(2 + runs * (each + 1), runs * each)


@attack(family="white_box", cost=_cost_targeted)
def apgd_targeted(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 100,
    restarts: Count = 1,
    candidates: Count = 9,
    rho: Fraction = 0.75,
) -> AttackResult:
    """APGD-T: `apgd` with `losses.dlr_targeted` towards each of the likeliest other classes, in turn.

    The labels are the true ones: any misclassification is a success, and ends an example's search. In l1 each run
    climbs through larger balls, see `apgd`. With two classes, for which DLR is not defined, it is `apgd` with
    `losses.margin`.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``, for the random starts.
      steps: gradient steps of each run.
      restarts: runs for each target.
      candidates: the number of targets, the classes of the largest logits at the clean image.
      rho: see `apgd`.

    Returns:
      The best point by (misclassified, then loss towards its target), among the iterates of all runs and δ = 0; δ = 0
      where that is misclassified.

    Raises:
      ValueError: as `apgd`.
    """
    if _classes(logits_fn, images) == 2:
        return apgd(
            logits_fn, images, labels, threat, key=key, steps=steps, restarts=restarts, loss=losses.margin, rho=rho,
            early_stop=True,
        )  # fmt: skip
    targets = losses.rivals(logits_fn(images), labels, candidates)

    def score(run: Array, known: tuple[Array, Array], perturbed: Images) -> tuple[Array, Array]:
        labels, targets = known
        logits = logits_fn(perturbed)
        value = losses.dlr_targeted(logits, labels, targets[:, run // restarts])
        return value, losses.misclassified(logits, labels)

    effort = _Effort(steps, restarts * targets.shape[1], rho, early_stop=True)
    return _climb(score, (labels, targets), images, threat, key, effort)


class _Effort(NamedTuple):
    """The number of steps and runs, and when they end; see `apgd`."""

    steps: int
    runs: int
    rho: float
    early_stop: bool


def _climb(score: Score, known: Any, images: Images, threat: ThreatModel, key: Array, effort: _Effort) -> AttackResult:
    """The best candidate of several runs, each of the examples that no earlier run has broken."""
    space, keys = threat.perturbation, example_keys(key, len(images))

    def going(carry: tuple[Array, Candidate]) -> Array:
        return (carry[0] < effort.runs) & ~carry[1].success.all()

    def one_run(carry: tuple[Array, Candidate]) -> tuple[Array, Candidate]:
        run, best = carry
        run_keys = per_example.fold_keys(keys, run)
        return run + 1, _run(partial(score, run), known, images, threat, run_keys, effort, best)

    zeros = space.zeros(images)
    value, success = score(jnp.array(0), known, clip_box(space.apply(images, zeros)))
    first = Candidate(zeros, jnp.nan_to_num(value, nan=-jnp.inf), success)
    best = jax.lax.while_loop(going, one_run, (jnp.array(0), first))[1]
    return AttackResult(clip_box(space.apply(images, best.delta)), best.delta, best.success)


def _run(
    score: Callable[[Any, Images], tuple[Array, Array]], known: Any, images: Images, threat: ThreatModel, keys: Array,
    effort: _Effort, best: Candidate,
) -> Candidate:  # fmt: skip
    """One run for the examples that are not broken yet; the better of its best candidate and the one given."""
    zeros = threat.perturbation.zeros(images)
    rule = steps_for(threat, zeros, effort.steps, effort.rho)
    begins, counts = jnp.asarray(rule.begins), jnp.asarray(rule.counts)

    def scored(images: Images, known: Any, delta: Delta) -> tuple[Array, Candidate]:
        value, success = score(known, clip_box(threat_models.apply_with_slope(threat, images, delta)))
        return value.sum(), Candidate(delta, jnp.nan_to_num(value, nan=-jnp.inf), success)

    def body(done: Array, fixed: tuple[Images, Any], state: State) -> tuple[State, Array]:
        images, known = fixed
        gradient, new = jax.grad(partial(scored, images, known), has_aux=True)(state.delta)
        gradient = jax.tree.map(jnp.nan_to_num, gradient)
        rises = state.rises + ((done > 0) & (new.value > state.value))
        higher = begins[done] | (new.value > state.top[2])
        top = per_example.where(higher, (state.delta, gradient, new.value), state.top)
        kept = per_example.where(counts[done], best_of(new, state.kept), state.kept)
        back, state = rule.adapt(done, state._replace(rises=rises, top=top, kept=kept))
        delta, gradient, value = per_example.where(back, top, (state.delta, gradient, new.value))
        state = state._replace(delta=rule.move(done, images, state, delta, gradient), previous=delta, value=value)
        return state, ~state.kept.success if effort.early_stop else jnp.ones_like(state.kept.success)

    start = rule.start(keys, images)
    lowest = jnp.full_like(best.value, -jnp.inf)
    state = State(
        start, start, lowest, (start, zeros, lowest), best, step=jnp.full_like(best.value, rule.step),
        rises=jnp.zeros(len(images), int), halved=rule.halved, checked=rule.checked,
    )  # fmt: skip
    state = while_active(body, (images, known), state, ~best.success, len(rule.begins))
    found = best_of(scored(images, known, state.delta)[1], state.kept)
    return per_example.where(best.success, best, found)
