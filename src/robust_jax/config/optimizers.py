"""Optimisers and learning-rate schedules of optax, from a config's plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from robust_jax.extensions import choose
from robust_jax.options import NotNegative, Positive, Range
from robust_jax.options.signatures import checks_arguments

OPTIMIZERS = ("sgd", "adam", "adamw")
OF_STEP = ("ema", "adversarial_weights")  # keys of a config's optimizer that the training step takes
_MOST_STEPS = 2**31 - 1
Momentum = Annotated[float, Range(least=0, below=1)]
Boundaries = Annotated[Sequence[float], Range(least=0, tuples=True)]
SCHEDULES = ("constant", "piecewise", "cosine", "one_cycle")


@checks_arguments
def make_schedule(
    *, name: str, learning_rate: NotNegative, boundaries: Boundaries, factor: Positive,
    warmup_epochs: NotNegative, epochs: Positive, steps_per_epoch: Positive,
) -> optax.Schedule:  # fmt: skip
    """The learning rate of every step.

    Args:
      name: "constant"; "piecewise": times ``factor`` at each of ``boundaries`` (in epochs); "cosine": to 0;
        "one_cycle": up over the first 30% and down again (Smith 2018), ``learning_rate`` being the peak.
      learning_rate: before any decay.
      boundaries: in epochs.
      factor: by which the rate is multiplied at each boundary.
      warmup_epochs: the length of a linear rise from 0 before the schedule; 0 for one_cycle.
      epochs: the length of the run.
      steps_per_epoch: may be fractional.

    Raises:
      ValueError: an unknown name, or warm-up with one_cycle.
    """
    choose("schedule.name", name, SCHEDULES)
    if epochs * steps_per_epoch > _MOST_STEPS:
        raise ValueError(
            f"epochs={epochs:g} are {epochs * steps_per_epoch:,.0f} steps: at most {_MOST_STEPS:,} are counted."
        )
    steps = max(round(epochs * steps_per_epoch), 1)
    warmup = round(warmup_epochs * steps_per_epoch)
    if name == "one_cycle":
        if warmup:
            raise ValueError(f"schedule.warmup_epochs={warmup_epochs}: one_cycle has a warm-up of its own, set 0.")
        return optax.cosine_onecycle_schedule(steps, learning_rate)
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1))
    else:
        at: dict[int, float] = {}
        for boundary in boundaries:  # two may round to one step
            step = round(boundary * steps_per_epoch) - warmup
            at[step] = at.get(step, 1.0) * factor
        schedule = optax.piecewise_constant_schedule(learning_rate, at)
    if not warmup:
        return schedule
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    return optax.join_schedules([rise, schedule], [warmup])


def decayed(params: Any) -> Any:
    """A mask of the parameters that decay: all but the scales and biases of BatchNorm."""
    if isinstance(params, Mapping):
        norm = "scale" in params
        return {k: jax.tree.map(lambda _: False, v) if norm else decayed(v) for k, v in params.items()}
    return True


def perturbed_weights(params: Any, gradient: Any, size: float) -> Any:
    """``w + size ‖w‖ g / ‖g‖`` of every kernel: adversarial weight perturbation (Wu et al. 2020, eq. 10).

    Biases and BatchNorm parameters stay unchanged.
    """

    def one(w: jax.Array, g: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return w
        length = optax.safe_norm(g, 0.0)
        return w + size * optax.safe_norm(w, 0.0) * g / jnp.where(length > 0, length, 1)

    return jax.tree.map(one, params, gradient)


@checks_arguments
def bound_unit_norms(limit: Positive) -> optax.GradientTransformation:
    """Keeps ``norm(w_u) <= limit`` for the incoming weights ``w_u`` of every unit; it comes last in a chain.

    The weights of a unit are ``kernel[..., u]`` of a kernel with at least two axes. Weights that an update would take
    beyond the limit are projected onto it, ``w_u <- limit w_u / norm(w_u)`` (Srivastava et al. 2014, section 5.1).
    Weights that start beyond it are projected by the first update. Biases and BatchNorm parameters stay unchanged.

    Raises:
      ValueError: a limit that is not above 0.
    """

    def project(update, param):
        if update.ndim < 2:
            return update
        weights = param + update
        norms = jnp.linalg.norm(weights.reshape(-1, weights.shape[-1]), axis=0)
        # Updates within the limit stay as they are, to the last bit.
        return jnp.where(norms > limit, weights * (limit / norms) - param, update)

    return optax.stateless_with_tree_map(project)


@checks_arguments
def make_optimizer(
    schedule: optax.Schedule, *, name: str, momentum: Momentum, nesterov: bool, weight_decay: NotNegative,
    decay_batch_norm: bool, clip_norm: NotNegative, max_norm: NotNegative = 0.0,
) -> optax.GradientTransformation:  # fmt: skip
    """SGD with momentum, Adam or AdamW.

    Weight decay is coupled, ``g + weight_decay * θ`` before momentum or Adam's moments, as in torch.optim.SGD;
    "adamw" decouples it (Loshchilov & Hutter 2019). ``clip_norm`` > 0 first clips the global gradient norm, and
    ``max_norm`` > 0 last bounds the norm of every unit's incoming weights (`bound_unit_norms`).

    Raises:
      ValueError: an unknown name, or a negative ``max_norm``.
    """
    choose("optimizer.name", name, OPTIMIZERS)
    mask = None if decay_batch_norm else decayed
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if weight_decay and name != "adamw":
        parts.append(optax.add_decayed_weights(weight_decay, mask))
    if name == "adamw":
        parts.append(optax.adamw(schedule, weight_decay=weight_decay, mask=mask))
    elif name == "adam":
        parts.append(optax.adam(schedule))
    else:
        parts.append(optax.sgd(schedule, momentum or None, nesterov=nesterov))
    if max_norm:
        parts.append(bound_unit_norms(max_norm))
    return optax.chain(*parts)
