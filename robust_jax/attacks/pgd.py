"""Projected gradient ascent over any threat model (Madry et al. 2018); FGSM is its one-step case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses, perturbations, threat_models
from robust_jax.checks import check_batch
from robust_jax.perturbations import Delta, Images, example_keys
from robust_jax.threat_models import ThreatModel

LogitsFn = Callable[[Images], Float[Array, "b k"]]
LossFn = Callable[[Float[Array, "b k"], Int[Array, " b"]], Float[Array, " b"]]

KEEP = ("best", "highest_loss", "last")


class AttackResult(NamedTuple):
    """What every attack returns.

    Attributes:
      images: ``[B, H, W, C]`` in [0, 1].
      delta: the δ that made them, inside the ball.
      success: ``[B]``, true exactly where the image is misclassified (targeted: classified as the target).
    """

    images: Images
    delta: Delta
    success: Bool[Array, " b"]


class _Point(NamedTuple):
    delta: Delta
    loss: Array
    success: Array


def _where(mask: Array, a: Any, b: Any) -> Any:
    """Per-example choice between two pytrees of arrays ``[B, ...]``."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)


def _clip_box(images: Images) -> Images:
    # where, not clip: a pixel exactly on 0 or 1 keeps its full gradient.
    return jnp.where(images < 0, 0.0, jnp.where(images > 1, 1.0, images))


def pgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 40,
    step_size: Any = None,
    restarts: int = 1,
    loss: LossFn = losses.cross_entropy,
    momentum: float = 0.0,
    targeted: bool = False,
    random_start: bool = True,
    keep: str = "best",
) -> AttackResult:
    """Maximises ``loss(logits_fn(T(x, δ)), y)`` over the ball by projected steepest ascent.

    ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <∂loss/∂δ, u>)``: the sign for linf, the normalised gradient
    for l2 (Madry et al. 2018); for l1 the best coordinates, each as far as the box [0, 1] lets it. Coordinates that
    the box holds back are left out. With momentum μ the direction is taken from ``v <- μ v + g / ‖g‖₁`` (Dong et
    al. 2018).
    Each run costs ``steps`` gradients and one forward pass, and keep="best" one forward pass more.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``; only the random start uses it.
      steps: gradient steps of each restart.
      step_size: in units of δ, of the radius' shape; by default ``2.5 * radius / steps``.
      restarts: runs from different random starts.
      loss: ``(logits, labels) -> [B]``, maximised (targeted: minimised).
      momentum: 0 is none.
      targeted: whether labels are targets.
      random_start: from a random point of the ball, else from δ = 0.
      keep: "best": by (misclassified, then loss), over all iterates and δ = 0; "highest_loss": over all iterates;
        "last": the last iterate.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible combination of options.
    """
    check_batch(images, labels, logits_fn)
    check_effort("pgd", steps, restarts, random_start, keep)
    space = threat.perturbation
    keys = example_keys(key, len(images))
    sign = -1.0 if targeted else 1.0
    if step_size is not None and space.parts and not isinstance(step_size, tuple | list):
        raise ValueError(f"step_size={step_size!r}: {space.name} takes a tuple of {len(space.parts)}, one a part.")
    size = jax.tree.map(lambda r: 2.5 * r / max(steps, 1), threat.radius) if step_size is None else step_size

    def score(delta: Delta) -> tuple[Array, _Point]:
        logits = logits_fn(_clip_box(space.apply(images, delta)))
        value = sign * loss(logits, labels)
        wrong = losses.misclassified(logits, labels)
        return value.sum(), _Point(delta, jnp.nan_to_num(value, nan=-jnp.inf), wrong != targeted)

    def confined(delta: Delta) -> Delta:
        return delta if space.confine is None else space.confine(images, delta)

    def better(new: _Point, old: _Point) -> _Point:
        higher = new.loss > old.loss
        if keep == "best":
            higher = (new.success & ~old.success) | ((new.success == old.success) & higher)
        return _where(higher | (keep == "last"), new, old)

    def ascend(delta: Delta, velocity: Delta, gradient: Delta) -> tuple[Delta, Delta]:
        direction = gradient = jax.tree.map(jnp.nan_to_num, gradient)
        if momentum:
            unit = jax.tree.map(lambda g: g / jnp.maximum(_sum_abs(g), 1e-30), gradient)
            direction = velocity = jax.tree.map(lambda v, u: momentum * v + u, velocity, unit)
        # Where the box leaves no room the budget goes elsewhere.
        free = perturbations.room(space, images, delta, direction)
        delta = threat_models.move(threat, delta, direction, size, free)
        return confined(delta), velocity

    def run(restart: Array, best: _Point) -> _Point:
        delta = space.zeros(images)
        if random_start:
            run_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
            delta = confined(threat_models.random_delta(threat, run_keys, images))

        def body(_: Array, carry: tuple[Delta, Delta, _Point]) -> tuple[Delta, Delta, _Point]:
            delta, velocity, best = carry
            gradient, point = jax.grad(score, has_aux=True)(delta)
            return *ascend(delta, velocity, gradient), better(point, best)

        delta, _, best = jax.lax.fori_loop(0, steps, body, (delta, space.zeros(images), best))
        return better(score(delta)[1], best)

    zeros = space.zeros(images)
    if keep == "best":
        best = score(zeros)[1]
    else:
        best = _Point(zeros, jnp.full(len(images), -jnp.inf), jnp.zeros(len(images), bool))
    best = jax.lax.fori_loop(0, restarts, run, best)
    return AttackResult(_clip_box(space.apply(images, best.delta)), best.delta, best.success)


def fgsm(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    loss: LossFn = losses.cross_entropy,
    targeted: bool = False,
) -> AttackResult:
    """One step of the whole radius from δ = 0 (Goodfellow et al. 2015), for any threat model; see `pgd`."""
    return pgd(
        logits_fn, images, labels, threat, key=key, steps=1, step_size=threat.radius, loss=loss,
        targeted=targeted, random_start=False, keep="last",
    )  # fmt: skip


def _sum_abs(x: Array) -> Array:
    return jnp.abs(x).sum(tuple(range(1, x.ndim)), keepdims=True)


def check_effort(path: str, steps: int, restarts: int, random_start: bool, keep: str) -> None:
    """Raises ValueError, starting with ``path``, for settings that cannot be or make no sense together."""
    if keep not in KEEP:
        raise ValueError(f"{path}: keep={keep!r} is unknown: choose one of {list(KEEP)}.")
    if steps < 1 or restarts < 1:
        raise ValueError(f"{path}: steps={steps}, restarts={restarts}, but both must be at least 1.")
    if restarts > 1 and not random_start:
        raise ValueError(f"{path}: restarts={restarts} repeat the same run without random_start: set restarts=1.")
    if restarts > 1 and keep == "last":
        raise ValueError(f"{path}: restarts={restarts} with keep='last' keep the last restart alone: use 'best'.")
