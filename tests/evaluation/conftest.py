"""Trained workdirs without training: two linear classifiers of the digits."""

from __future__ import annotations

import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import data
from robust_jax.config import base
from robust_jax.workdir import runs


class Linear(nn.Module):
    """A linear classifier."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10)(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def trained():
    """Two linear classifiers of the digits: nearest class mean, and least squares, which is less robust."""
    dataset = data.load("digits")
    batch = dataset.train.take(np.arange(len(dataset.train)))
    images, targets = batch["image"].reshape(len(batch["image"]), -1) / 255, np.eye(10)[batch["label"]]
    means = targets.T @ images / targets.sum(0)[:, None]
    squares = np.linalg.lstsq(np.c_[images, np.ones(len(images))], targets, rcond=None)[0]
    classifiers = {"smooth": (means.T, -(means**2).sum(1) / 2), "steep": (squares[:-1], squares[-1])}
    return {
        name: ({"params": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}, dataset)
        for name, (kernel, bias) in classifiers.items()
    }


@pytest.fixture
def workdirs(trained, tmp_path, monkeypatch):
    config = base()
    config.evaluation.limit = 200
    config.evaluation.checks = 0
    config.attacks.shift = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.05, curve=(0, 1, 2), steps=5)
    config.attacks.warp = dict(kind="pgd", perturbation="flow", norm="linf", radius=0.155, steps=5, restarts=2)

    def restored(workdir, checkpoint, *_):
        variables, dataset = trained[Path(workdir).name]
        own = config.copy_and_resolve_references()
        own.optimizer.weight_decay = float(Path(workdir).name == "smooth")
        return runs.Trained(own, Linear(), variables, dataset, 9 if checkpoint == "latest" else 7)

    monkeypatch.setattr(runs, "restored", restored)
    folders = [tmp_path / name for name in trained]
    for folder in folders:
        for checkpoint in ("best/7", "latest/1000"):  # of more steps than the run has: it is finished
            (folder / "checkpoints" / checkpoint).mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    return folders


@pytest.fixture
def ran(monkeypatch):
    """The names of the attacks that run; those after the third are interrupted."""
    module = sys.modules["robust_jax.evaluation.robustness"]  # the package has the function under that name
    names, original = [], module.outcome_of

    def counted(trial, *given):
        if len(names) == 3:
            raise KeyboardInterrupt
        names.append(trial.attack.all_settings()["steps"])
        return original(trial, *given)

    monkeypatch.setattr(module, "outcome_of", counted)
    return names
