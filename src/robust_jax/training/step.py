"""The training state and one training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from robust_jax import data, models, parallel
from robust_jax.config import optimizers
from robust_jax.data import augment
from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import Objective
from robust_jax.objectives.points import Point
from robust_jax.options import shown
from robust_jax.training import accumulation

Batch = Mapping[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that training carries from step to step.

    Attributes:
      step: the number of steps done.
      params: the weights, float32.
      batch_stats: running statistics of BatchNorm, averaged over devices; {} without BatchNorm.
      opt_state: optax's state.
      ema: averages of params and batch_stats, in a dict of these two; {} without averaging.
      memory: what points keep from step to step; {} if none does.
      best: the best validation accuracy so far, -1 before the first validation.
      failed_step: the first step whose loss or gradient was not finite, -1 for none; its update was skipped.
      failed_term: the index of the first term that was not finite at that step, or the number of terms if all were and
        the gradient was not.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    memory: Any
    best: jax.Array
    failed_step: jax.Array
    failed_term: jax.Array

    def __repr__(self) -> str:
        return f"TrainState(step {shown.short(self.step)}, {shown.numbers(self.params)})"


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
"""``(state, batch, key) -> (state, metrics)``."""


def init_state(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, ema: float, memory: Mapping[str, Any] = {}
) -> TrainState:
    """The state before the first step.

    Raises:
      ValueError: an average (``ema``) of weights in half precision, in which it would not move.
    """
    params = variables["params"]
    if ema and (few := sorted({str(p.dtype) for p in jax.tree.leaves(params) if p.dtype.itemsize < 4})):
        raise ValueError(f"optimizer.ema={ema} needs weights in float32, not {few}: an average in those does not move.")
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": variables.get("batch_stats", {})} if ema else {},
        memory=dict(memory),
        best=jnp.float32(-1),
        failed_step=jnp.int32(-1),
        failed_term=jnp.int32(-1),
    )


def make_train_step(
    model: models.Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    augmentation: Mapping[str, Any],
    ema: float = 0.0,
    adversarial_weights: float = 0.0,
    accumulate: int = 1,
    steps_per_epoch: float = 1.0,
) -> Step:
    """One step ``(state, batch, key) -> (state, metrics)``, to be mapped by `parallel.loop` or `parallel.pmap`.

    Randomness is a function of (key, step, example id), except for dropout, which adds the device. Gradients and
    metrics are means over all devices. If the loss or its gradient is not finite, the update is skipped and the state
    records it.

    Args:
      model: see `robust_jax.models.trainable`.
      objective: what is minimised, see `robust_jax.objectives`.
      optimizer: optax's.
      augmentation: options of `robust_jax.data.augment.augment` and `robust_jax.data.augment.mix`.
      ema: decay of the average of weights and BatchNorm statistics; 0 for none.
      adversarial_weights: the gradient is taken after a step uphill of this fraction of each layer's norm (AWP); 0 for
        none.
      accumulate: the number of micro-batches in which a batch's points, losses and gradients are computed, one after
        another. The update is that of the whole batch, except that BatchNorm in train mode and dropout see each
        micro-batch on its own, as they do each device; running statistics are the mean over micro-batches.
      steps_per_epoch: for options that change over epochs; may be fractional.
    """
    mixing = {name: augmentation[name] for name in augment.MIXING if augmentation.get(name)}
    augmentation = {name: value for name, value in augmentation.items() if name not in augment.MIXING}

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_keys, point_keys, dropout_key = _keys_of(jax.random.fold_in(key, state.step), batch["id"])
        images = augment.augment(data.to_float(batch["image"]), augment_keys, **augmentation)
        labels, epoch = batch["label"], state.step / steps_per_epoch
        at = partial(_model_at, model, state.batch_stats, dropout_key)
        if mixing:
            classes = jax.eval_shape(at(state.params).eval, images).shape[-1]
            images, labels = _mixed(images, jax.nn.one_hot(labels, classes), augment_keys, mixing)
        find = partial(objective.find, memory=state.memory, steps_done=state.step, epoch=epoch)
        points = _points(find, objective, partial(at, state.params), (images, labels, point_keys), accumulate)
        memory = {name: points[name].memory for name in state.memory}
        points = {name: point._replace(memory=None) for name, point in points.items()}

        def loss(params: Any, i: Any, part: Any) -> tuple[jax.Array, Any]:
            found, true = part
            return objective.loss(at(params, i), found, true, epoch)

        def mean_of(function: Callable[..., Any], params: Any) -> Any:
            return accumulation.mean(partial(function, params), (points, labels), accumulate)

        params = state.params
        if adversarial_weights:
            params = _uphill(mean_of(jax.grad(loss, has_aux=True), params)[0], params, adversarial_weights)
        (total, outcome), gradient = mean_of(jax.value_and_grad(loss, has_aux=True), params)
        # One all-reduce for everything.
        total, gradient, terms, accuracy, batch_stats = parallel.mean(
            (total, gradient, outcome.terms, outcome.accuracy, outcome.state)
        )
        finite_terms = jnp.stack([jnp.isfinite(value) for value in terms.values()])
        finite = jnp.isfinite(optax.tree.norm(gradient)) & jnp.isfinite(total) & finite_terms.all()
        new = _updated(state, optimizer, gradient, batch_stats, ema)
        new = new.replace(memory=memory)
        metrics = {"loss": total, "accuracy": accuracy} | {f"terms/{name}": value for name, value in terms.items()}
        return _unless_failed(new, state, finite, finite_terms), metrics

    return step


def _points(
    find: Callable[..., dict[str, Point]], objective: Objective, model_at: Callable[..., Model], batch: Any, count: int
) -> dict[str, Point]:
    """The points of a batch, found in micro-batches.

    Points that remember take a step of the whole batch: they get all of it, and a model that computes it in parts.
    """
    if count == 1:
        return find(model_at(), *batch)
    free = [name for name in objective.used if name not in objective.remembering]
    found = accumulation.mapped(lambda i, part: find(model_at(i), *part, names=free), batch, count)
    if objective.remembering:
        model = accumulation.in_parts(model_at(), count)
        found |= find(model, *batch, names=objective.remembering)
    return found


def _mixed(images: jax.Array, labels: jax.Array, keys: jax.Array, options: Mapping[str, float]) -> Any:
    """Each image and its label mixed with those of the next example in the batch of all devices."""
    # The keys' first three are the draws of `augment`.
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 3)
    others, their_labels = parallel.following((images, labels))
    return augment.mix(images, labels, others, their_labels, keys, **options)


def _keys_of(key: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A step's keys: for the augmentation and for the points one per example, for dropout one per device."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    augment_keys, point_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    # 2^32 - 1 is no example's id.
    dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), jax.lax.axis_index(parallel.AXIS))
    return augment_keys, point_keys, dropout_key


def _model_at(model: models.Network, batch_stats: Any, dropout_key: Any, params: Any, i: Any = None) -> Model:
    """The model with these parameters, as objectives take it, for the micro-batch i if there are several."""
    dropout_key = dropout_key if i is None else jax.random.fold_in(dropout_key, i)
    return Model.of(model, {"params": params, "batch_stats": batch_stats}, dropout_key, parallel.mean)


def _uphill(gradient: Any, params: Any, size: float) -> Any:
    """The weights after a step along the gradient's mean over devices, of a fraction ``size`` of each layer's norm."""
    return optimizers.perturbed_weights(params, parallel.mean(gradient), size)


def _updated(
    state: TrainState, optimizer: optax.GradientTransformation, gradient: Any, batch_stats: Any, ema: float
) -> TrainState:
    """The state with new weights, optimiser state, BatchNorm statistics and averages."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average is shorter at first, so that it forgets the initial weights sooner.
    decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
    averaged = {"params": params, "batch_stats": batch_stats} if ema else {}
    return state.replace(
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=jax.tree.map(partial(_averaged, 1 - decay), averaged, state.ema),
    )


