"""A run's folder: claimed for one config before training, read and restored after it."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from robust_jax import data, files, parallel
from robust_jax.config.build import create_model, load_dataset, shapes_of_variables
from robust_jax.config.defaults import CHOICES, RANGES, base
from robust_jax.config.objects import NONE, Objects
from robust_jax.extensions import check_name, check_trust, choose, is_object
from robust_jax.models.bound import BoundModel, bind
from robust_jax.models.network import Network
from robust_jax.objectives.terms import every_term
from robust_jax.options import options_of
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.workdir import checkpoints, integrity, saved_config


class Trained(NamedTuple):
    """A trained run: its config, model, variables (averaged weights if the run has them), dataset, and their step."""

    config: ConfigDict
    model: Network
    variables: dict[str, Any]
    dataset: data.Dataset
    step: int

    @property
    def logits_fn(self) -> BoundModel:
        """The trained model as a function of images, for attacks and penalties."""
        return bind(self.model, self.variables)

    def __repr__(self) -> str:
        return f"Trained({self.config.model.name} on {self.config.data.name}, step {self.step})"


# Keys that may differ when a run is resumed: none of them changes the weights.
FREE = (
    "attacks", "evaluation", "log_every_steps", "checkpoint_every_steps", "checkpoint_every_minutes",
    "keep_checkpoints", "data.data_dir", "writers",
)  # fmt: skip


def claim(config: ConfigDict, workdir: Path, last_step: int | None = None) -> None:
    """Makes the workdir and writes ``config.json`` in it; a perturbation of the user's own is written as its name.

    ``config.json`` of a run that goes on says what the newest command said: its attacks, its evaluation and how it logs
    may change on the way, and none of them changes the weights. That of a finished run stays, as its evaluations and
    names refer to it; a warning says what the command has otherwise.

    Args:
      config: of the run.
      workdir: its folder.
      last_step: of the run: there is a checkpoint of it if the run is finished.

    Raises:
      ValueError: if the workdir was trained with another config, naming the keys that differ; a ``config.json`` that
        cannot be read; a symbolic link where the run would write.
    """
    path = workdir / "config.json"
    _refuse_links(workdir)
    files.refuse_other(path)
    kept = plain(config)
    if any((workdir / "checkpoints").glob("*/[0-9]*")):
        old = _read(workdir)
        check_same(path, old, kept, "take another workdir, or put back the file if it was changed")
        if (workdir / "checkpoints" / "latest" / str(last_step)).is_dir():
            _tell_what_differs(workdir, old, kept)
            if path.exists():
                return
            kept = old
    if parallel.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, (json.dumps(kept, indent=2) + "\n").encode())


def _tell_what_differs(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Warns of what a command says otherwise than the config of a finished run."""
    flat_old, flat_new = (_flat(_tuples(_filled(dict(c), ""))) for c in (old, new))
    differ = sorted(k for k in flat_old.keys() | flat_new.keys() if flat_old.get(k) != flat_new.get(k))
    if differ and parallel.is_main():
        logging.warning(
            "%s is trained already: its config.json stays, which has other values of %s. To evaluate with them: "
            "robust-jax evaluate %s --config=...",
            workdir, ", ".join(differ[:5]) + ", ..." * (len(differ) > 5), workdir,
        )  # fmt: skip


def progress(workdir: str | Path) -> str:
    """How far a run is that may still be going on, in a sentence: its last logged step, and its last checkpoint."""
    folder = Path(workdir).expanduser()
    logged = saved = "none"
    with suppress(OSError, ValueError, KeyError, IndexError):
        logged = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    with suppress(OSError, ValueError):
        steps = (path.name for path in (folder / "checkpoints" / "latest").iterdir() if path.name.isdigit())
        saved = str(max(map(int, steps)))
    return f"{workdir}: the last logged step is {logged}, the last checkpoint {saved}."


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config in the form that JSON has for it; a perturbation of the user's own is its name."""
    result: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=_plain))
    return result


def check_same(
    there: Path, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str = "take another workdir"
) -> None:
    """Compares the config of ``there``, a run or a checkpoint, with another one, both as `plain` gives them.

    Raises:
      ValueError: names the keys that differ, of those that change weights.
    """
    flat_old, flat_new = (_flat(_tuples(_filled(dict(c), f"{there}: "))) for c in (old, new))
    keys, selecting = flat_old.keys() | flat_new.keys(), f"attacks.{new['select_by']}."
    fixed = [k for k in keys if k.startswith(selecting) or _is_fixed(k)]
    if changed := sorted(k for k in fixed if flat_old.get(k) != flat_new.get(k)):
        was = ", ".join(f"{k}: {flat_old.get(k)!r} there, {flat_new.get(k)!r} now" for k in changed)
        raise ValueError(f"{there} is of another config ({was}): {way_out}.")


