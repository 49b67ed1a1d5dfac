"""Projected steepest ascent of any function of the perturbed images, which PGD, local flatness and others share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.result import Candidate, best_of, clip_box
from robust_jax.extensions import choose
from robust_jax.options import Convert, Count, check_call
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel

# (T(x, δ) clipped to [0, 1], δ, what is known of each example) -> what to maximise, and where the attack succeeds.
Score = Callable[[Images, Delta, Any], tuple[Float[Array, " b"], Bool[Array, " b"]]]

# (images, δ -> score [B], δ, keys [B]) -> an estimate of the gradient of the score in δ.
Estimate = Callable[[Images, Callable[[Delta], Float[Array, " b"]], Delta, Key[Array, " b"]], Delta]

Keep = Literal["best", "highest_loss", "last"]
"""Which iterate is returned, see `robust_jax.attacks.pgd`."""

# The optimizers of optax that a config can name.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adabelief": optax.adabelief, "adagrad": optax.adagrad, "adam": optax.adam, "rmsprop": optax.rmsprop,
    "sgd": optax.sgd, "yogi": optax.yogi,
}  # fmt: skip


def _optimizer(optimizer: Any) -> Callable[..., optax.GradientTransformation]:
    """An optimizer from its name in `OPTIMIZERS`, or itself."""
    if callable(optimizer):
        return optimizer
    choose("optimizer", optimizer, OPTIMIZERS, ", or give learning_rate -> optax.GradientTransformation")
    return OPTIMIZERS[optimizer]


Optimizer = Annotated[str | Callable[..., optax.GradientTransformation], Convert(_optimizer)]
"""An option for an optimizer: ``learning_rate -> optax.GradientTransformation``, or a name in `OPTIMIZERS`."""


class Ascent(NamedTuple):
    """The result of an ascent.

    Attributes:
      images: ``T(x, δ)``, clipped to [0, 1].
      delta: inside the ball.
      value: the score at δ; -inf if it is NaN.
      success: as the score returned it.
    """

    images: Images
    delta: Delta
    value: Float[Array, " b"]
    success: Bool[Array, " b"]


class _Step(NamedTuple):
    """How δ moves along a gradient.

    Attributes:
      state: at the start: a velocity, or the state of an optimizer.
      move: ``(images, δ, state, gradient) -> (δ, state)``.
    """

    state: Any
    move: Callable[[Images, Delta, Any, Delta], tuple[Delta, Any]]


def ascend(
    score: Score, images: Images, threat: ThreatModel, known: Any = None, *,
    key: Key[Array, "..."], steps: Count, step_size: Any = None, restarts: Count = 1, momentum: float = 0.0,
    optimizer: Any = None, random_start: bool = True, keep: Keep = "best", early_stop: bool = False,
    estimate: Estimate | None = None, name: str = "ascend",
) -> Ascent:  # fmt: skip
    """Maximises a score over the ball: ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <∂score/∂δ, u>)``.

    `robust_jax.attacks.pgd` is this with the loss of a model as the score. It explains the options, which are passed on
    one by one, so that their names are checked.

    Args:
      score: what to maximise, and where the attack succeeds.
      images: in [0, 1].
      threat: perturbation, norm and radius.
      known: a pytree of arrays ``[B, ...]``, passed to the score.
      key: one key, or one per example ``[B]``.
      steps: gradient steps of each restart.
      step_size: see `pgd`.
      restarts: see `pgd`.
      momentum: see `pgd`.
      optimizer: see `pgd`.
      random_start: see `pgd`.
      keep: see `pgd`.
      early_stop: see `pgd`.
      estimate: replaces the gradient, so that the score is not differentiated.
      name: of the attack, in messages.

    Raises:
      ValueError: no steps or restarts, options that contradict each other, or one step size for a composition.
    """
    check_call(name, ascend, dict(steps=steps, restarts=restarts, keep=keep))
    _check_runs(name, restarts, random_start, keep, early_stop)
    space = threat.perturbation
    keys = example_keys(key, len(images))
    check_step_size(threat, images, step_size)
    size = jax.tree.map(lambda r: 2.5 * r / steps, threat.radius) if step_size is None else step_size
    zeros = space.zeros(images)
    if optimizer is None:
        step = _steepest(threat, zeros, size, momentum)
    else:
        step = _by_optimizer(threat, zeros, size, momentum, optimizer)
    better = _keeping(keep, early_stop)

    def scored(images: Images, known: Any, delta: Delta) -> tuple[Array, Candidate]:
        value, success = score(clip_box(threat_models.apply_with_slope(threat, images, delta)), delta, known)
        return value.sum(), Candidate(delta, jnp.nan_to_num(value, nan=-jnp.inf), success)

    def body(done: Array, fixed: tuple[Images, Any, Array], carry: tuple[Delta, Any, Candidate]) -> tuple[Any, Array]:
        images, known, keys = fixed
        delta, state, best = carry
        score_at = partial(scored, images, known)
        if estimate is None:
            gradient, candidate = jax.grad(score_at, has_aux=True)(delta)
        else:
            candidate = score_at(delta)[1]
            gradient = estimate(images, lambda d: score_at(d)[1].value, delta, per_example.fold_keys(keys, done + 1))
        best = better(candidate, best)
        return (*step.move(images, delta, state, gradient), best), ~best.success

    def run(restart: Array, best: Candidate) -> Candidate:
        run_keys = per_example.fold_keys(keys, restart)
        start = zeros
        if random_start:
            start = perturbations.confined(space, images, threat_models.random_delta(threat, run_keys, images))
        fixed, carry = (images, known, run_keys), (start, step.state, best)
        if early_stop:
            delta, _, best = while_active(body, fixed, carry, ~best.success, steps)
        else:
            delta, _, best = jax.lax.fori_loop(0, steps, lambda done, carry: body(done, fixed, carry)[0], carry)
        return better(scored(images, known, delta)[1], best)

    if keep == "best":
        best = scored(images, known, zeros)[1]
    else:
        best = Candidate(zeros, jnp.full(len(images), -jnp.inf), jnp.zeros(len(images), bool))
    best = jax.lax.fori_loop(0, restarts, run, best)
    return Ascent(clip_box(space.apply(images, best.delta)), *best)


def _steepest(threat: ThreatModel, zeros: Delta, size: Any, momentum: float) -> _Step:
    """Projected steepest ascent; its state is the velocity."""
    space = threat.perturbation

    def move(images: Images, delta: Delta, velocity: Delta, gradient: Delta) -> tuple[Delta, Delta]:
        direction = gradient = jax.tree.map(jnp.nan_to_num, gradient)
        if momentum:
            # In float16 the 1e-30 is 0, and sums of gradients may be infinite.
            unit = jax.tree.map(lambda g: g / jnp.maximum(_sum_abs(g), 1e-30), in_float32(gradient))
            velocity = jax.tree.map(lambda v, u: momentum * v + u, velocity, unit)
            direction = jax.tree.map(lambda v, g: v.astype(g.dtype), velocity, gradient)
        # Coordinates that the box holds back leave their share of the step to the others.
        headroom = perturbations.headroom(space, images, delta, direction)
        delta = threat_models.move(threat, delta, direction, size, headroom, threat_models.strides(threat, delta))
        return perturbations.confined(space, images, delta), velocity

    return _Step(in_float32(zeros), move)


def _sum_abs(x: Array) -> Array:
    return jnp.abs(x).sum(tuple(range(1, x.ndim)), keepdims=True)


def _by_optimizer(threat: ThreatModel, zeros: Delta, size: Any, momentum: float, optimizer: Any) -> _Step:
    """Steps of an optimizer with a learning rate of 1, times the step size, projected."""
    if momentum:
        raise ValueError(
            f"momentum={momentum} belongs to steepest ascent: give optimizer={optimizer!r} its own, such as "
            f"functools.partial(optax.sgd, momentum={momentum})."
        )
    space, rule = threat.perturbation, _optimizer(optimizer)(1.0)
    if not hasattr(rule, "init") or not hasattr(rule, "update"):
        raise ValueError(
            f"optimizer={optimizer!r} must be learning_rate -> optax.GradientTransformation, such as optax.adam; it "
            f"returned a {type(rule).__name__}."
        )

    def move(images: Images, delta: Delta, state: Any, gradient: Delta) -> tuple[Delta, Any]:
        # In float16 Adam's squares and its epsilon of 1e-8 are 0.
        uphill, at = in_float32((jax.tree.map(lambda g: -jnp.nan_to_num(g), gradient), delta))
        update, state = jax.vmap(rule.update)(uphill, state, at)
        return perturbations.confined(space, images, threat_models.shift(threat, delta, update, size)), state

    return _Step(jax.vmap(rule.init)(in_float32(zeros)), move)


def in_float32(tree: Any) -> Any:
    """Arrays of a lower precision as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _keeping(keep: Keep, early_stop: bool) -> Callable[[Candidate, Candidate], Candidate]:
    """``(new, old) -> the one to keep``, per example."""

    def better(new: Candidate, old: Candidate) -> Candidate:
        if early_stop:
            return per_example.where(old.success, old, best_of(new, old))
        if keep == "best":
            return best_of(new, old)
        return per_example.where((new.value > old.value) | (keep == "last"), new, old)

    return better