def _averaged(rate: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """``rate * new + (1 - rate) * old``; whole numbers, such as counts, are not averaged."""
    return optax.incremental_update(new, old, rate) if parallel.has_mean(new) else new


def _unless_failed(new: TrainState, old: TrainState, finite: jax.Array, finite_terms: jax.Array) -> TrainState:
    """The new state, or, after a failure, the old one with the failure recorded; one step further in both cases.

    Args:
      new: the state after the update.
      old: the state before it.
      finite: whether the loss, its terms and its gradient are.
      finite_terms: the same of each term.
    """
    # Finite gradients times a huge learning rate overflow too. A constant, such as a mask, may have been infinite.
    after, before = (jax.tree.leaves((state.params, state.batch_stats)) for state in (new, old))
    overflown = [(~jnp.isfinite(a) & jnp.isfinite(b)).any() for a, b in zip(after, before, strict=True)]
    finite &= ~jnp.stack(overflown).any()
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    first_failure = ~finite & (old.failed_step < 0)
    culprit = jnp.where(finite_terms.all(), len(finite_terms), jnp.argmin(finite_terms))
    return new.replace(
        step=old.step + 1,
        failed_step=jnp.where(first_failure, old.step, old.failed_step),
        failed_term=jnp.where(first_failure, culprit.astype(old.failed_term.dtype), old.failed_term),
    )
