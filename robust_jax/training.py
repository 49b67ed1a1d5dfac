"""Training: the state, one step, the loop. `train(config, workdir)` is what train.py calls; it works in Colab too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from robust_jax import augment, checkpoints, data, evaluation, experiment, models, optimizers, parallel, threat_models
from robust_jax.config import check_attack, complete
from robust_jax.objectives import Objective, make_objective
from robust_jax.points import Model
from robust_jax.robustness import robustness
from robust_jax.training_log import TrainingLog

Batch = Mapping[str, Any]


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite; the message names the step and the term."""


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step.

    Attributes:
      step: steps done.
      params: the weights, float32.
      batch_stats: running statistics of BatchNorm, averaged over devices; {} without.
      opt_state: optax's.
      ema: averages of params and batch_stats, in a dict of these two; {} without.
      memory: what points remember from step to step; {} without.
      best: the best validation accuracy so far, -1 before the first.
      failed_step: the first step whose loss or gradient was not finite, -1 for none; its update was skipped.
      failed_term: the index of the first term that was not finite there, or the number of terms for the gradient.
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


def init_state(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, ema: float, memory: Mapping[str, Any] = {}
) -> TrainState:
    """The state before the first step."""
    params = variables["params"]
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
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    augmentation: Mapping[str, Any],
    ema: float = 0.0,
    adversarial_weights: float = 0.0,
    steps_per_epoch: float = 1.0,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """One step ``(state, batch, key) -> (state, metrics)``, to be mapped by `parallel.loop` or `parallel.pmap`.

    Randomness is a function of (key, step, example id), but for dropout, which adds the device. Gradients and metrics
    are means over all devices. Where the loss or gradient is not finite the update is skipped and the state says so.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
        augment_keys, point_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        dropout = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), jax.lax.axis_index(parallel.AXIS))
        images = augment.augment(data.to_float(batch["image"]), augment_keys, **augmentation)

        def seen(params: Any) -> Model:
            variables = {"params": params, "batch_stats": state.batch_stats}

            def run(x: jax.Array) -> tuple[jax.Array, Any]:
                logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": dropout})
                return logits, new.get("batch_stats", {})

            return Model(run, models.bind(model, variables), parallel.mean)

        epoch = state.step / steps_per_epoch
        found = objective.find(seen(state.params), images, batch["label"], point_keys, state.memory, state.step, epoch)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            return objective.loss(seen(params), found, batch["label"], epoch)

        params = state.params
        if adversarial_weights:
            uphill = parallel.mean(jax.grad(loss, has_aux=True)(params)[0])
            params = optimizers.perturbed_weights(params, uphill, adversarial_weights)
        (total, outcome), grads = jax.value_and_grad(loss, has_aux=True)(params)
        total, grads, terms, accuracy, batch_stats = parallel.mean(
            (total, grads, outcome.terms, outcome.accuracy, outcome.state)
        )
        finite_terms = jnp.stack([jnp.isfinite(value) for value in terms.values()])
        finite = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(total) & finite_terms.all()
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Finite gradients times a huge learning rate overflow too.
        finite &= jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((params, batch_stats))]).all()
        # At first a shorter average, which forgets the initial weights sooner.
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        averaged = {"params": params, "batch_stats": batch_stats} if ema else {}
        new = state.replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=optax.incremental_update(averaged, state.ema, 1 - decay),
            memory={name: found[name].memory for name in state.memory},
        )
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        first_failure = ~finite & (state.failed_step < 0)
        culprit = jnp.where(finite_terms.all(), len(terms), jnp.argmin(finite_terms))
        new = new.replace(
            step=state.step + 1,
            failed_step=jnp.where(first_failure, state.step, state.failed_step),
            failed_term=jnp.where(first_failure, culprit, state.failed_term),
        )
        return new, {"loss": total, "accuracy": accuracy} | {f"terms/{name}": v for name, v in terms.items()}

    return step


def train(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Trains as the config says, resuming from what the workdir holds.

    Leaves ``config.json``, ``metrics.jsonl`` (a line a log step), TensorBoard events, and ``checkpoints/`` (the latest
    and the best on validation) in the workdir. A run killed at any point and started again ends with the same bits
    as one that was not.

    Args:
      config: see `robust_jax.config.base`.
      workdir: a folder, made where missing; one that was trained with another config is refused.

    Returns:
      The last state, as NumPy arrays.

    Raises:
      ValueError: a mistake in the config, or a workdir of another one.
      NonFiniteLossError: NaN or infinity in the loss or its gradient.
    """
    config = complete(config)
    if not str(workdir) or Path(workdir).is_file():
        raise ValueError(f"workdir={str(workdir)!r} must be a folder, or the name of one to make.")
    workdir = Path(workdir)
    with jax.default_matmul_precision(config.precision):
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: Path) -> TrainState:
    parallel.check_batch_size(config.batch_size)
    dataset = experiment.load_dataset(config)
    if config.batch_size > len(dataset.train):
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {len(dataset.train)} training images (data.limit and "
            f"data.validation leave no more): lower it."
        )
    shape = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
    for name, spec in config.attacks.items():  # now, not after training
        threat = check_attack(f"attacks.{name}", spec)
        jax.eval_shape(lambda threat=threat: threat_models.size(threat, threat.perturbation.zeros(shape)))
    model = experiment.create_model(config, dataset.num_classes)
    steps_per_epoch = len(dataset.train) / config.batch_size
    total_steps = max(round(config.epochs * steps_per_epoch), 1)
    schedule = optimizers.make_schedule(**config.schedule, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
    of_step = {name: config.optimizer[name] for name in optimizers.OF_STEP}
    settings = {k: v for k, v in config.optimizer.items() if k not in of_step}
    optimizer = optimizers.make_optimizer(schedule, **settings)
    objective = make_objective(config.points.to_dict(), config.terms.to_dict())
    run = parallel.loop(
        make_train_step(
            model, objective, optimizer, augmentation=dict(config.data.augment), steps_per_epoch=steps_per_epoch,
            **of_step,
        )
    )  # fmt: skip
    names = {value for term in config.terms.values() for value in term.values() if isinstance(value, str)}
    if unseen := sorted({*config.points} - names):
        logging.warning("No term looks at the points %s: name one in a term's `at` if it should.", unseen)
    variables = experiment.init_variables(model, dataset.image_shape, config.seed)
    key = jax.random.key(config.seed)  # an argument of the step: no seed compiles anew
    memory = objective.remember(partial(data.first_examples, dataset.train), dataset.num_classes)
    state = jax.device_get(init_state(variables, optimizer, config.optimizer.ema, memory))
    experiment.claim(config, workdir)

    every = max(round(config.eval_every_epochs * steps_per_epoch), 1)
    stops = [n for n in (every, config.log_every_steps, config.checkpoint_every_steps) if n]
    with checkpoints.opened(workdir) as saved:
        if saved.step("latest") is not None:
            state = saved.restore("latest", state)
            logging.info("Resuming %s after step %d.", workdir, state.step)
        step = int(state.step)
        blocks = data.train_blocks(dataset.train, config.batch_size, config.seed, step, *parallel.host())
        with TrainingLog(workdir, step, total_steps, steps_per_epoch) as log:
            replicated, waiting, at, stacked, most = parallel.replicate(state), [], 0, 0, 1
            while step < total_steps:
                if at == stacked:
                    block = next(blocks)
                    batches, at, stacked = parallel.resident(block), 0, len(block["label"])
                count = min(most, stacked - at, total_steps - step, *(n - step % n for n in stops))
                replicated, metrics = run(replicated, batches, key, at, count)
                waiting.append((metrics, slice(at, at + count)))
                at, step = at + count, step + count
                log.tick(count)
                last = step == total_steps
                evaluating = last or step % every == 0
                saving = config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
                if evaluating or saving or step % config.log_every_steps == 0:
                    _stop_if_failed(replicated, config)
                    log.write(step, _average(waiting) | {"learning_rate": float(schedule(step - 1))})
                    waiting = []
                    # As many as take a tenth of a second: Ctrl-C and the progress bar wait for no more.
                    most = max(int(0.1 * parallel.agreed(log.rate)), 1)
                if evaluating or saving:
                    state = parallel.first(replicated).replace(best=state.best)
                if evaluating:
                    accuracies = _validate(config, model, state, dataset)
                    log.write(step, {f"validation/{k}": v for k, v in accuracies.items()}, epoch=step / steps_per_epoch)
                    if accuracies[config.select_by] >= state.best:
                        state = state.replace(best=np.float32(accuracies[config.select_by]))
                        saved.save("best", step, state)
                        saved.wait("best")  # before the latest checkpoint says that it is there
                if evaluating or saving:
                    saved.save("latest", step, state)
        return state


def _validate(config: ConfigDict, model: nn.Module, state: TrainState, dataset: data.Dataset) -> dict[str, float]:
    """Accuracy on the validation split, clean and under the attack that selects."""
    name = config.select_by
    chosen = {} if name == "clean" else {name: evaluation.attack_from(name, {**config.attacks[name], "curve": ()})}
    count = min(config.select_limit or len(dataset.validation), len(dataset.validation))
    batches = evaluation.Batches(dataset.validation, count, config.evaluation.batch_size, config.data.eval_resize)
    logits_fn = models.bind(model, parallel.everywhere(experiment.evaluation_variables(vars(state))))
    measured = robustness(logits_fn, batches, chosen, key=jax.random.key(config.seed), place=parallel.spread)
    broken = {n: float(1 - outcome.broken.mean()) for n, outcome in measured.attacks.items()}
    return parallel.agreed({"clean": float(measured.correct.mean())} | broken)


def _average(waiting: list[tuple[dict[str, jax.Array], slice]]) -> dict[str, float]:
    """Means over the steps since the last log step; each was a mean over devices already."""
    fetched = [{k: np.asarray(v.addressable_shards[0].data)[0][at] for k, v in m.items()} for m, at in waiting]
    return {k: float(np.mean(np.concatenate([m[k] for m in fetched]))) for k in fetched[0]}


def _stop_if_failed(replicated: TrainState, config: ConfigDict) -> None:
    failed, term = parallel.first((replicated.failed_step, replicated.failed_term))
    if failed >= 0:
        # JAX sorts the keys of dicts.
        used = sorted(name for name, term in config.terms.items() if term.weight)
        names = [f"the term {name!r}" for name in used] + ["the gradient or the update"]
        raise NonFiniteLossError(
            f"at step {failed + 1} {names[term]} is NaN or infinite. That update was skipped and nothing saved since; "
            f"the checkpoints before it are intact. Train in another workdir with a lower schedule.learning_rate or "
            f"weight of the term, or with optimizer.clip_norm set."
        )
