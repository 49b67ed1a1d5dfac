"""Runs one table of results: trains what it needs, attacks it, and writes the numbers.

python benchmarks/reproduce.py TABLE [--size=short|full] [--rows=standard,fgr_300] [--fraction=0.01] [--data_dir=DIR]

Started again it resumes: neither what is trained nor what is measured is done again, unless its config has changed;
then the run of the old config has to be removed, or `--workdir` to be another. If only attacks are new or changed, and
the run is still there, these alone are measured. The file is enough to go on without the runs: neither a row that it
has is trained again nor a weight that was tried. A row that diverges is told and left out, a value that is tried and
diverges counts as an accuracy of 0. The numbers go to TABLE_SIZE.json in `--out`, each with its config, command, seed,
hardware, seconds, versions and revision, and the table is printed. `--fraction=0.01` tries everything at one percent of
its epochs and images, with the first seed alone; such a trial, and one with `--config.KEY=VALUE`, keeps its numbers in
the folder of its runs. What `--config` gives stands above everything that the table sets.
benchmarks/tables.py defines the tables, benchmarks/estimates.py says how long they take.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import table_files
from origin import keep, kept, packed, trace
from result_tables import RESULTS, rendered
from robust_jax import cli
from robust_jax.config.build import load_dataset
from robust_jax.config.command_line import overridden
from robust_jax.evaluation import evaluate, stored
from robust_jax.evaluation.identity import digest
from robust_jax.extensions import choose
from robust_jax.files import checksum
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.training import loop
from robust_jax.workdir import runs, saved_config
from runs import config_of
from table_types import Table
from tables import TABLES
from universal_rates import universal_rates

flags.DEFINE_enum("table", None, list(TABLES), "Its name; TABLE is short for --table=TABLE.")
flags.DEFINE_enum("size", "short", ["short", "full"], "short: two CPU cores; full: a GPU.")
flags.DEFINE_list("rows", None, "Some of the table's rows; all unless given.")
flags.DEFINE_string("workdir", "runs/reproduce", "Every run gets a folder in it.")
flags.DEFINE_string("data_dir", "", "The folder of the prepared data sets.")
flags.DEFINE_float("fraction", 1.0, "Of epochs and images, for a trial.", lower_bound=1e-4, upper_bound=1.0)
flags.DEFINE_string("out", str(RESULTS), "The folder of the numbers.")
flags.DEFINE_bool("train_only", False, "Train, and measure nothing.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Trains, measures, writes."""
    choose("table", options.table, TABLES)
    choose("size", options.size, TABLES[options.table])
    table, trial = TABLES[options.table][options.size], options.fraction < 1 or bool(overrides)
    for row in options.rows or ():
        choose("row", row, table.rows)
    keys = [override.partition("config.")[2] for override in overrides]
    for key in keys:
        if key.startswith(("attacks.", "seed=")):
            raise ValueError(f"--config.{key}: attacks and seeds are those of benchmarks/tables*.py; edit them there.")
    keys += [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    # On a GPU attacks stop early, and those images that are left have to fill it.
    keys += ["evaluation.batch_size=2000"] if options.size == "full" else []
    name = f"{options.table}_{options.size}"
    table = table._replace(seeds=table.seeds[:1]) if options.fraction < 1 else table
    other = f"_{digest({'keys': sorted(overrides)})}" if overrides else ""
    place = Path(options.workdir).expanduser() / (name + (f"_{options.fraction:g}{other}" if trial else ""))
    path = (place if trial else Path(options.out).expanduser()) / f"{name}.json"
    traced = trace()
    plan = Plan(table, place, keys, options.fraction, path, traced)
    rows = options.rows or list(table.rows)
    configs = [plan.config(row, seed) for row, seed in product(rows, table.seeds)]  # a mistake is told now
    for data in {str(config.data): config for config in configs}.values():
        load_dataset(data)  # and that it is not prepared
    if traced["revision"].endswith("+") and not trial:
        print(f"The code is not that of a commit ({traced['revision']}): nobody can make these numbers again.",
              file=sys.stderr, flush=True)  # fmt: skip
    failed = []
    for row in rows:
        jax.clear_caches()  # no other row uses its programs, and a process can map only a limited number
        for seed in table.seeds:
            if options.train_only or not plan.has(row, seed):
                try:
                    run(plan, row, seed, measured=not options.train_only)
                except (
                    ValueError,
                    OSError,
                    jax.errors.JaxRuntimeError,
                ) as error:  # of this run alone: the others go on
                    failed.append(f"{row}, seed {seed}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
    if kept(path, {}).get("rows"):
        table_files.refresh(path, table)
        print(rendered(path))
        if path.parent == RESULTS:
            print("\nbenchmarks/result_tables.py puts it on the pages that name it.", file=sys.stderr)
    if failed:
        raise ValueError("\n".join([f"{len(failed)} runs are missing:", *failed]))


def run(plan: Plan, row: str, seed: int, measured: bool) -> None:
    """Trains a row with a seed and measures it; that it diverged is written too."""
    config, chosen = plan.chosen(row, seed)
    try:
        workdir = plan.trained(row, config)
    except loop.NonFiniteLossError as error:
        print(f"{row}, seed {seed}, is left out: {error}", file=sys.stderr, flush=True)
        if measured:
            lost = plan.traced | {"error": str(error), "settings": settings(config)}
            table_files.add(plan.path, plan.table, row, seed, lost, part="diverged")
        return
    if measured:
        for numbers in plan.measured(row, config, workdir):
            table_files.add(plan.path, plan.table, row, seed, numbers | {"choice": chosen})


class Plan(NamedTuple):
    """A table, the folder of its runs, overrides of all rows, the fraction of epochs and images, and its file.

    ``traced`` is where its numbers come from, taken at the start: the code may change while it runs.
    """

    table: Table
    folder: Path
    keys: list[str]
    fraction: float
    path: Path
    traced: dict[str, Any] = {}

    def workdir(self, row: str, config: ConfigDict) -> Path:
        """The folder of a run: its name has the weight, if that is chosen, and the seed."""
        choice = self.table.rows[row].choice
        weight = f"_{reduce(getitem, choice.key.split('.'), config):g}" if choice else ""
        return self.folder / f"{row}{weight}_{config.seed}"

    def trained(self, row: str, config: ConfigDict) -> Path:
        """The workdir of a run, which is trained if it is not yet; beside it is written where its training began."""
        workdir = self.workdir(row, config)
        print(f"== {workdir}", flush=True)
        if not workdir.exists():
            keep(began(workdir), self.traced)
        loop.train(config, workdir)
        return workdir

    def measured(self, row: str, config: ConfigDict, workdir: Path) -> Iterator[dict[str, Any]]:
        """The numbers of a run: after its attacks, and with each δ for all images, of which a kill loses the last.

        What the file has of the very same weights is not measured again.
        """
        trained = runs.load(workdir, **place(config))
        today = {
            "settings": settings(config), "weights": checksum(trained.variables), "training": training(workdir),
            "began": kept(began(workdir), {}),
        }  # fmt: skip
        known = table_files.stored(self.path, row, config.seed)
        found = (table_files.unchanged(known, today, self.table) or self.traced) | today
        missing = {name: attack for name, attack in config.attacks.items() if name not in found.get("broken", {})}
        found = table_files.with_attacks(found, *attacked(config, workdir, missing), self.table, self.traced)
        yield found
        for name, ball in self.table.universal.items():
            if name not in found["universal"]:
                threat = ThreatModel(ball.perturbation, "linf", ball.radius)
                rates = universal_rates(trained, threat, ball.examples, ball.epochs)
                found = table_files.with_universal(found, name, rates, self.table, self.traced)
                yield found

    def chosen(self, row: str, seed: int) -> tuple[ConfigDict, dict[str, Any] | None]:
        """The config of a row, and how its weight was chosen; see `table_types.Choice`."""
        choice = self.table.rows[row].choice
        if not choice:
            return self.config(row, seed), None
        value, first = choice.values[0], self.table.seeds[0]
        like = self._validated(choice.like, self.config(choice.like, first))
        if not like:
            raise ValueError(f"its weight is chosen to be like {choice.like}, which diverged.")
        least = like - choice.within / 100
        tried: dict[str, float] = {}
        for value in choice.values:
            tried[f"{value:g}"] = self._validated(row, self.config(row, first, value))
            if tried[f"{value:g}"] >= least - 1e-9:
                break
        found = choice.rule() | {"tried": tried, "least": least, "chosen": value}
        return self.config(row, seed, value), found

    def _validated(self, row: str, config: ConfigDict) -> float:
        """The best validation accuracy of a run, 0 if it diverges; what the file knows of it is not trained again."""
        known, today = table_files.stored(self.path, row, config.seed), settings(config)
        if known and table_files.same_weights(known["settings"], today):
            return _best(known["training"])
        name = self.workdir(row, config).name
        if (accuracy := table_files.tried(self.path, name, today)) is None:
            try:
                accuracy = _best(training(self.trained(row, config)))
            except loop.NonFiniteLossError as error:
                print(f"{row}: {error}", file=sys.stderr, flush=True)
                accuracy = 0.0
            table_files.add_tried(self.path, self.table, name, accuracy, today)
        return accuracy

    def has(self, row: str, seed: int) -> bool:
        """Whether the file has the numbers of a row's config today, with all columns, or that it diverged."""
        if lost := table_files.stored(self.path, row, seed, "diverged"):
            choice = self.table.rows[row].choice
            configs = [self.config(row, seed, value) for value in (choice.values if choice else [None])]
            return any(table_files.same_weights(lost["settings"], settings(config)) for config in configs)
        stored = table_files.stored(self.path, row, seed)
        return stored is not None and self.is_todays(stored, row, seed)

    def is_todays(self, stored: Mapping[str, Any], row: str, seed: int) -> bool:
        """Whether stored numbers of a row are those of its config today, with all columns."""
        choice, chosen = self.table.rows[row].choice, stored["choice"]
        if (choice is None) != (chosen is None):
            return False
        if choice and list(chosen["tried"]) != [f"{value:g}" for value in choice.values][: len(chosen["tried"])]:
            return False
        if choice and choice.rule() != {key: chosen.get(key, given) for key, given in choice.rule().items()}:
            return False  # what older numbers lack of the rule has not changed since
        like = choice and table_files.stored(self.path, choice.like, self.table.seeds[0])
        if choice and like and abs(_best(like["training"]) - choice.within / 100 - chosen["least"]) > 1e-9:
            return False  # it was chosen to be like another run
        today = settings(self.config(row, seed, chosen and chosen["chosen"]))
        return table_files.same_numbers(stored, today, self.table)

    def config(self, row: str, seed: int, value: float | None = None) -> ConfigDict:
        """The config of a row with a value of what is chosen, by default the first that is tried."""
        choice = self.table.rows[row].choice
        weight = [f"{choice.key}={choice.values[0] if value is None else value}"] if choice else []
        return config_for(self.table, row, seed, [*weight, *self.keys], self.fraction)


def config_for(table: Table, row: str, seed: int, keys: list[str], fraction: float = 1.0) -> ConfigDict:
    """The config of a row in its table's size; training checks the table's attacks before it begins."""
    config = config_of(table.rows[row].config, [*table.common, f"seed={seed}"])
    config.attacks = ConfigDict(table.attacks)
    if ":select_by=" not in table.rows[row].config:
        config.select_by = table.select_by or config.select_by
    config.epochs *= fraction
    config.schedule.boundaries = tuple(fraction * epoch for epoch in config.schedule.boundaries)
    config.evaluation.update(split="test", limit=max(round(table.images * fraction), 10), pictures=0)
    return overridden(config, [f"--config.{key}" for key in keys])


def settings(config: ConfigDict) -> dict[str, Any]:
    """All that decides about a run's numbers."""
    kept = saved_config.plain(config)
    kept["data"].pop("data_dir")
    return kept


def place(config: ConfigDict) -> dict[str, Any]:
    """Where a run's data lie, and which modules may make parts of it."""
    return dict(data_dir=config.data.data_dir or None, trust=("tables",))


def attacked(config: ConfigDict, workdir: Path, attacks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The report of an evaluation, and which images each attack broke; empty without attacks."""
    if not attacks:
        return {"attacks": {}, "warnings": []}, {}
    report = evaluate(workdir, attacks, **config.evaluation.to_dict(), **place(config))[str(workdir)]
    per_example = np.load(stored.folder_of(workdir, report["name"]) / stored.EXAMPLES)
    return report, {name: packed(per_example[f"{name}/broken"]) for name in report["attacks"]}


def began(workdir: Path) -> Path:
    """The file beside a workdir that says where its training began, with which code."""
    return workdir.with_name(f"{workdir.name}.json")


def training(workdir: Path) -> dict[str, Any]:
    """Steps, the seconds that they took, and validation accuracies by epoch, from ``metrics.jsonl``.

    ``validation`` is clean, ``attacked`` that under the attack that chooses the checkpoint, if one does.
    """
    step, seconds, clean, attacked = 0, 0.0, [], []
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        if "steps_per_second" in line:
            seconds += (line["step"] - step) / line["steps_per_second"]
            step = line["step"]
        for key in (key for key in line if key.startswith("validation/")):
            curve = clean if key == "validation/clean" else attacked
            curve.append([round(line["epoch"], 3), line[key]])
    found = {"steps": step, "seconds": round(seconds), "validation": clean}
    return found | ({"attacked": attacked} if attacked else {})


def _best(trained: Mapping[str, Any]) -> float:
    """The best validation accuracy of what `training` gave."""
    return float(max(accuracy for _, accuracy in trained["validation"]))


if __name__ == "__main__":
    cli.run(main, positional=("table",))
