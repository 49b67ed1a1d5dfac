"""What a config describes, built: the dataset, the model, and a trained run restored from its workdir."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from robust_jax import checkpoints, data, models, parallel
from robust_jax.config import base
from robust_jax.perturbations import Perturbation


class Restored(NamedTuple):
    """A trained run: its config, model, variables (the averaged weights where there are such), and their step."""

    config: ConfigDict
    model: nn.Module
    variables: dict[str, Any]
    dataset: data.Dataset
    step: int


def load_dataset(config: Mapping[str, Any]) -> data.Dataset:
    """The dataset of a config, its training split cut to ``data.limit``."""
    c = config["data"]
    dataset = data.load(c["name"], c["data_dir"] or None, c["validation"], config["seed"])
    if not c["limit"]:
        return dataset
    if not 0 < c["limit"] <= len(dataset.train):
        raise ValueError(f"data.limit={c['limit']}: give 1 to {len(dataset.train)} training images, or 0 for all.")
    few = np.random.RandomState(config["seed"]).permutation(len(dataset.train))[: c["limit"]]
    return data.Dataset(**{**vars(dataset), "train": dataset.train.subset(np.sort(few))})


def create_model(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The model of a config; with ``sync_batch_norm`` its batch statistics are of all devices."""
    c = config["model"]
    options = dict(c["options"])
    if config["sync_batch_norm"]:
        options["batch_norm_axis"] = parallel.AXIS
    return models.create(
        c["name"], num_classes=num_classes, mean=c["mean"], std=c["std"], dtype=jnp.dtype(c["dtype"]), **options
    )


def init_variables(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Fresh parameters and statistics, drawn from the seed."""
    # It runs once, and XLA's CPU backend takes ten seconds and more to optimise what draws random kernels.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    init = jax.jit(model.init, compiler_options=options)
    variables: dict[str, Any] = init(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    return variables


# What may differ when a run is resumed: nothing of it changes the weights.
FREE = ("attacks", "evaluation", "log_every_steps", "checkpoint_every_steps", "data.data_dir")


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir and leaves ``config.json`` in it; a perturbation of the user's own is written by its name.

    Raises:
      ValueError: the workdir was trained with another config.
    """

    def plain(value: Any) -> Any:
        return value.name if isinstance(value, Perturbation) else float(value)

    text = json.dumps(config.to_dict(), indent=2, default=plain) + "\n"
    path = workdir / "config.json"
    if path.is_file() and any((workdir / "checkpoints").glob("*/[0-9]*")):
        old, new = _flat(_filled(json.loads(path.read_text()))), _flat(json.loads(text))
        changed = sorted(
            k
            for k in old.keys() | new.keys()
            if old.get(k) != new.get(k) and (k.startswith(f"attacks.{config.select_by}.") or not k.startswith(FREE))
        )
        if changed:
            was = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in changed)
            raise ValueError(f"{workdir} was trained with another config ({was}): take another workdir.")
    if parallel.host()[0] != 0:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def swept(configs: Sequence[ConfigDict]) -> tuple[str, list[Any]] | None:
    """The one key in which some configs differ, with each one's value; None unless one. Seeds and FREE do not count."""
    flat = [{k: v for k, v in _flat(c.to_dict()).items() if not k.startswith(("seed", *FREE))} for c in configs]
    keys = [k for k in sorted({k for f in flat for k in f}) if any(f.get(k) != flat[0].get(k) for f in flat)]
    return (keys[0], [f.get(keys[0]) for f in flat]) if len(keys) == 1 else None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for k, v in config.items():
        flat |= _flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {prefix + k: v}
    return flat


def read_config(workdir: str | Path) -> ConfigDict:
    """The config that a workdir was trained with.

    Raises:
      ValueError: there is none.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {workdir} is no workdir of train.py.")
    return ConfigDict(_tuples(_filled(json.loads(path.read_text()))), convert_dict=True)


def _filled(saved: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A saved config with the defaults of keys that are newer than it."""
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
    """A trained run from its workdir.

    Args:
      workdir: what `robust_jax.train` wrote.
      checkpoint: "best" on validation, or "latest"; by default the config's ``evaluation.checkpoint``.
      data_dir: where datasets are prepared here, if not where the config says.

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
    """The variables to evaluate of a training state's fields: averaged weights where there are such."""
    source = state["ema"] or state
    return {name: source[name] for name in ("params", "batch_stats") if source[name]}