def check_step_size(threat: ThreatModel, images: Images, step_size: Any) -> None:
    """Raises ValueError for a step size that does not fit δ: of a composition it is a tuple with one per part."""
    space = threat.perturbation
    if step_size is None:
        return
    if space.parts and not (isinstance(step_size, tuple | list) and len(step_size) == len(space.parts)):
        raise ValueError(f"step_size={step_size!r}: {space.name} takes a tuple of {len(space.parts)}, one per part.")
    deltas = jax.tree.leaves(jax.eval_shape(space.zeros, images))
    for size, delta in zip(step_size if space.parts else [step_size], deltas, strict=True):
        if not perturbations.broadcasts(np.shape(size), delta.shape):
            raise ValueError(
                f"step_size={step_size!r} has the shape {np.shape(size)}, but δ of {space.name} {delta.shape}: give "
                f"one number, or one for each entry of δ's last axis."
            )


def _check_runs(name: str, restarts: int, random_start: bool, keep: Keep, early_stop: bool) -> None:
    """Raises ValueError, beginning with the attack's name, for options that contradict each other."""
    if restarts > 1 and not random_start:
        raise ValueError(f"{name}: restarts={restarts} repeat the same run without random_start: set restarts=1.")
    if early_stop and keep != "best":
        raise ValueError(
            f"{name}: early_stop stops at the first success, which keep={keep!r} may replace: set keep='best'."
        )
    if restarts > 1 and keep == "last":
        raise ValueError(f"{name}: restarts={restarts} with keep='last' return the last restart only: set keep='best'.")
