"""``config.json`` of a workdir, or, if it is damaged, the copy in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import logging

from robust_jax import files
from robust_jax.workdir import checkpoints, integrity


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
            raise ValueError(f"{path} does not exist: {workdir} is no workdir of robust-jax train.")
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