def _refuse_links(workdir: Path) -> None:
    """Raises ValueError for links in place of what a run writes again or removes, which would do it elsewhere."""
    for pattern in ("config.json", "metrics.jsonl", "checkpoints", "checkpoints/*", "checkpoints/*/*"):
        for path in workdir.glob(pattern):
            files.refuse_link(path)


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


def read_config(workdir: str | Path, trust: Sequence[str] = ()) -> ConfigDict:
    """The config that a workdir was trained with.

    Nothing that the config names is imported here or, if it is not of a trusted module, later: a workdir may come from
    anyone.

    Args:
      workdir: a folder that `robust_jax.train` wrote.
      trust: the modules from which the config may name parts, ``"module:name"``.

    Raises:
      ValueError: if it holds none, or one that cannot be read; a part of a module that is not trusted.
    """
    config = _read(Path(workdir))
    check_trust(Path(workdir) / "config.json", config, trust)
    return ConfigDict(_tuples(config), convert_dict=True)


def _read(workdir: Path) -> dict[str, Any]:
    """The saved config of a workdir, completed by the defaults of keys that are newer than it."""
    path = workdir / "config.json"
    try:
        filled = _filled(saved_config.read(workdir), f"{path}: ")
        _check_values(filled, f"{path}: ")
    except ValueError as error:
        raise ValueError(
            f"{error} Restore it from a copy. In a workdir of your own robust-jax train writes it again if you remove "
            f"it and start with the same config."
        ) from error
    return filled


