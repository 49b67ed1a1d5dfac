"""A run: all that its config describes, made and checked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from robust_jax import data, models, parallel
from robust_jax.config import build, optimizers
from robust_jax.config.objects import NONE, Objects
from robust_jax.data.datasets import is_own
from robust_jax.evaluation import masking
from robust_jax.files import checksum
from robust_jax.objectives.objective import Objective, make_objective
from robust_jax.training import checks
from robust_jax.training.step import TrainState, init_state, make_train_step
from robust_jax.workdir import runs, saved_config


class Due(NamedTuple):
    """What follows a step."""

    log: bool
    validate: bool
    save: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change while a run trains.

    Attributes:
      config: the whole config.
      dataset: its dataset.
      model: its model.
      schedule: step -> learning rate.
      steps: the compiled loop of steps, made by `parallel.loop`.
      steps_per_epoch: may be fractional.
      total_steps: of the whole run.
      trust: see `train`.
      objects: the dataset and the model that were given as objects.
    """

    config: ConfigDict
    dataset: data.Dataset
    model: models.Network
    schedule: optax.Schedule
    steps: Callable[..., tuple[Any, Any]]
    steps_per_epoch: float
    total_steps: int
    trust: tuple[str, ...] = ()
    objects: Objects = NONE

    @property
    def validate_every(self) -> int:
        """Steps from one validation to the next."""
        return max(round(self.config.eval_every_epochs * self.steps_per_epoch), 1)

    def due(self, step: int) -> Due:
        """What follows after that many steps."""
        c = self.config
        validate = step == self.total_steps or step % self.validate_every == 0
        save = validate or bool(c.checkpoint_every_steps) and step % c.checkpoint_every_steps == 0
        return Due(save or step % c.log_every_steps == 0, validate, save)

    def until_due(self, step: int) -> int:
        """The number of steps until something is due."""
        every = (self.validate_every, self.config.log_every_steps, self.config.checkpoint_every_steps)
        return min(self.total_steps - step, *(n - step % n for n in every if n))


def prepare(config: ConfigDict, trust: Sequence[str] = (), objects: Objects = NONE) -> tuple[Run, TrainState]:
    """Builds everything that a config describes and checks it against the data; nothing is written.

    Args:
      config: a whole config.
      trust: see `train`.
      objects: the dataset and the model that are given in place of those that the config names.

    Returns:
      What stays the same during the run, its config with the fingerprint of images of the user's own, and the state
      before the first step.

    Raises:
      ValueError: a mistake in the config.
    """
    parallel.check_batch_size(config.batch_size, parts=config.accumulate)
    masking.find(config.evaluation.signs)
    if source := config.attacks.get(config.select_by, {}).get("source"):
        saved_config.read_config(source, trust)  # restored at every validation
    dataset = build.load_dataset(config, objects)
    config = _recorded(config, dataset, objects)
    checks.check_against(config, dataset)
    model = build.create_model(config, dataset.num_classes, dataset.image_shape, objects)
    steps_per_epoch = len(dataset.train) / config.batch_size
    schedule = optimizers.make_schedule(**config.schedule, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
    of_step = {name: config.optimizer[name] for name in optimizers.OF_STEP}
    settings = {k: v for k, v in config.optimizer.items() if k not in of_step}
    optimizer = optimizers.make_optimizer(schedule, **settings)
    objective = make_objective(config.points.to_dict(), config.terms.to_dict())
    checks.warn(config, objects)
    step = make_train_step(
        model, objective, optimizer, augmentation=dict(config.data.augment), accumulate=config.accumulate,
        steps_per_epoch=steps_per_epoch, **of_step,
    )  # fmt: skip
    run = Run(
        config=config,
        dataset=dataset,
        model=model,
        schedule=schedule,
        steps=parallel.loop(step),
        steps_per_epoch=steps_per_epoch,
        total_steps=runs.total_steps(config, dataset),
        trust=tuple(trust),
        objects=objects,
    )
    return run, _first_state(run, optimizer, objective)


def _recorded(config: ConfigDict, dataset: data.Dataset, objects: Objects) -> ConfigDict:
    """The config with what tells images of the user's own, and the weights that a model object brings, from others."""
    config = config.copy_and_resolve_references()
    if is_own(config.data.name):
        config.data.fingerprint = data.fingerprint(dataset)
    held, given = objects.model_variables, config.model.first_weights
    config.model.first_weights = now = "" if held is None else checksum(held)
    if given not in ("", now):
        start = f"weights of {now!r}" if now else "random ones"
        raise ValueError(
            f"model.first_weights={given!r}: training would start from {start}. "
            f"Give a model= that holds those weights, or train another run with model.first_weights=''."
        )
    return config


def _first_state(run: Run, optimizer: optax.GradientTransformation, objective: Objective) -> TrainState:
    """The state before the first step, on the host."""
    variables = build.init_variables(run.model, run.dataset.image_shape, run.config.seed)
    checks.check_logits(run.config.model.name, run.model, variables, run.dataset)
    examples = partial(data.first_examples, run.dataset.train, resize=run.config.data.eval_resize)
    memory = objective.remember(examples, run.dataset.num_classes)
    return jax.device_get(init_state(variables, optimizer, run.config.optimizer.ema, memory))
