"""`train(config, workdir)`: what `robust-jax train` calls; it works in notebooks too.

The loop reads as phases: prepare, resume, then blocks of steps, and after some of them log, validate, save.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from robust_jax import data, models, parallel
from robust_jax.config.objects import Objects
from robust_jax.config.validation import complete
from robust_jax.evaluation import from_config
from robust_jax.evaluation.robustness import robustness
from robust_jax.files import folder_name
from robust_jax.training import stopping
from robust_jax.training.checks import check_hosts_agree, warn_of_newer_code
from robust_jax.training.log import TrainingLog, announce
from robust_jax.training.metrics import Metrics
from robust_jax.training.run import Run, prepare
from robust_jax.training.step import TrainState
from robust_jax.training.writers import Writer
from robust_jax.training.writers import find as find_writers
from robust_jax.workdir import checkpoints, folder, runs, saved_config

# Seconds of steps dispatched together: Ctrl-C and the progress bar wait for no more.
_TOGETHER = 0.1


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite; the message names the step and the term."""


def train(
    config: ConfigDict,
    workdir: str | Path,
    trust: Sequence[str] = (),
    *,
    dataset: Any = None,
    model: Any = None,
    writers: Sequence[Writer | str] = (),
) -> TrainState:
    """Trains as the config says, resuming from what the workdir holds.

    Leaves ``config.json``, ``metrics.jsonl`` (one line per log step), what ``config.writers`` write, such as
    TensorBoard's events, and ``checkpoints/`` (the latest ones and the best on validation) in the workdir. A run killed
    at any point and started again ends with the same bits as one that was not. SIGTERM, SIGHUP or an interrupt (Ctrl-C)
    lets it finish the steps under way and save.

    Args:
      config: see `robust_jax.config.base`.
      workdir: a folder, made if it does not exist; one that was trained with another config is refused.
      trust: the modules from which the workdirs of models that transfer attacks attack may name parts, see
        `robust_jax.workdir.saved_config.read_config`. The config itself may name any.
      dataset: images as an object, in place of ``data.name``: a `robust_jax.data.Dataset`; one split, a
        `robust_jax.data.Source` or a pair (images, labels); or (train, test) or (train, validation, test) of splits.
        What is missing is set aside as ``data.validation``, ``data.test`` and ``seed`` say.
      model: a network as an object, in place of ``model.name``: a Linen module, alone or as (module, variables); an NNX
        module, whose weights are where training starts; or a class or function that makes one of ``num_classes``, and
        for NNX ``rngs``. What ``model`` says in the config is only for networks that are made here.
      writers: further writers of metrics, functions or names, see `robust_jax.training.writers`.

    ``config.json`` records the name of an object and a fingerprint. The same object, with the same first weights if it
    holds any, is given again to resume, and to `robust_jax.load` and `robust_jax.evaluate`, which use no first weights.

    Returns:
      The last state, as NumPy arrays.

    Raises:
      ValueError: a mistake in the config, a workdir of another config or one that cannot be used, or a disk that fails.
      Stopped: a signal asked for it; a KeyboardInterrupt with an ``exit_code``.
      NonFiniteLossError: NaN or infinity in the loss or its gradient.

    Example::

        config = rj.config.base("own", "own")
        config.terms.ce = dict(kind="cross_entropy", at="clean")
        rj.train(config, "runs/own", dataset=((images, labels), (test_images, test_labels)), model=Net(nnx.Rngs(0)))
    """
    workdir = folder.named(folder_name("workdir", workdir))
    objects = Objects.of(dataset, model)
    runs.check_objects_to_resume(workdir, objects)
    config = complete(objects.named(config))
    tellers = list(dict.fromkeys([*find_writers(config.writers), *find_writers(writers)]))
    with jax.default_matmul_precision(config.precision):
        saved_config.plain(config)  # what no file can keep is told before any data is read
        run, state = prepare(config, trust, objects)
        config = run.config
        check_hosts_agree(config, run.dataset, state)
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
        with folder.claimed(workdir, size), folder.explained(workdir):
            runs.claim(config, workdir, run.total_steps)
            with checkpoints.opened(workdir, saved_config.plain(config), config.keep_checkpoints) as saved:
                state, notes = _resumed(state, saved, workdir, config)
                validated = notes.get("validated", True)
                announce(config, run.dataset, state, run.total_steps, workdir)
                with (
                    TrainingLog(
                        workdir, int(state.step), run.total_steps, run.steps_per_epoch, validated, tellers, config
                    ) as log,
                    stopping.listening() as requests,
                ):
                    if not validated:
                        state = _validated(run, state, saved, log, requests)
                    return _train_on(run, state, Metrics(notes["pending"]), saved, log, requests)


def _resumed(
    state: TrainState, saved: checkpoints.Checkpoints, workdir: Path, config: ConfigDict
) -> tuple[TrainState, Mapping[str, Any]]:
    """The state of the checkpoint to go on from, or the given one, and its notes."""
    found = saved.resume(state)
    if found is None:
        return state, {"pending": {}}
    logging.info("Resuming %s after step %d.", workdir, found.step)
    warn_of_newer_code(config, found.path)
    notes = found.notes or {"config": {}, "pending": {}}
    if notes["config"]:
        saved_config.check_same(found.path, notes["config"], saved_config.plain(config))
    return found.state, notes


