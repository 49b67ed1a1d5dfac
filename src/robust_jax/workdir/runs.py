"""A run's folder: claimed for one config before training, and loaded after it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from robust_jax import data, files, parallel
from robust_jax.config.build import create_model, load_dataset, shapes_of_variables
from robust_jax.config.defaults import SPLITS
from robust_jax.config.objects import NONE, Objects
from robust_jax.extensions import choose, is_object
from robust_jax.models.bound import BoundModel, bind
from robust_jax.models.network import Network
from robust_jax.options.signatures import checks_arguments
from robust_jax.workdir import checkpoints, integrity, saved_config

_ANOTHER = (
    "to go on with that run repeat its command, with the same --config and overrides, and restore config.json if it "
    "was edited; for another run take another workdir"
)


class Trained(NamedTuple):
    """A trained run: its config, model, variables (averaged weights if the run has them), dataset, and their step.

    ``checkpoint`` is the kind of the one that was read: another than was asked for, if that is damaged.
    """

    config: ConfigDict
    model: Network
    variables: dict[str, Any]
    dataset: data.Dataset
    step: int
    checkpoint: str = ""

    @property
    def logits_fn(self) -> BoundModel:
        """The trained model as a function of images, for attacks and penalties."""
        return bind(self.model, self.variables)

    def examples(self, count: int, split: str = "test") -> tuple[Float[Array, "n h w c"], Int[Array, " n"]]:
        """The first images of a split as they are evaluated, resized if the config says so, and their labels.

        Args:
          count: how many.
          split: "train", "validation" or "test".

        Raises:
          ValueError: if there is no such split, or it has fewer images.
        """
        choose("split", split, SPLITS)
        if count > (there := len(getattr(self.dataset, split))):
            raise ValueError(f"{count} examples are asked for, but the {split} split has {there}.")
        return data.first_examples(getattr(self.dataset, split), count, self.config.data.eval_resize)

    def __repr__(self) -> str:
        return f"Trained({self.config.model.name} on {self.config.data.name}, step {self.step})"


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
    kept = saved_config.plain(config)
    if any((workdir / "checkpoints").glob("*/[0-9]*")) or _has_log(workdir):
        old = saved_config.completed(workdir)
        saved_config.check_same(path, old, kept, _ANOTHER)
        if (workdir / "checkpoints" / "latest" / str(last_step)).is_dir():
            _tell_what_differs(workdir, old, kept)
            if path.exists():
                return
            kept = old
    if parallel.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, (json.dumps(kept, indent=2) + "\n").encode())


def _has_log(workdir: Path) -> bool:
    """Whether there is a log and its config: what is left of a run whose checkpoints were removed."""
    log = workdir / "metrics.jsonl"
    return (workdir / "config.json").is_file() and log.is_file() and log.stat().st_size > 0


def _tell_what_differs(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Warns of what a command says otherwise than the config of a finished run."""
    if (differ := list(saved_config.differing(old, new))) and parallel.is_main():
        logging.warning(
            "%s is trained already: its config.json stays, which has other values of %s. To evaluate with them: "
            "robust-jax evaluate %s --config=...",
            workdir, ", ".join(differ[:5]) + ", ..." * (len(differ) > 5), workdir,
        )  # fmt: skip


def total_steps(config: ConfigDict, dataset: data.Dataset) -> int:
    """The number of steps of the whole run."""
    return max(round(config.epochs * len(dataset.train) / config.batch_size), 1)


def _last_steps(folder: Path) -> tuple[int | None, int | None]:
    """The last logged step of a run, and that of its last checkpoint."""
    logged = saved = None
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        logged = int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    with suppress(OSError, ValueError):
        steps = (path.name for path in (folder / "checkpoints" / "latest").iterdir() if path.name.isdigit())
        saved = max(map(int, steps))
    return logged, saved


def progress(workdir: str | Path) -> str:
    """How far a run is that may still be going on, in a sentence: its last logged step, and its last checkpoint."""
    logged, saved = ("none" if step is None else step for step in _last_steps(Path(workdir).expanduser()))
    return f"{workdir}: the last logged step is {logged}, the last checkpoint {saved}."


def unfinished(workdir: Path, trained: Trained) -> str:
    """What says that a run was not trained to its end; nothing if it was, or if its folder does not tell."""
    known = [step for step in _last_steps(workdir) if step is not None]
    last = total_steps(trained.config, trained.dataset)
    return f"it is not finished, step {max(known)} of {last}" if known and max(known) < last else ""


def _refuse_links(workdir: Path) -> None:
    """Raises ValueError for links in place of what a run writes again or removes, which would do it elsewhere."""
    for pattern in ("config.json", "metrics.jsonl", "checkpoints", "checkpoints/*", "checkpoints/*/*"):
        for path in workdir.glob(pattern):
            files.refuse_link(path)


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
      trust: the modules from which the config may name parts, see `robust_jax.workdir.saved_config.read_config`.
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
    config = saved_config.read_config(workdir, trust)
    objects.check(config, workdir)
    checkpoint = checkpoint or config.evaluation.checkpoint
    choose("checkpoint", checkpoint, checkpoints.KINDS)
    if data_dir is not None:
        config.data.data_dir = data_dir
    dataset = load_dataset(config, objects)
    model = create_model(config, dataset.num_classes, dataset.image_shape, objects)
    others = [kind for kind in checkpoints.KINDS if kind != checkpoint]
    check_checkpoint(workdir, checkpoint)
    with checkpoints.opened(workdir) as saved:
        found = saved.newest((checkpoint, *others))
    if found.notes and found.notes["config"]:
        way_out = f"{workdir / 'config.json'} or the checkpoints are not the run's own, put them back"
        saved_config.check_same(found.path, found.notes["config"], saved_config.plain(config), way_out)
    variables = evaluation_variables(found.state)
    _check_variables(found.path, variables, model, dataset.image_shape)
    return Trained(config, model, variables, dataset, found.step, found.kind)


def check_checkpoint(workdir: Path, kind: str) -> None:
    """Raises ValueError if a workdir holds no checkpoint of a kind."""
    with checkpoints.opened(workdir) as saved:
        there = [other for other in checkpoints.KINDS if saved.step(other) is not None]
    if kind not in there:
        instead = there and (
            f", or take the {there[0]} one: checkpoint={there[0]!r}, --checkpoint={there[0]} of robust-jax attack, "
            f"--config.evaluation.checkpoint={there[0]} of robust-jax evaluate"
        )
        raise ValueError(
            f"{workdir} holds no {kind} checkpoint: let robust-jax train reach a validation{instead or ''}."
        )


def check_objects_to_resume(workdir: Path, objects: Objects) -> None:
    """Raises ValueError if a run in the workdir was given objects that are missing now."""
    if (workdir / "config.json").exists():
        objects.check_none_missing(saved_config.completed(workdir), workdir)


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
        try:
            needed[workdir].check(config, workdir)
        except ValueError as error:
            if len(configs) == 1 or needed[workdir].missing(config):
                raise
            raise ValueError(
                f"{error} Runs with objects of their own are evaluated one at a time, and compared by rj.report."
            ) from error
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
