"""DeepFool over any threat model: the smallest perturbation that changes the class (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from robust_jax import losses
from robust_jax.attacks import linearised
from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.define import Cost, Problem, Share, attack
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box, crossed, equal, found_or_clean
from robust_jax.options import Count, NotNegative
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    return Cost(1 + 2 * o.steps, o.steps * min(o.candidates, problem.classes - 1))


@attack(family="boundary", cost=_cost)
def deepfool(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 50,
    relaxation: Share = 0.85,
    overshoot: NotNegative = 0.02,
    candidates: Count = 10,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖`` that DeepFool finds with ``argmax logits_fn(T(x, δ)) != y``, in the ball.

    From δ = 0, each step linearises the differences ``f_k = z_k - z_y`` in δ and goes towards the nearest of their
    zeros, in the threat model's norm::

        k = argmin_k |f_k| / ‖radius * ∂f_k/∂δ‖_dual,    δ <- Π_ball(δ + relaxation * that distance * radius * u_k),

    u_k the unit ball's steepest direction, and then tries ``(1 + overshoot) δ``: an example stops once that is
    misclassified. A full step, as in the paper, often crosses a curved boundary far from its nearest point. As T is not
    additive in general, a single δ is kept, and derivatives are those of ``T(x, δ)`` at δ, instead of those of T at the
    transformed image. All parts of a composition move by the same fraction of their balls. Any norm is
    supported; l1 moves few coordinates per step and may need many steps in the box.

    The radius is both the unit of size and the bound. To measure distances to the decision boundary, rather than the
    accuracy within a budget, choose a ball that contains every image, such as l2 of radius ``sqrt(h * w * c)``; the
    distance is then ``radius * threat_models.size(threat, result.delta)`` (0 if the attack failed).
    Each step costs two forward passes, one gradient per candidate, and memory for these gradients.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: not used, the attack is deterministic.
      steps: the largest number of steps.
      relaxation: the fraction of the distance to the linearised boundary that a step covers: a smaller one finds a
        smaller δ in more steps.
      overshoot: how far beyond the linearised boundary δ is tried, as a fraction of δ.
      candidates: the number of classes that are considered, those of the largest logits at the clean image.
      targeted: whether labels are targets; then only the difference to the target's logit is considered, from the
        largest other logit.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), or an
        option out of its range.
    """
    start, search = threat.perturbation.zeros(images), Search(steps, relaxation, overshoot, candidates, targeted)
    delta, success = minimal_step(logits_fn, images, labels, threat, start, search)
    return found_or_clean(threat, images, delta, success)


class Search(NamedTuple):
    """The options of a search, see `deepfool`; with ``confine`` no image leaves [0, 1]."""

    steps: int
    relaxation: float
    overshoot: float
    candidates: int
    targeted: bool
    confine: bool = True


class _State(NamedTuple):
    """The δ of an example, the one a little beyond it that is tried, and whether that is a success."""

    delta: Delta
    tried: Delta
    success: Bool[Array, " b"]


def minimal_step(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, start: Delta, search: Search
) -> tuple[Delta, Bool[Array, " b"]]:
    """The loop of `deepfool` from any δ, with sizes measured from there.

    Returns:
      The last δ tried, in the ball, and whether it succeeds.
    """
    space = threat.perturbation

    def confined(images: Images, delta: Delta) -> Delta:
        return perturbations.confined(space, images, delta) if search.confine else delta

    def logits_at(images: Images, delta: Delta) -> Array:
        return logits_fn(clip_box(perturbations.apply_with_slope(space, images, delta)))

    clean = logits_at(images, start)

    def body(_: Array, fixed: tuple[Images, Array, Array, Delta], state: _State) -> tuple[_State, Array]:
        images, labels, rivals, start = fixed
        # At δ and not at what was tried: from there every step would end short of the boundary by what was relaxed.
        logits, pull = jax.vjp(partial(logits_at, images), state.delta)
        signs = linearised.rows(logits, labels, rivals, search.targeted)
        distance, gradient, headroom = _nearest(logits, pull, signs, images, threat, state.delta, search.relaxation)
        # Nothing in the ball is farther than its diameter; a tie is left by a tiny step.
        least = jnp.where(equal(state.delta, start), 1e-6, 0.0)
        fraction = jnp.where(jnp.isfinite(distance), jnp.clip(distance, least, 2), 0)
        size = jax.tree.map(lambda r, d: per_example.expand(fraction, d) * r, threat.radius, state.delta)
        delta = confined(images, threat_models.move(threat, state.delta, gradient, size, headroom))
        beyond = jax.tree.map(lambda s, d: s + (1 + search.overshoot) * (d - s), start, delta)
        tried = confined(images, threat_models.project(threat, beyond))
        success = crossed(logits_at(images, tried), labels, search.targeted)
        return _State(delta, tried, success), ~success & ~equal(delta, state.delta)

    fixed = (images, labels, losses.rivals(clean, labels, search.candidates), start)
    first = _State(start, start, losses.misclassified(clean, labels) != search.targeted)
    found = while_active(body, fixed, first, ~first.success, search.steps)
    return found.tried, found.success


def _nearest(
    logits: Array, pull: Callable[[Array], tuple[Delta]], signs: Array, images: Images, threat: ThreatModel,
    delta: Delta, relaxation: float,
) -> tuple[Array, Delta, Delta]:  # fmt: skip
    """The relaxed distance to the nearest linearised boundary in radii, the gradient towards it, and the headroom."""
    gradients, lacking = linearised.boundaries(logits, pull, signs)
    # Coordinates that the box holds back do not lead to the boundary.
    headrooms = jax.vmap(lambda g: perturbations.headroom(threat.perturbation, images, delta, g))(gradients)
    gradients = perturbations.free(gradients, headrooms)
    gains = jax.vmap(partial(threat_models.gain, threat))(gradients)
    distances = jnp.nan_to_num(per_example.quotient(lacking, gains, jnp.inf), nan=jnp.inf, posinf=jnp.inf)
    nearest = distances.argmin(0)
    distance = relaxation * distances.min(0)
    gradient, headroom = (
        jax.tree.map(lambda leaf: leaf[nearest, jnp.arange(len(images))], tree) for tree in (gradients, headrooms)
    )
    return distance, gradient, headroom