def _train_on(
    run: Run,
    state: TrainState,
    metrics: Metrics,
    saved: checkpoints.Checkpoints,
    log: TrainingLog,
    requests: stopping.Requests,
) -> TrainState:
    """All remaining steps, and the logs, validations and checkpoints that fall between them."""
    config, step = run.config, int(state.step)
    key = jax.random.key(config.seed)  # an argument of the compiled loop, so that no seed recompiles it
    batches = _Batches(data.train_blocks(run.dataset.train, config.batch_size, config.seed, step, *parallel.host()))
    on_devices, most, clock = parallel.replicate(state), 1, _Clock(config.checkpoint_every_minutes)
    while step < run.total_steps:
        block, first, count = batches.take(min(most, run.until_due(step)))
        on_devices, new = run.steps(on_devices, block, key, first, count)
        metrics.add(new, slice(first, first + count))
        step += count
        log.tick(count)
        due, stop = run.due(step), requests.agreed() and step < run.total_steps
        save = due.save or stop or clock.is_due(at_log_step=due.log)
        if due.log or save:
            _stop_if_failed(on_devices, config)
        if due.log:
            log.write(step, metrics.average() | {"learning_rate": float(run.schedule(step - 1))})
            metrics, most = Metrics(), max(int(_TOGETHER * parallel.agreed(log.rate)), 1)
        if save:
            state = parallel.first(on_devices).replace(best=state.best)
        if due.validate:
            state = _validated(run, state, saved, log, requests)
        elif save:
            saved.save("latest", step, state, metrics.pending())
        if save:
            clock.restart()
        if stop:
            saved.wait("latest")
            raise requests.stopped(f"saved step {step} of {run.total_steps} in {log.workdir}")
    return state


class _Clock:
    """When the next checkpoint is due by the time that has passed."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes or float("inf")
        self.restart()

    def restart(self) -> None:
        """The interval begins again."""
        self._began = time.monotonic()

    def is_due(self, at_log_step: bool) -> bool:
        """Whether it has passed. A multi-host run asks at log steps alone, since all of its processes must agree."""
        if parallel.has_peers() and not at_log_step:
            return False
        return parallel.agreed(time.monotonic() - self._began) >= self._seconds


class _Batches:
    """Training batches on the devices: blocks of them are moved there at once, and taken some at a time."""

    def __init__(self, blocks: Iterator[data.Batch]):
        self._blocks = blocks
        self._on_devices: Any = None
        self._next = self._size = 0

    def take(self, most: int) -> tuple[Any, int, int]:
        """The block on the devices, the position of the next batch in it, and how many may be taken: at most `most`."""
        if self._next == self._size:
            block = next(self._blocks)
            self._on_devices, self._next, self._size = parallel.resident(block), 0, len(block["label"])
        first, count = self._next, min(most, self._size - self._next)
        self._next += count
        return self._on_devices, first, count


def _validated(
    run: Run, state: TrainState, saved: checkpoints.Checkpoints, log: TrainingLog, requests: stopping.Requests
) -> TrainState:
    """Validates, logs it, and saves the latest checkpoint, and the best if this is it; the state with the best so far.

    A signal ends it: what was trained is saved, and the validation comes first when the run goes on.
    """
    step = int(state.step)
    try:
        accuracies = _validate(run, state, requests)
    except stopping.Unfinished:
        saved.save("latest", step, state, validated=False)
        saved.wait("latest")
        raise requests.stopped(f"saved step {step} of {run.total_steps} in {log.workdir}") from None
    log.write(step, {f"validation/{k}": v for k, v in accuracies.items()}, epoch=step / run.steps_per_epoch)
    if accuracies[run.config.select_by] >= state.best:
        state = state.replace(best=np.float32(accuracies[run.config.select_by]))
        saved.save("best", step, state)
        saved.wait("best")  # it must be on disk before the latest checkpoint says that it is
    saved.save("latest", step, state)
    return state


def _validate(run: Run, state: TrainState, requests: stopping.Requests) -> dict[str, float]:
    """Accuracy on the validation split, clean and under the attack that selects."""
    config, split, name = run.config, run.dataset.validation, run.config.select_by
    chosen = {}
    if name != "clean":
        chosen[name] = from_config.attack_from(
            name, {**config.attacks[name], "curve": ()}, None, run.trust, run.objects
        )
    count = min(config.select_limit or len(split), len(split))
    batches = _Interruptible(
        data.Batches(split, count, config.evaluation.batch_size, config.data.eval_resize), requests
    )
    logits_fn = models.bind(run.model, parallel.everywhere(runs.evaluation_variables(vars(state))))
    measured = robustness(logits_fn, batches, chosen, key=jax.random.key(config.seed), place=parallel.spread,
                          precision=config.precision)  # fmt: skip
    broken = {n: float(1 - outcome.broken.mean()) for n, outcome in measured.attacks.items()}
    return parallel.agreed({"clean": float(measured.correct.mean())} | broken)


class _Interruptible:
    """Batches, as often as they are wanted, until a signal asks for an end."""

    def __init__(self, batches: data.Batches, requests: stopping.Requests):
        self._batches, self._requests = batches, requests

    def __iter__(self) -> Iterator[data.Batch]:
        return self._requests.between(self._batches)


def _stop_if_failed(on_devices: TrainState, config: ConfigDict) -> None:
    failed, term = parallel.first((on_devices.failed_step, on_devices.failed_term))
    if failed < 0:
        return
    # The terms are sorted by name: JAX sorts the keys of dicts.
    used = sorted(name for name, term in config.terms.items() if term.weight)
    names = [f"the term {name!r}" for name in used] + ["the gradient or the update"]
    raise NonFiniteLossError(
        f"at step {failed + 1} {names[term]} is NaN or infinite. That update was skipped and nothing saved since; "
        f"the checkpoints before it are intact. Train in another workdir with a lower schedule.learning_rate or "
        f"weight of the term, or with optimizer.clip_norm set."
    )
