"""A run's folder: claimed for one config before training, read and restored after it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from robust_jax import data, files, parallel
from robust_jax.config.build import create_model, load_dataset
from robust_jax.config.defaults import base
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.workdir import checkpoints


class Restored(NamedTuple):
    """A trained run: its config, model, variables (averaged weights if the run has them), dataset, and their step."""

    config: ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    dataset: data.Dataset
    step: int


# Keys that may differ when a run is resumed: none of them changes the weights.
FREE = ("attacks", "evaluation", "log_every_steps", "checkpoint_every_steps", "data.data_dir")


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir and writes ``config.json`` in it; a perturbation of the user's own is written as its name.

    Raises:
      ValueError: if the workdir was trained with another config; names the keys that differ.
    """
    text = json.dumps(config.to_dict(), indent=2, default=_plain) + "\n"
    path = workdir / "config.json"
    if path.is_file() and any((workdir / "checkpoints").glob("*/[0-9]*")):
        old, new = _flat(_filled(json.loads(path.read_text()))), _flat(json.loads(text))
        fixed = [k for k in old.keys() | new.keys() if k.startswith(f"attacks.{config.select_by}.") or _is_fixed(k)]
        if changed := sorted(k for k in fixed if old.get(k) != new.get(k)):
            was = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in changed)
            raise ValueError(f"{workdir} was trained with another config ({was}): take another workdir.")
    if parallel.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, text.encode())


def _is_fixed(key: str) -> bool:
    return not key.startswith(FREE)


def _plain(value: Any) -> Any:
    """For json: a user's perturbation, or a number of NumPy or JAX."""
    return value.name if isinstance(value, Perturbation) else float(value)


def swept(configs: Sequence[ConfigDict]) -> tuple[str, list[Any]] | None:
    """The one key in which configs differ, with each one's value; None if it is not exactly one.

    Seeds and keys that change no weight (`FREE`) do not count.
    """
    flat = [{k: v for k, v in _flat(c.to_dict()).items() if _is_fixed(k) and not k.startswith("seed")} for c in configs]
    keys = [k for k in sorted({k for f in flat for k in f}) if any(f.get(k) != flat[0].get(k) for f in flat)]
    return (keys[0], [f.get(keys[0]) for f in flat]) if len(keys) == 1 else None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Values by their path, such as "optimizer.momentum"."""
    return flatten_dict(config, sep=".")


def read_config(workdir: str | Path) -> ConfigDict:
    """The config that a workdir was trained with.

    Raises:
      ValueError: if it holds none.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {workdir} is no workdir of train.py.")
    return ConfigDict(_tuples(_filled(json.loads(path.read_text()))), convert_dict=True)


def _filled(saved: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A saved config, completed by the defaults of keys that it lacks because it is older than they are."""
    filled = dict(base().to_dict() if defaults is None else defaults)
    for key, value in saved.items():
        nested = isinstance(value, dict) and isinstance(filled.get(key), dict)
        filled[key] = _filled(value, filled[key]) if nested else value
    return filled


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def restore(workdir: str | Path, checkpoint: str | None = None, data_dir: str | None = None) -> Restored:
    """Restores a trained run from its workdir.

    Args:
      workdir: a folder that `robust_jax.train` wrote.
      checkpoint: "best" on validation, or "latest"; by default the config's ``evaluation.checkpoint``.
      data_dir: where datasets are prepared, if it is not where the config says.

    Raises:
      ValueError: no such workdir or checkpoint.
    """
    config = read_config(workdir)
    checkpoint = checkpoint or config.evaluation.checkpoint
    if checkpoint not in checkpoints.KINDS:
        raise ValueError(f"checkpoint={checkpoint!r}: choose one of {list(checkpoints.KINDS)}.")
    if data_dir is not None:
        config.data.data_dir = data_dir
    dataset = load_dataset(config)
    model = create_model(config, dataset.num_classes)
    with checkpoints.opened(workdir) as saved:
        step = saved.step(checkpoint)
        if step is None:
            raise ValueError(f"{workdir} holds no {checkpoint} checkpoint: let train.py reach an evaluation.")
        state = saved.restore(checkpoint)
    return Restored(config, model, evaluation_variables(state), dataset, step)


def evaluation_variables(state: Mapping[str, Any]) -> dict[str, Any]:
    """The variables to evaluate, from the fields of a training state: averages if there are any."""
    source = state["ema"] or state
    return {name: source[name] for name in ("params", "batch_stats") if source[name]}
