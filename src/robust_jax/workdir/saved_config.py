"""The config of a run: ``config.json`` of its workdir or, if that is damaged, the copy in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from robust_jax import files
from robust_jax.config.defaults import base
from robust_jax.config.validation import KINDS, check_plain, with_defaults
from robust_jax.extensions import check_name, check_trust
from robust_jax.options import REQUIRED
from robust_jax.options.hints import described
from robust_jax.spaces import registry
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.workdir import checkpoints, integrity

# Keys that may differ when a run is resumed: none of them changes the weights.
FREE = (
    "attacks", "evaluation", "log_every_steps", "checkpoint_every_steps", "checkpoint_every_minutes",
    "keep_checkpoints", "data.data_dir", "writers",
)  # fmt: skip


class MissingError(ValueError):
    """There is no config: the folder is no workdir."""


def read(workdir: Path) -> dict[str, Any]:
    """What ``config.json`` holds.

    Raises:
      ValueError: it is damaged or missing, and no checkpoint holds a copy.
    """
    path = workdir / "config.json"
    try:
        content = files.read_json(path)
        if isinstance(content, dict):
            return content
        why = f"it holds a {type(content).__name__}, not an object"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError as error:
        why = "it " + str(error).removeprefix(f"{path} ").rstrip(".")
    if (copy := _copy(workdir)) is None:
        if not path.exists():
            there = "" if path.parent.is_dir() else f"there is no folder {workdir}; "
            raise MissingError(f"{path} does not exist: {there}a workdir is a folder that robust-jax train wrote.")
        raise ValueError(
            f"{path} is damaged ({why}), and no checkpoint holds a copy: put back what robust-jax train wrote."
        )
    source, config = copy
    logging.warning("%s is damaged (%s): using the copy in %s.", path, why, source)
    return config


def _copy(workdir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The config in the newest checkpoint that has one, and that checkpoint's folder."""
    with checkpoints.opened(workdir) as saved:
        folders = [workdir / "checkpoints" / kind / str(s) for kind in checkpoints.KINDS for s in saved.steps(kind)]
    for folder in folders:
        try:
            notes = integrity.read(folder)
        except integrity.DamagedError:
            continue
        if notes and notes["config"]:
            return folder, notes["config"]
    return None


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config in the form that JSON has for it; a perturbation of the user's own is its name.

    Raises:
      ValueError: a value that a file cannot keep, or a perturbation of one's own under the name of a built-in one.
    """
    result: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=_plain))
    return result


def decisive(config: ConfigDict) -> dict[str, Any]:
    """What of a config changes weights, by its path."""
    return {key: value for key, value in _flat(plain(config)).items() if _is_fixed(key)}


def differing(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys in which two saved configs differ, with both values; what one lacks has its default.

    Args:
      old, new: as `plain` gives them.
      path: that messages begin with.
    """
    was, now = (_flat(_tuples(_filled(dict(c), path))) for c in (old, new))
    return {k: (was.get(k), now.get(k)) for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k)}


def changed(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """What of `differing` changes weights, or the checkpoint that is chosen as the best."""
    selecting = f"attacks.{new['select_by']}."
    return {k: v for k, v in differing(old, new, path).items() if k.startswith(selecting) or _is_fixed(k)}


def check_same(
    there: Path, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str = "take another workdir"
) -> None:
    """Compares the config of ``there``, a run or a checkpoint, with another one, both as `plain` gives them.

    Raises:
      ValueError: names the keys that differ, of those that change weights.
    """
    if different := changed(old, new, f"{there}: "):
        was = ", ".join(f"{k}: {was!r} there, {now!r} now" for k, (was, now) in different.items())
        raise ValueError(f"{there} is of another config ({was}): {way_out}.")


def _is_fixed(key: str) -> bool:
    return not key.startswith(FREE)


def _plain(value: Any) -> Any:
    """For json: a user's perturbation, or a number or an array of NumPy or JAX."""
    if isinstance(value, Perturbation):
        return _names(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise ValueError(
        f"a config cannot keep {described(value)}, since it is written to a file: name what is your own as "
        f"'module:name'."
    )


def _names(space: Perturbation) -> Any:
    """What a perturbation is found by later: its name, or those of its parts."""
    if space.parts:
        return [_names(part) for part in space.parts]
    if registry.built_in().get(space.name, space) is not space:
        raise ValueError(
            f"perturbation={space.name!r} is the name of a built-in perturbation, which an evaluation would take for "
            f"yours: give yours another name."
        )
    return space.name


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
    folder = Path(workdir).expanduser()
    config = completed(folder)
    check_trust(folder / "config.json", config, trust)
    return ConfigDict(_tuples(config), convert_dict=True)


def completed(workdir: Path) -> dict[str, Any]:
    """The saved config of a workdir, completed by the defaults of keys that are newer than it."""
    path = workdir / "config.json"
    try:
        filled = _filled(read(workdir), f"{path}: ")
        _check_values(filled, f"{path}: ")
    except MissingError:
        raise
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
    if whole:
        for section in KINDS:
            filled[section] = {name: _with_defaults(section, name, entry) for name, entry in filled[section].items()}
    return filled


def _with_defaults(section: str, name: str, entry: Any) -> Any:
    """A saved point, term or attack with the options that are newer than it; nothing is imported for it."""
    if not isinstance(entry, dict):
        return entry
    known, own = KINDS[section]
    if isinstance(entry.get("kind"), str) and entry["kind"] in known:
        return with_defaults(section, name, entry)
    return {option: o.default for option, o in own.items() if o.default is not REQUIRED} | entry


def _check_values(config: dict[str, Any], path: str) -> None:
    """Raises ValueError for plain values that cannot be right, and for entries that are no groups."""
    check_plain(config, path)
    for section in ("points", "terms", "attacks"):
        for name, entry in config[section].items():
            check_name(f"{path}{section}", name)
            if not isinstance(entry, dict):
                raise ValueError(f"{path}{section}.{name}={entry!r} must be a group of keys.")


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
