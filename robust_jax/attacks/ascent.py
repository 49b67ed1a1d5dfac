"""Projected steepest ascent of any function of the perturbed images: what PGD, local flatness and others share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.survivors import while_active
from robust_jax.checks import choose
from robust_jax.perturbations import Delta, Images, Perturbation, example_keys
from robust_jax.threat_models import ThreatModel

# (T(x, δ) in the box, δ, what is known of each example) -> what to maximise, and where that is a success.
Score = Callable[[Images, Delta, Any], tuple[Float[Array, " b"], Bool[Array, " b"]]]

# (images, δ -> score [B], δ, keys [B]) -> an estimate of its gradient in δ.
Estimate = Callable[[Images, Callable[[Delta], Float[Array, " b"]], Delta, Key[Array, " b"]], Delta]

KEEP = ("best", "highest_loss", "last")

# Those of optax that a config can name.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adabelief": optax.adabelief, "adagrad": optax.adagrad, "adam": optax.adam, "rmsprop": optax.rmsprop,
    "sgd": optax.sgd, "yogi": optax.yogi,
}  # fmt: skip


class Ascent(NamedTuple):
    """Where an ascent ended.

    Attributes:
      images: ``T(x, δ)``, clipped to [0, 1].
      delta: inside the ball.
      value: the score there; -inf where it was NaN.
      success: as the score said.
    """

    images: Images
    delta: Delta
    value: Float[Array, " b"]
    success: Bool[Array, " b"]


class Point(NamedTuple):
    """A δ, what the score is there, and whether it is a success."""

    delta: Delta
    value: Float[Array, " b"]
    success: Bool[Array, " b"]


def clip_box(images: Images) -> Images:
    """Images clipped to [0, 1]."""
    # where, not clip: a pixel exactly on 0 or 1 keeps its full gradient.
    return jnp.where(images < 0, 0.0, jnp.where(images > 1, 1.0, images))


def rounding(logits: Float[Array, "b k"]) -> Float[Array, " b"]:
    """Margins below this are ties: another compilation of the same model may see another class."""
    return 0.5e-5 * jnp.abs(logits).max(-1)


def crossed(logits: Float[Array, "b k"], labels: Int[Array, " b"], targeted: bool) -> Bool[Array, " b"]:
    """Where the attack succeeds, and by more than a tie."""
    succeeds = losses.misclassified(logits, labels) != targeted
    return succeeds & (jnp.abs(losses.margin(logits, labels)) > rounding(logits))


def equal(a: Delta, b: Delta) -> Bool[Array, " b"]:
    """Where two δ are the same."""
    same = jax.tree.map(lambda x, y: (x == y).reshape(len(x), -1).all(-1), a, b)
    return jnp.stack(jax.tree.leaves(same)).all(0)


def best_of(new: Point, old: Point) -> Point:
    """The better one by (success, then value), per example; the old one of equals."""
    higher = (new.success & ~old.success) | ((new.success == old.success) & (new.value > old.value))
    return norms.where(higher, new, old)


def ascend(
    score: Score, images: Images, threat: ThreatModel, known: Any = None, *,
    key: Key[Array, "..."], steps: int, step_size: Any = None, restarts: int = 1, momentum: float = 0.0,
    optimizer: Any = None, random_start: bool = True, keep: str = "best", early_stop: bool = False,
    estimate: Estimate | None = None,
) -> Ascent:  # fmt: skip
    """Maximises a score over the ball: ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <∂score/∂δ, u>)``.

    The options are those of `robust_jax.attacks.pgd`, which is this with the loss of a model as score; ``known``, a
    pytree of arrays ``[B, ...]``, is handed to the score; ``estimate`` makes it do without derivatives.

    Raises:
      ValueError: an impossible combination of options.
    """
    check_effort("attack", steps, restarts, random_start, keep, early_stop)
    space = threat.perturbation
    keys = example_keys(key, len(images))
    check_step_size(space, step_size)
    size = jax.tree.map(lambda r: 2.5 * r / max(steps, 1), threat.radius) if step_size is None else step_size
    rule = _optimizer(optimizer, momentum)

    def scored(images: Images, known: Any, delta: Delta) -> tuple[Array, Point]:
        value, success = score(clip_box(threat_models.followed(threat, images, delta)), delta, known)
        return value.sum(), Point(delta, jnp.nan_to_num(value, nan=-jnp.inf), success)

    def better(new: Point, old: Point) -> Point:
        if early_stop:
            return norms.where(old.success, old, best_of(new, old))
        if keep == "best":
            return best_of(new, old)
        return norms.where((new.value > old.value) | (keep == "last"), new, old)

    def by_optimizer(images: Images, delta: Delta, state: Any, gradient: Delta) -> tuple[Delta, Any]:
        assert rule is not None
        update, state = jax.vmap(rule.update)(jax.tree.map(lambda g: -jnp.nan_to_num(g), gradient), state, delta)
        return perturbations.confined(space, images, threat_models.shift(threat, delta, update, size)), state

    def steepest(images: Images, delta: Delta, velocity: Delta, gradient: Delta) -> tuple[Delta, Delta]:
        direction = gradient = jax.tree.map(jnp.nan_to_num, gradient)
        if momentum:
            unit = jax.tree.map(lambda g: g / jnp.maximum(_sum_abs(g), 1e-30), gradient)
            direction = velocity = jax.tree.map(lambda v, u: momentum * v + u, velocity, unit)
        # Where the box leaves no room the budget goes elsewhere.
        free = perturbations.room(space, images, delta, direction)
        delta = threat_models.move(threat, delta, direction, size, free)
        return perturbations.confined(space, images, delta), velocity

    zeros = space.zeros(images)
    move, carried = (steepest, zeros) if rule is None else (by_optimizer, jax.vmap(rule.init)(zeros))

    def body(step: Array, fixed: tuple[Images, Any, Array], carry: tuple[Delta, Any, Point]) -> tuple[Any, Array]:
        images, known, keys = fixed
        delta, state, best = carry
        here = partial(scored, images, known)
        if estimate is None:
            gradient, point = jax.grad(here, has_aux=True)(delta)
        else:
            point = here(delta)[1]
            gradient = estimate(images, lambda at: here(at)[1].value, delta, perturbations.fold_keys(keys, step + 1))
        best = better(point, best)
        return (*move(images, delta, state, gradient), best), ~best.success

    def run(restart: Array, best: Point) -> Point:
        run_keys = perturbations.fold_keys(keys, restart)
        start = zeros
        if random_start:
            start = perturbations.confined(space, images, threat_models.random_delta(threat, run_keys, images))
        fixed, carry = (images, known, run_keys), (start, carried, best)
        if early_stop:
            delta, _, best = while_active(body, fixed, carry, ~best.success, steps)
        else:
            delta, _, best = jax.lax.fori_loop(0, steps, lambda step, carry: body(step, fixed, carry)[0], carry)
        return better(scored(images, known, delta)[1], best)

    if keep == "best":
        best = scored(images, known, zeros)[1]
    else:
        best = Point(zeros, jnp.full(len(images), -jnp.inf), jnp.zeros(len(images), bool))
    best = jax.lax.fori_loop(0, restarts, run, best)
    return Ascent(clip_box(space.apply(images, best.delta)), *best)


def _sum_abs(x: Array) -> Array:
    return jnp.abs(x).sum(tuple(range(1, x.ndim)), keepdims=True)


def _optimizer(optimizer: Any, momentum: float) -> optax.GradientTransformation | None:
    """That of learning rate 1, or None for steepest ascent; raises ValueError for an unknown name, or momentum too."""
    if optimizer is None:
        return None
    if momentum:
        raise ValueError(f"momentum={momentum} is of steepest ascent: give optimizer={optimizer!r} its own.")
    if isinstance(optimizer, str):
        choose("optimizer", optimizer, OPTIMIZERS)
        optimizer = OPTIMIZERS[optimizer]
    rule: optax.GradientTransformation = optimizer(1.0)
    return rule


def check_step_size(space: Perturbation, step_size: Any) -> None:
    """Raises ValueError for one step size where a composition needs one a part."""
    if step_size is not None and space.parts and not isinstance(step_size, tuple | list):
        raise ValueError(f"step_size={step_size!r}: {space.name} takes a tuple of {len(space.parts)}, one a part.")


def check_effort(
    path: str, steps: int, restarts: int = 1, random_start: bool = True, keep: str = "best", early_stop: bool = False
) -> None:
    """Raises ValueError, starting with ``path``, for settings that cannot be or make no sense together."""
    if keep not in KEEP:
        raise ValueError(f"{path}: keep={keep!r} is unknown: choose one of {list(KEEP)}.")
    if not all(isinstance(n, int) and n >= 1 for n in (steps, restarts)):
        raise ValueError(f"{path}: steps={steps}, restarts={restarts}, but both must be whole numbers from 1.")
    if restarts > 1 and not random_start:
        raise ValueError(f"{path}: restarts={restarts} repeat the same run without random_start: set restarts=1.")
    if early_stop and keep != "best":
        raise ValueError(f"{path}: early_stop ends with the first success, which keep={keep!r} may lose: use 'best'.")
    if restarts > 1 and keep == "last":
        raise ValueError(f"{path}: restarts={restarts} with keep='last' keep the last restart alone: use 'best'.")
