"""Evaluates trained work directories: what `robust-jax evaluate` runs.

`evaluate(["/tmp/standard", "/tmp/fgr"])` restores each model, attacks it, prints one table, and
leaves

    DIR/evaluations/NAME/evaluation.json         every number with its interval, settings, versions and warnings
    DIR/evaluations/NAME/per_example.npz         what each attack did to each example
    DIR/evaluations/NAME/examples.npz            images and flows of the examples that are drawn, and of the worst
    DIR/evaluations/NAME/adversarial_ATTACK.png  examples of each attack
    DIR/evaluations/NAME/loss_surface_ATTACK.png the loss around them, if `surfaces` asks for it; and gradients.png
    DIR/evaluations/NAME/robustness_ATTACK.png   robust accuracy against the radius

and, of several workdirs, in a folder of their own beside them, ``comparisons/NAME/``

    robustness_ATTACK.png   robust accuracy against the radius, all workdirs in one chart
    trade_off.png           robust against clean accuracy, if the configs differ in one key
    comparison.json         the table, and which evaluations it is of

Evaluations that differ in their attacks, examples, seed or checkpoint lie side by side: none replaces another. NAME
says what is not as the workdir's config says, "test-first_100-seed_3"; it is "test" if everything is.

An interrupted evaluation continues after the last attack that finished, if nothing that its numbers depend on has
changed. `robust_jax.evaluation.measure` measures one workdir; `robust_jax.robustness` does the measuring itself and
needs no workdir.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_jax.extensions import choose, is_object
from robust_jax.files import folder_name, printable
from robust_jax.options.signatures import checks_arguments

if TYPE_CHECKING:
    from robust_jax.config.objects import Objects
    from robust_jax.evaluation.attack import Attack
    from robust_jax.evaluation.settings import Settings
    from robust_jax.evaluation.stored import Place
    from robust_jax.workdir.runs import Trained


@checks_arguments
def evaluate(
    workdirs: str | os.PathLike[str] | Sequence[Any],
    attacks: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    checkpoint: str | None = None,
    seed: int | None = None,
    data_dir: str | None = None,
    worst_case_only: bool | None = None,
    checks: int | None = None,
    pictures: int | None = None,
    surfaces: int | None = None,
    signs: Sequence[str] | None = None,
    out: str | None = None,
    save_adversarial: bool = False,
    progress: bool = True,
    trust: Sequence[str] = (),
    dataset: Any = None,
    model: Any = None,
) -> dict[str, dict[str, Any]]:
    """Clean and attacked accuracy of trained work directories, on screen and in their folders.

    Everything but ``data_dir``, ``progress`` and ``trust`` is by default as each workdir's own config says: its
    ``attacks``, ``seed`` and ``evaluation``.

    Args:
      workdirs: one, or several to compare.
      attacks: NAME -> `Attack`, or its entry in a config: `dict(kind="pgd", perturbation="flow",
        norm="linf", radius=0.155, curve=(0, 0.5, 1, 2), steps=20, ...)`, see
        `robust_jax.evaluation.from_config.attack_from`.
      split: "test", "validation" or "train".
      limit: the number of examples, the first ones of the split; 0: all.
      batch_size: examples at a time, over all local devices, fewer if memory runs out. The numbers do not depend on
        it.
      checkpoint: "best" (on validation) or "latest".
      seed: of the attacks.
      data_dir: of the prepared datasets; default: the config's.
      worst_case_only: whether each attack sees only the examples that those before it have not broken, and no curves
        are measured. An attack's accuracy is then that under all attacks so far; ``seen`` and ``after`` say so.
      checks: the number of images on which further signs of masked gradients are looked for, see
        `robust_jax.evaluation.masking.probe`; 0: none.
      pictures: the number of examples of each attack that are drawn, at most 10; 0: none.
      surfaces: the number of examples of each attack, at most 10, around which the loss is drawn, in the direction of
        the attack and a random one, and whose gradients are drawn; 0: none. Costs 625 forward passes per example.
      signs: your own signs of masked gradients, by their names ``"module:name"``, see
        `robust_jax.evaluation.signs.define`.
      out: of one workdir the name of the evaluation, a folder in ``WORKDIR/evaluations``; by default it is made from
        what is evaluated. Of several workdirs the folder of the comparison. What is measured again replaces its own
        files, and nothing else.
      save_adversarial: whether ``adversarial.npz`` keeps the adversarial images and δ of every attack, see
        `robust_jax.evaluation.adversarial_set`; all attacks run then, also those that finished before an interruption.
      progress: whether to show a progress bar, on a terminal or in a notebook.
      trust: modules whose parts the workdirs may name, such as ``("my_parts",)`` for ``kind="my_parts:entropy"``:
        importing a module runs its code, and a workdir may come from anyone. It also holds for the workdirs of the
        models that transfer attacks attack. Parts that this call names need no trust.
      dataset: the object that `robust_jax.train` was given, if it was; for those of the workdirs that need it.
      model: likewise.

    Returns:
      Workdir -> the content of its `evaluation.json`, whose ``name`` is the evaluation's, and whose ``identity`` is
      what distinguishes it from others.

    Raises:
      ValueError: no workdir, one without config or checkpoint, or whose config names a part of a module that is not
        trusted; an unknown split, attack or sign; an ``out`` that is no name, or that of another evaluation.
    """
    # Loads drawing, data and checkpoints, which `import robust_jax.evaluation` should not.
    from robust_jax import parallel
    from robust_jax.config import objects as config_objects
    from robust_jax.evaluation import outcome_cache, stored
    from robust_jax.evaluation.measure import chosen_attacks, measure
    from robust_jax.evaluation.settings import Settings
    from robust_jax.evaluation.stored import runs_among
    from robust_jax.workdir import runs, saved_config
    from robust_jax.workdir.checkpoints import KINDS
    from robust_jax.workdir.folder import explained

    several = [workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs
    folders = runs_among(Path(folder_name("workdir", workdir)) for workdir in several)
    if checkpoint is not None:
        choose("checkpoint", checkpoint, KINDS)
    if not folders:
        raise ValueError("evaluate got no workdir: give at least one folder that robust-jax train wrote")
    given: dict[str, Any] = {
        "split": split, "limit": limit, "batch_size": batch_size, "seed": seed, "worst_case_only": worst_case_only,
        "checks": checks, "pictures": pictures, "surfaces": surfaces, "signs": signs, "checkpoint": checkpoint,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    Settings(**given)  # what the call says is checked before anything is loaded
    if out is not None and len(folders) > 1:
        stored.refuse_foreign(Path(folder_name("out", out)), stored.COMPARISON, "give another folder, out=")
    elif out is not None:
        stored.check_name(out)
    objects = config_objects.Objects.of(dataset, model)
    needed = _looked_at(folders, checkpoint, trust, objects)
    reports: dict[str, dict[str, Any]] = {}
    configs, prints = [], []
    for folder in folders:
        restored = runs.restored(folder, checkpoint, data_dir, trust, needed[folder])
        settings = Settings.of(restored.config, given)
        chosen = chosen_attacks(restored.config.attacks if attacks is None else attacks, data_dir, trust, objects)
        name = None if len(folders) > 1 else out
        place = _place(folder, restored, chosen, settings, name, attacks is None)
        with (
            explained(folder, "Attacks that finished are kept in evaluation_unfinished if that could be written"),
            _waiting(place, save_adversarial and parallel.is_main()) as waiting,
        ):
            measured = measure(folder, place, restored, chosen, settings, progress, waiting)
        reports[str(folder)] = measured.report
        configs.append(restored.config)
        prints.append(measured.prints)
    if parallel.is_main():
        for folder, kept in zip(folders, prints, strict=True):
            outcome_cache.clear(folder, kept)
        _tell(reports, saved_config.swept(configs), out)
    return reports


def _looked_at(
    folders: Sequence[Path], checkpoint: str | None, trust: Sequence[str], objects: Objects
) -> dict[Path, Objects]:
    """The objects that each workdir needs; a mistake in the last of several workdirs is not found after hours."""
    from robust_jax.workdir import runs, saved_config

    configs = {folder: saved_config.read_config(folder, trust) for folder in folders}
    needed = runs.objects_needed(configs, objects)
    for folder, config in configs.items() if len(folders) > 1 else ():
        runs.check_checkpoint(folder, checkpoint or config.evaluation.checkpoint)
    return needed


def _tell(reports: dict[str, dict[str, Any]], sweep: tuple[str, Sequence[Any]] | None, out: str | None) -> None:
    """Prints the table, compares several workdirs, and says which other evaluations the workdirs hold."""
    from robust_jax.evaluation import comparison, stored, table
    from robust_jax.evaluation.page.tables import OTHERS
    from robust_jax.workdir.folder import explained

    table.show(reports, [stored.folder_of(folder, report["name"]) for folder, report in reports.items()])
    if len(reports) > 1:
        if len({report["identity"]["examples"] for report in reports.values()}) > 1:
            print(OTHERS)
        with explained(Path(next(iter(reports))).parent, "The evaluations themselves are written"):
            folder = os.path.relpath(path := comparison.keep(reports, sweep, out))
            print(printable(f"Compared in {path if folder.startswith('..') else folder}"))
    held = {folder: stored.evaluations(folder) for folder in reports}
    others = {f: {n: r for n, r in found.items() if n != reports[f]["name"]} for f, found in held.items()}
    table.show_stored(others, besides=True)


@contextmanager
def _waiting(place: Place, wanted: bool) -> Iterator[Path | None]:
    """Where adversarial images wait beside the evaluations until theirs is finished; None if they are not wanted."""
    if not wanted:
        yield None
        return
    from robust_jax.evaluation.adversarial_set import FILE
    from robust_jax.evaluation.stored import WAITING

    place.name()  # nothing is in the way
    place.root.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.root, prefix=".", suffix=WAITING) as folder:
        yield Path(folder) / FILE


def _place(
    workdir: Path,
    restored: Trained,
    attacks: Mapping[str, Attack],
    settings: Settings,
    name: str | None,
    own_attacks: bool,
) -> Place:
    """Where an evaluation goes."""
    from robust_jax.data import first_examples
    from robust_jax.data.datasets import is_own
    from robust_jax.evaluation import naming
    from robust_jax.evaluation.measure import examples
    from robust_jax.evaluation.stored import FOLDER, Place

    source, n = examples(restored, settings)
    first: dict[str, Any] = dict(source.take(np.arange(min(n, 64))))
    if resize := restored.config.data.eval_resize:
        first["image"], _ = first_examples(source, min(n, 64), resize)
    data_name = restored.config.data.name
    if source.labels is not None and (is_own(data_name) or is_object(data_name)):
        first["labels"] = source.labels[:n]
    identity = naming.identity_of(settings, attacks, first, n, restored.variables, restored.step)
    if name is not None:
        return Place(workdir / FOLDER, identity, (name,), is_given=True)
    names = naming.names_of(identity, settings, restored.config, len(source), own_attacks)
    return Place(workdir / FOLDER, identity, names)
