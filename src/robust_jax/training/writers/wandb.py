"""A run of Weights & Biases."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_jax import files
from robust_jax.workdir import saved_config


class wandb:
    """A run of Weights & Biases, named as the workdir, in the project that WANDB_PROJECT names, else ``robust_jax``.

    Its id is kept in ``wandb_id.txt``: training that goes on goes on in the same run. The x-axis is the metric
    ``step``, not wandb's own counter, which never goes back: steps that are run again after a kill are drawn again.
    wandb's own environment variables hold, such as WANDB_MODE=offline.

    Args:
      workdir: the run's.
      config: its config.
    """

    packages = ("wandb",)

    def __init__(self, workdir: Path, config: Any):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "robust_jax"), name=workdir.name, id=_id(workdir), resume="allow",
            dir=str(workdir), config=saved_config.plain(config),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Finishes the run, which uploads what is left."""
        self._run.finish()


def _id(workdir: Path) -> str:
    """The run's id: the workdir's name and eight random digits, drawn once and kept in the workdir."""
    path = workdir / "wandb_id.txt"
    files.refuse_other(path)
    if path.exists():
        return path.read_text().strip()
    name = re.sub(r"[^\w-]", "_", workdir.name)[:50]
    made = f"{name}-{uuid.uuid4().hex[:8]}"
    files.write_atomically(path, f"{made}\n".encode())
    return made