def _filled(saved: dict[str, Any], path: str, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A saved group of keys, completed by the defaults of those that it lacks."""
    whole = defaults is None
    filled = dict(base().to_dict() if whole else defaults or {})
    for key, value in saved.items():
        if isinstance(filled.get(key), dict):
            if not isinstance(value, dict):
                raise ValueError(f"{path}{key}={str(value)[:100]!r} must be a group of keys.")
            value = _filled(value, f"{path}{key}.", filled[key])
        filled[key] = value
    if whole:  # what every term has, whatever its kind
        own = {name: option.default for name, option in options_of(every_term).items()}
        filled["terms"] = {k: own | dict(v) if isinstance(v, dict) else v for k, v in filled["terms"].items()}
    return filled


def _check_values(config: dict[str, Any], path: str) -> None:
    """Raises ValueError for plain values of the wrong type, out of their range, or not among their choices."""
    flat = _flat(base().to_dict())
    given = {key: reduce(operator.getitem, key.split("."), config) for key in {*flat, *RANGES, *CHOICES}}
    for key, default in flat.items():
        if isinstance(default, str | bool) and type(given[key]) is not type(default):
            raise ValueError(f"{path}{key}={given[key]!r} must be a {type(default).__name__}.")
    for key, choices in CHOICES.items():
        choose(f"{path}{key}", given[key], choices)
    for key, bounds in RANGES.items():
        bounds.check(f"{path}{key}", given[key])
    for section in ("points", "terms", "attacks"):
        for name, entry in config[section].items():
            check_name(f"{path}{section}", name)
            if not isinstance(entry, dict):
                raise ValueError(f"{path}{section}.{name}={entry!r} must be a group of keys.")


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@checks_arguments
def load(
    workdir: str | os.PathLike[str],
    checkpoint: str | None = None,
    data_dir: str | None = None,
    trust: Sequence[str] = (),
    *,
    dataset: Any = None,
    model: Any = None,
) -> Trained:
    """Loads a trained run from its workdir.

    Args:
      workdir: a folder that `robust_jax.train` wrote.
      checkpoint: "best" on validation, or "latest"; by default the config's ``evaluation.checkpoint``.
      data_dir: where datasets are prepared, if it is not where the config says.
      trust: the modules from which the config may name parts, see `read_config`.
      dataset: the object that `robust_jax.train` was given, if it was.
      model: likewise; its weights, if it holds any, are not used.

    Returns:
      Its ``logits_fn``, ``config``, ``model``, ``variables``, ``dataset`` and ``step``.

    Raises:
      ValueError: no such workdir or checkpoint; a part of a module that is not trusted; an object that is missing, or
        another one.

    Example::

        run = rj.load("runs/digits_fgr")
        batch = run.dataset.test.take(np.arange(32))
        images, labels = rj.data.to_float(batch["image"]), batch["label"]
        result = rj.attacks.pgd(run.logits_fn, images, labels, threat, key=jax.random.key(0))
    """
    return restored(workdir, checkpoint, data_dir, trust, Objects.of(dataset, model))


def restored(
    workdir: str | os.PathLike[str],
    checkpoint: str | None,
    data_dir: str | None,
    trust: Sequence[str],
    objects: Objects = NONE,
) -> Trained:
    """`load` of a run and the objects that it was given."""
    workdir = Path(os.path.expanduser(workdir))
    config = read_config(workdir, trust)
    objects.check(config, workdir)
    checkpoint = checkpoint or config.evaluation.checkpoint
    if checkpoint not in checkpoints.KINDS:
        raise ValueError(f"checkpoint={checkpoint!r}: choose one of {list(checkpoints.KINDS)}.")
    if data_dir is not None:
        config.data.data_dir = data_dir
    dataset = load_dataset(config, objects)
    model = create_model(config, dataset.num_classes, dataset.image_shape, objects)
    others = [kind for kind in checkpoints.KINDS if kind != checkpoint]
    with checkpoints.opened(workdir) as saved:
        if saved.step(checkpoint) is None:
            there = [kind for kind in others if saved.step(kind) is not None]
            instead = f", or take the {there[0]} one, --config.evaluation.checkpoint={there[0]}" if there else ""
            raise ValueError(
                f"{workdir} holds no {checkpoint} checkpoint: let robust-jax train reach a validation{instead}."
            )
        found = saved.newest((checkpoint, *others))
    if found.notes and found.notes["config"]:
        way_out = f"{workdir / 'config.json'} or the checkpoints are not the run's own, put them back"
        check_same(found.path, found.notes["config"], plain(config), way_out)
    variables = evaluation_variables(found.state)
    _check_variables(found.path, variables, model, dataset.image_shape)
    return Trained(config, model, variables, dataset, found.step)


def check_objects_to_resume(workdir: Path, objects: Objects) -> None:
    """Raises ValueError if a run in the workdir was given objects that are missing now."""
    if (workdir / "config.json").exists():
        saved = _read(workdir)
        missing = {key: {"name": saved[key]["name"]} for key in ("data", "model")}
        given = {"data": objects.dataset, "model": objects.model}
        NONE.check({k: v if given[k] is None else {"name": ""} for k, v in missing.items()}, workdir)


def objects_for(config: ConfigDict, objects: Objects) -> Objects:
    """The objects that a run needs: those for the names in its config that records objects."""
    dataset, model = (is_object(config[key].name) for key in ("data", "model"))
    return Objects(objects.dataset if dataset else None, objects.model if model else None)


def objects_needed(configs: Mapping[Path, ConfigDict], objects: Objects) -> dict[Path, Objects]:
    """The objects that each of several runs needs.

    Raises:
      ValueError: one that is missing, or another one than that of training; one that no run needs.
    """
    needed = {workdir: objects_for(config, objects) for workdir, config in configs.items()}
    for workdir, config in configs.items():
        needed[workdir].check(config, workdir)
    for key in ("dataset", "model"):
        if getattr(objects, key) is not None and all(getattr(each, key) is None for each in needed.values()):
            objects.check(next(iter(configs.values())), next(iter(configs)))
    return needed


def _check_variables(path: Path, variables: Mapping[str, Any], model: Network, image_shape: tuple[int, ...]) -> None:
    """Raises ValueError if a checkpoint's variables are not those of the model: it was moved here, or planted."""
    expected = shapes_of_variables(model, image_shape)
    if why := integrity.other_shape(integrity.shapes_of(variables), integrity.shapes_of(expected)):
        raise ValueError(
            f"{path} is not of the model that config.json describes: {why}. Put back the run's own checkpoints or its "
            f"own config.json."
        )


def evaluation_variables(state: Mapping[str, Any]) -> dict[str, Any]:
    """The variables to evaluate, from the fields of a training state: averages if there are any."""
    source = state["ema"] or state
    return {name: source[name] for name in ("params", "batch_stats") if source[name]}
