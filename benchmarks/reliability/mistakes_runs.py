"""Mistakes in calls of `train` and `evaluate`: keys of a config, workdirs, and the arguments of an evaluation.

Neither trains nor measures: where the work would begin, `Accepted` is raised instead.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

import robust_jax as rj
from benchmarks.reliability.mistakes import BALL, Accepted, Case
from robust_jax import attacks
from robust_jax.config import base, complete
from robust_jax.evaluation import Attack, measure
from robust_jax.training import loop
from robust_jax.training.run import prepare
from robust_jax.workdir import checkpoints, runs, saved_config

HUGE = 10**400
NUMBER = [None, "x", np.nan, np.inf, -1.0, HUGE, (1, 2), {}]
WHOLE = [*NUMBER, 1.5]
CHOICE = [None, 3, "nonsense", "", ["test"], {}]
FLAG = [None, "yes", 2, np.nan, [True]]
PAIR = [None, "x", 3, (np.nan,), ("x",), (-1,), (HUGE,)]
KEYS: dict[str, list[Any]] = {
    "seed": [*WHOLE, 2**32, -1], "epochs": [*NUMBER, 0, 1e300], "batch_size": [*WHOLE, 0, 10**6, 2**70],
    "precision": CHOICE, "data.name": [*CHOICE, "../digits", "no_such:part"], "data.data_dir": [3, ["x"]],
    "data.validation": [*NUMBER, 0.0, 1.0, 1e-9], "data.limit": [*WHOLE, 10**9], "data.augment.resize": [*WHOLE, 3],
    "data.augment.padding": WHOLE, "data.augment.flip": FLAG, "data.eval_resize": [*WHOLE, 3],
    "model.name": [*CHOICE, "no_such:part"], "model.mean": [None, "x", (np.nan,), ("x",), (HUGE,), (0.1, 0.2)],
    "model.std": [None, "x", (np.nan,), ("x",), (-1,), (HUGE,), 0.0, (0.0,), (0.1, 0.2)],
    "model.dtype": [*CHOICE, "float64", "int32"],
    "model.options": [None, 3, "x", {"layers": 3}, {"dtype": "x"}, {3: 4}, {"num_classes": 3}],
    "sync_batch_norm": [*FLAG, True], "optimizer.name": CHOICE, "optimizer.momentum": [*NUMBER, 1.0, 2.0],
    "optimizer.nesterov": FLAG, "optimizer.weight_decay": NUMBER, "optimizer.decay_batch_norm": FLAG,
    "optimizer.clip_norm": NUMBER, "optimizer.max_norm": NUMBER, "optimizer.adversarial_weights": NUMBER,
    "optimizer.ema": [*NUMBER, 1.0], "schedule.name": CHOICE, "schedule.learning_rate": NUMBER,
    "schedule.boundaries": PAIR, "schedule.factor": NUMBER, "schedule.warmup_epochs": NUMBER,
    "select_by": [*CHOICE, "warp"], "select_limit": WHOLE, "eval_every_epochs": [*NUMBER, 0],
    "checkpoint_every_steps": WHOLE, "checkpoint_every_minutes": NUMBER, "keep_checkpoints": [*WHOLE, 0],
    "log_every_steps": [*WHOLE, 0], "evaluation.split": CHOICE, "evaluation.limit": WHOLE,
    "evaluation.batch_size": [*WHOLE, 0], "evaluation.checkpoint": CHOICE, "evaluation.worst_case_only": FLAG,
    "evaluation.checks": WHOLE, "evaluation.signs": [None, "x", 3, ("x",), (3,), ("no_such:part",)],
    "evaluation.pictures": WHOLE, "terms": [None, 3, {}, {"ce": None}, {"ce": {"kind": "x"}}],
    "points": [None, 3, {"p": None}, {"p": {"kind": "x"}}, {"a/b": {"kind": "clean"}}],
    "attacks": [None, 3, {"a": None}, {"a": {"kind": "x"}}, {"clean": {"kind": "pgd"}}],
    "terms.ce.weight": [*NUMBER[:4], HUGE, dict(start=0)], "terms.ce.at": CHOICE, "terms.ce.kind": CHOICE,
    "attacks.shift.radius": NUMBER,
    "attacks.shift.norm": [None, "nonsense", "", ["test"], {}, 0.5, np.nan], "attacks.shift.steps": [*WHOLE, 0],
    "attacks.shift.curve": [None, "x", 3, (-1, 1), (np.nan,), tuple(range(200_000))],
    "attacks.shift.source": [None, 3], "attacks.shift.perturbation": CHOICE,
    "attacks.shift.targeted": [*FLAG, True], "unknown": [3], "data.unknown": [3], "optimizer.unknown": [3],
}  # fmt: skip
# What a workdir may be beside a text: none of these.
WORKDIRS = [None, 3, 2.5, b"runs", ["runs/a"], {}, "", "\0", "runs/a,b", "x" * 5000]
ARGUMENTS: dict[str, list[Any]] = {
    "split": [3, "nonsense", "", ["test"]], "limit": ["x", -1, 1.5, np.nan, True],
    "batch_size": ["x", 0, -1, 1.5, np.nan, True], "checkpoint": [3, "nonsense", "", ["best"]],
    "seed": ["x", -1, 1.5, 2**32, np.nan, True, HUGE], "data_dir": [3, ["x"], 2.5],
    "worst_case_only": ["yes", 2, np.nan], "checks": ["x", -1, 1.5, True], "pictures": ["x", -1, 1.5, True],
    "signs": ["x", 3, ("x",), (3,), ("no_such:part",)], "out": [3, "", "a/b", "..", ["x"], "x" * 300],
    "progress": ["yes", 2, None], "trust": ["my_parts", 3, (3,)],
    "attacks": [3, "pgd", [BALL], {"a": 3}, {"a": attacks.pgd}, {"a": None}, {"a/b": Attack(attacks.fgsm, BALL)},
                {"clean": Attack(attacks.fgsm, BALL)}, {3: Attack(attacks.fgsm, BALL)}, {"a": {}}, {"a": {"kind": "x"}},
                {"a": dict(kind="pgd", perturbation="flow")},
                {"a": dict(kind="pgd", perturbation="flow", radius=0.1, source=3)},
                {"a": dict(kind="pgd", perturbation="flow", radius=0.1, curve=(-1,))},
                {"a:b": Attack(attacks.fgsm, BALL), "a_b": Attack(attacks.fgsm, BALL)}],
}  # fmt: skip


@functools.cache
def config() -> ConfigDict:
    """A small config without mistakes."""
    c = base("digits", "mlp")
    c.model.options = {"hidden": (8,)}
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.shift = dict(kind="pgd", perturbation="additive", radius=0.1, steps=2)
    return complete(c)


def changed(path: str, value: Any) -> ConfigDict:
    """The config with one key of another value, whatever its type."""
    found = config().to_dict()
    *groups, name = path.split(".")
    group = found
    for step in groups:
        group = group[step]
    group[name] = value
    return ConfigDict(found)


def _refuse(*_: Any, **__: Any) -> Any:
    raise Accepted


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    """In it `train` stops where its first step would begin, and `evaluate` where it would measure a workdir."""
    with (
        mock.patch.object(loop, "_train_on", _refuse),
        mock.patch.object(measure, "measure", _refuse),
    ):
        yield


def _make_trained(workdir: Path) -> Path:
    """A workdir with the checkpoints of a model before its first step."""
    workdir.mkdir(parents=True)
    run, state = prepare(config())
    runs.claim(run.config, workdir)
    with checkpoints.opened(workdir, saved_config.plain(run.config)) as saved:
        for kind in checkpoints.KINDS:
            saved.save(kind, 0, state)
    return workdir


def of_runs(folder: Path) -> Iterator[Case]:
    """Every key of a config, workdirs of every kind, and every argument of `evaluate`; files go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("x")
    (folder / "empty").mkdir(exist_ok=True)
    trained = _make_trained(folder / "trained")
    for path, values in KEYS.items():
        for number, value in enumerate(values):
            target = folder / f"{path}_{number}"
            names = "|".join([*path.split("."), "batch_norm_axis", "term"])
            yield Case("runs", "train", _shown(path, value), names, partial(_train, path, value, target))
    for value in [None, 3, "config.py", {}, {"seed": 1}, ConfigDict({}), base().to_dict()]:
        run = partial(rj.train, value, folder / "x")
        yield Case("runs", "train", _shown("config", value), "config|missing|term", _stopped(run))
    for value in [*WORKDIRS[:6], *WORKDIRS[7:8], WORKDIRS[9], folder / "file", folder / "file" / "x"]:
        run = partial(rj.train, config(), value)
        yield Case("runs", "train", _shown("workdir", value), "workdir|file|name", _stopped(run))
    workdirs = [*WORKDIRS, [], [""], [None], [3], folder / "file", folder / "empty", folder / "none", [trained, 3],
                [trained, folder / "none"], (trained, folder / "empty")]  # fmt: skip
    for value in workdirs:
        yield Case("runs", "evaluate", _shown("workdirs", value), "workdir|file", _stopped(partial(rj.evaluate, value)))
    for argument, values in ARGUMENTS.items():
        for value in values:
            run = partial(rj.evaluate, trained, **{argument: value})
            yield Case("runs", "evaluate", _shown(argument, value), argument, _stopped(run))


def _train(path: str, value: Any, target: Path) -> Any:
    with nothing_runs():
        return rj.train(changed(path, value), target)


def _stopped(run: Callable[[], Any]) -> Callable[[], Any]:
    def stopped() -> Any:
        with nothing_runs():
            return run()

    return stopped


def _shown(name: str, value: Any) -> str:
    try:
        return f"{name}={' '.join(repr(value).split())}"[:100]
    except ValueError:  # an int of too many digits
        return f"{name}={value:.1e}" if isinstance(value, float) else f"{name}=a huge number"
