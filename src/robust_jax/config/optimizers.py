"""Optimisers and learning-rate schedules of optax, from a config's plain data."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from robust_jax.config.values import number
from robust_jax.extensions import choose
from robust_jax.options import NotNegative, Positive, Range, function_of
from robust_jax.options.signatures import checks_arguments

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
    """A mask of the parameters that decay: all but the scales and biases of layers that have nothing else."""
    if isinstance(params, Mapping):
        norm = "scale" in params and params.keys() <= {"scale", "bias"}
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


@functools.cache
def known_optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The optimisers of optax by name: its functions whose first parameter is the learning rate.

    `make_optimizer` says why a few of them cannot be used, such as "lbfgs", which needs the loss at other weights.

    Example::

        known_optimizers()["lion"] is optax.lion
    """
    kinds = (types.FunctionType, functools.partial)
    functions = {name: value for name, value in vars(optax).items() if isinstance(value, kinds)}
    return {
        name: function
        for name, function in sorted(functions.items())
        if not name.startswith(("_", "scale_by_"))
        and next(iter(inspect.signature(function).parameters), "") == "learning_rate"
    }


@checks_arguments
def make_optimizer(
    schedule: optax.Schedule, *, name: str, momentum: Momentum, nesterov: bool, weight_decay: NotNegative,
    decay_batch_norm: bool, clip_norm: NotNegative, max_norm: NotNegative = 0.0, options: Mapping[str, Any] = {},
) -> optax.GradientTransformation:  # fmt: skip
    """An optimiser of optax, or of your own, with clipping before it and a bound of norms after it.

    Weight decay is coupled, ``g + weight_decay * θ`` before momentum or Adam's moments, as in torch.optim.SGD, unless
    the optimiser has a parameter ``weight_decay``, as "adamw" and "lion" do: then it is the optimiser's own, decoupled
    in these (Loshchilov & Hutter 2019). ``clip_norm`` > 0 first clips the global gradient norm, and ``max_norm`` > 0
    last bounds the norm of every unit's incoming weights (`bound_unit_norms`).

    Args:
      schedule: step -> learning rate.
      name: one of `known_optimizers`, or ``"module:name"`` of a function ``(learning_rate, **options) ->
        GradientTransformation``, such as "optax.contrib:muon".
      momentum: of "sgd"; other optimisers take theirs from ``options``.
      nesterov: of "sgd", likewise.
      weight_decay: its coefficient.
      decay_batch_norm: whether the scales and biases of BatchNorm decay too.
      clip_norm: the largest global norm of the gradient; 0 for none.
      max_norm: the largest norm of a unit's incoming weights; 0 for none.
      options: further arguments of the optimiser's function, such as ``dict(b1=0.95)``.

    Raises:
      ValueError: an unknown name or option, an optimiser that needs more than gradients, or a negative ``max_norm``.

    Example::

        make_optimizer(
            optax.constant_schedule(1e-4), name="lion", momentum=0.0, nesterov=False, weight_decay=0.1,
            decay_batch_norm=False, clip_norm=1.0, options={"b2": 0.98},
        )
    """
    function = function_of("optimizer.name", name, known_optimizers())
    parameters = _parameters_of(name, function)
    _check_own_options(name, parameters, options)
    given = {option: number(value) for option, value in options.items()}
    if function is optax.sgd:
        given |= {"momentum": momentum or None, "nesterov": nesterov}
    mask = None if decay_batch_norm else decayed
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if "weight_decay" in parameters:
        given |= {"weight_decay": weight_decay} | _mask_option(name, parameters, mask, weight_decay)
    elif weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask))
    parts.append(_checked_optimizer(name, function, {"learning_rate": schedule} | given))
    if max_norm:
        parts.append(bound_unit_norms(max_norm))
    return optax.chain(*parts)


_MASKS = ("mask", "weight_decay_mask")
# Parameters of an optimiser that keys of a config give, and these keys.
_ELSEWHERE = {
    "learning_rate": "schedule.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    **dict.fromkeys(_MASKS, "optimizer.decay_batch_norm"),
}
_OF_SGD = {name: f"optimizer.{name}" for name in ("momentum", "nesterov")}


def _parameters_of(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of an optimiser's parameters.

    Raises:
      ValueError: none of them is the learning rate.
    """
    parameters = tuple(inspect.signature(function).parameters)
    if "learning_rate" not in parameters:
        raise ValueError(
            f"optimizer.name={name!r} has no parameter learning_rate: name a function (learning_rate, **options) -> "
            f"optax.GradientTransformation."
        )
    return parameters


def _check_own_options(name: str, parameters: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that is no parameter of the optimiser, or that another key of a config gives."""
    elsewhere = _ELSEWHERE | (_OF_SGD if name == "sgd" else {})
    for option in options:
        if option in elsewhere and option in parameters:
            raise ValueError(f"optimizer.options.{option}: set {elsewhere[option]} instead.")
        choose(f"optimizer.options (of {name})", option, set(parameters) - set(elsewhere))


def _mask_option(name: str, parameters: Sequence[str], mask: Any, weight_decay: float) -> dict[str, Any]:
    """The mask of the parameters that decay, as the optimiser's own argument.

    Raises:
      ValueError: the optimiser takes none, and one is wanted.
    """
    found = [parameter for parameter in _MASKS if parameter in parameters]
    if mask is not None and weight_decay and not found:
        raise ValueError(
            f"optimizer.decay_batch_norm=False: {name} takes no mask of what decays; set it to True, or "
            f"optimizer.weight_decay to 0."
        )
    return {found[0]: mask} if found else {}


def _checked_optimizer(
    name: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The optimiser, after one update on shapes alone.

    Raises:
      ValueError: it cannot be made, or an update needs more than gradients and weights.
    """
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    refused = f"optimizer.name={name!r} with {dict(given) | {'learning_rate': '...'}} cannot train here"
    try:
        optimizer = function(**given)
        state = jax.eval_shape(optimizer.init, params)
        jax.eval_shape(optimizer.update, params, state, params)
    except Exception as error:  # whichever a function of optax or of the user's own raises
        raise ValueError(f"{refused}: {type(error).__name__}: {error}") from error
    if any(map(_is_schedule_free, jax.tree.leaves(state, is_leaf=_is_schedule_free))):
        raise ValueError(f"{refused}: it evaluates other weights than those that it updates.")
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
        raise ValueError(f"{refused}: its state holds a random key, which no checkpoint can store.")
    return optimizer


def _is_schedule_free(part: Any) -> bool:
    return isinstance(part, optax.contrib.ScheduleFreeState)
