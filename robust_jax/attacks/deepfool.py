"""DeepFool over any threat model: the smallest perturbation that changes the class (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import clip_box, crossed, equal, rounding
from robust_jax.attacks.minimal import found_or_clean
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.attacks.survivors import while_active
from robust_jax.checks import check_batch
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel


def deepfool(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 50,
    relaxation: float = 0.85,
    overshoot: float = 0.02,
    candidates: int = 10,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖`` that DeepFool finds with ``argmax logits_fn(T(x, δ)) != y``, in the ball.

    From δ = 0, at each step the differences ``f_k = z_k - z_y`` are linearised in δ and the nearest of their
    zeros is stepped to, in the threat model's norm::

        k = argmin_k |f_k| / ‖radius * ∂f_k/∂δ‖_dual,    δ <- Π_ball(δ + relaxation * that distance * radius * u_k),

    u_k the unit ball's steepest direction, and ``(1 + overshoot) δ`` is tried: an example stops where it is
    misclassified. A whole step, as in the paper, often crosses a curved boundary far from its nearest point. T is not
    additive in general: one δ is kept, and derivatives are those of ``T(x, δ)`` at the δ tried, not of T at the image
    so far. Parts of a composition move by the same fraction of their balls. Any norm does; l1 moves few coordinates a
    step and may need many steps in the box.

    The radius is the unit of size and also the bound: for distances to the decision boundary, and not the accuracy
    within a budget, give a ball that holds every image, such as l2 at ``sqrt(h * w * c)``; the distance is then
    ``radius * threat_models.size(threat, result.delta)`` (0 where the attack failed).
    Each step costs a forward pass, one more with a gradient for each candidate, and memory for these gradients.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: not used, the attack is deterministic.
      steps: at most so many.
      relaxation: of the distance to the linearised boundary: less finds a smaller δ in more steps.
      overshoot: by which fraction of δ the linearised boundary is crossed.
      candidates: so many classes are stepped towards, those of the largest logits at the clean image.
      targeted: whether labels are targets; the one difference is then the target's to the largest other logit.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    check_search("deepfool", steps, overshoot, candidates)
    if not 0 < relaxation <= 1:
        raise ValueError(f"deepfool: relaxation={relaxation} is a fraction of the way: give one in (0, 1].")
    delta, success = minimal_step(
        logits_fn, images, labels, threat, threat.perturbation.zeros(images),
        steps=steps, relaxation=relaxation, overshoot=overshoot, candidates=candidates, targeted=targeted, confine=True,
    )  # fmt: skip
    return found_or_clean(threat, images, delta, success)


def minimal_step(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    start: Delta,
    *,
    steps: int,
    relaxation: float,
    overshoot: float,
    candidates: int,
    targeted: bool,
    confine: bool,
) -> tuple[Delta, Bool[Array, " b"]]:
    """The loop of `deepfool`, unchecked, from any δ: the last δ tried in the ball, and whether it succeeds.

    Steps are small as measured from ``start``. With ``confine`` δ is kept where no image leaves [0, 1].
    """
    space = threat.perturbation

    def confined(images: Images, delta: Delta) -> Delta:
        return perturbations.confined(space, images, delta) if confine else delta

    def logits_at(images: Images, delta: Delta) -> Array:
        return logits_fn(clip_box(perturbations.followed(space, images, delta)))

    clean = logits_at(images, start)
    classes = clean.shape[-1]

    def rows(logits: Array, labels: Array, rivals: Array) -> Array:
        """The differences that are to become positive, as rows of signs: [N, B, K]."""
        own = jax.nn.one_hot(labels, classes, dtype=clean.dtype)
        if targeted:
            current = jnp.where(own > 0, -jnp.inf, logits).argmax(-1)
            return (own - jax.nn.one_hot(current, classes, dtype=own.dtype))[None]
        return jax.nn.one_hot(rivals.T, classes, dtype=own.dtype) - own

    def body(_: Array, fixed: tuple[Images, Array, Array, Delta], state: _State) -> tuple[_State, Array]:
        images, labels, rivals, start = fixed
        logits, pull = jax.vjp(partial(logits_at, images), state.tried)
        signs = rows(logits, labels, rivals)
        gradients = jax.tree.map(jnp.nan_to_num, jax.vmap(lambda row: pull(row)[0])(signs))
        # Where the box leaves no room a coordinate is no way to the boundary.
        rooms = jax.vmap(lambda g: perturbations.room(space, images, state.tried, g))(gradients)
        gradients = jax.tree.map(lambda g, r: jnp.where(r > 0, g, 0), gradients, rooms)
        gains = jax.vmap(partial(threat_models.gain, threat))(gradients)
        # A little past the boundary: at a tie, the label may still be the first of the largest.
        lacking = 2 * rounding(logits) - (signs * logits).sum(-1)
        distances = jnp.where(gains > 0, lacking / jnp.where(gains > 0, gains, 1), jnp.inf)
        distances = jnp.nan_to_num(distances, nan=jnp.inf, posinf=jnp.inf)
        nearest = distances.argmin(0)
        distance = relaxation * distances.min(0)
        gradient, room = (
            jax.tree.map(lambda leaf: leaf[nearest, jnp.arange(len(images))], tree) for tree in (gradients, rooms)
        )
        # Nothing in the ball is farther than its diameter.
        fraction = jnp.where(jnp.isfinite(distance), jnp.clip(distance, 1e-6, 2), 0)
        size = jax.tree.map(lambda r, d: norms.expand(fraction, d) * r, threat.radius, state.delta)
        delta = confined(images, threat_models.move(threat, state.delta, gradient, size, room))
        beyond = jax.tree.map(lambda s, d: s + (1 + overshoot) * (d - s), start, delta)
        tried = confined(images, threat_models.project(threat, beyond))
        success = crossed(logits_at(images, tried), labels, targeted)
        return _State(delta, tried, success), ~success & ~equal(delta, state.delta)

    fixed = (images, labels, losses.rivals(clean, labels, candidates), start)
    first = _State(start, start, losses.misclassified(clean, labels) != targeted)
    found = while_active(body, fixed, first, ~first.success, steps)
    return found.tried, found.success


class _State(NamedTuple):
    """Where an example is, what lies a little beyond, and whether that is a success."""

    delta: Delta
    tried: Delta
    success: Bool[Array, " b"]


def check_search(path: str, steps: int, overshoot: float, candidates: int) -> None:
    """Raises ValueError, starting with ``path``, for settings of `deepfool` that cannot be."""
    if steps < 1 or candidates < 1:
        raise ValueError(f"{path}: steps={steps}, candidates={candidates}, but both must be at least 1.")
    if not overshoot >= 0:
        raise ValueError(f"{path}: overshoot={overshoot} must not be negative.")
