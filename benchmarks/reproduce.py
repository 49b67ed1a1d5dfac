"""Runs one table of results: trains what it needs, attacks it, and writes the numbers.

python benchmarks/reproduce.py TABLE [--size=short|full] [--rows=standard,...] [--fraction=0.01] [--data_dir=DIR]

Started again it resumes: runs that are trained are not trained again, attacks that are finished are not repeated. The
numbers go to docs/results/TABLE_SIZE.json, each with its command, seeds, images, hardware, seconds, versions and
revision, and the table is printed. `--fraction=0.01` tries everything at one percent of its epochs and images and keeps
its numbers in the folder of its runs. `--estimate` prints the minutes that each row takes at most at `--gflops`
sustained GFLOP/s, from the FLOPs of its training step and its attacks as traced, and runs nothing.
benchmarks/tables.py defines the tables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from results import RESULTS, rendered
from robust_jax import cli, models, parallel
from robust_jax.attacks.define import Problem, cost_of
from robust_jax.evaluation import evaluate
from robust_jax.evaluation.from_config import attack_from
from robust_jax.extensions import choose
from robust_jax.files import file_name, write_atomically
from robust_jax.training import loop
from runs import config_of
from tables import TABLES, Table
from timing import traced_flops

flags.DEFINE_enum("table", None, list(TABLES), "Its name; TABLE is short for --table=TABLE.", required=True)
flags.DEFINE_enum("size", "short", ["short", "full"], "short: two CPU cores; full: a GPU.")
flags.DEFINE_list("rows", None, "Some of the table's rows, by their names or numbers from 0; all unless given.")
flags.DEFINE_string("workdir", "runs/reproduce", "Every run gets a folder in it.")
flags.DEFINE_string("data_dir", "", "Of the prepared data sets.")
flags.DEFINE_float("fraction", 1.0, "Of the epochs and images: a trial.", lower_bound=1e-4, upper_bound=1.0)
flags.DEFINE_bool("train_only", False, "Train and measure nothing.")
flags.DEFINE_bool("estimate", False, "Print the expected minutes and run nothing.")
flags.DEFINE_float("gflops", 10000.0, "For --estimate.", lower_bound=1e-3)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Trains, measures, writes."""
    name = options.table
    table = TABLES[name][options.size]
    overrides = [override.partition("config.")[2] for override in overrides]
    overrides += [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    chosen = [_row(table, row) for row in options.rows or table.rows]
    if options.estimate:
        for row in chosen:
            figures = work(config_for(table, row, 0, overrides), table)
            train, attack = (flops / (6e10 * options.gflops) * len(table.seeds) for flops in figures)
            print(f"{row}: at most {train:.1f} minutes of training and {attack:.1f} of attacks", flush=True)
        return
    trial = options.fraction < 1
    folder = Path(options.workdir) / (f"{name}_{options.size}" + (f"_{options.fraction:g}" if trial else ""))
    path = (folder if trial else RESULTS) / f"{name}_{options.size}.json"
    measured = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    about = {"title": table.title, "size": options.size, "baseline": table.baseline, "images": table.images}
    for row in chosen:
        reports = {}
        for seed in table.seeds:
            config = scaled(config_for(table, row, seed, overrides), options.fraction)
            workdir = folder / f"{file_name(row)}_seed{seed}"
            print(f"== {workdir}", flush=True)
            loop.train(config, workdir)
            if not options.train_only:
                reports[str(seed)] = measure(config, workdir, table, options.fraction)
        if reports:
            command = (
                f"python benchmarks/reproduce.py {name} --size={options.size} --rows={list(table.rows).index(row)}"
            )
            measured["rows"][row] = {"config": table.rows[row], "command": command, "seeds": reports}
            measured = (
                about | measured | {"rows": {r: measured["rows"][r] for r in table.rows if r in measured["rows"]}}
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(measured, indent=1) + "\n").encode())
    if measured["rows"]:
        print(rendered(path))


def _row(table: Table, given: str) -> str:
    row = list(table.rows)[int(given)] if given.isdigit() and int(given) < len(table.rows) else given
    choose("row", row, table.rows)
    return row


def config_for(table: Table, row: str, seed: int, overrides: list[str]) -> ConfigDict:
    """The config of a row, in its table's size and with its attacks: training checks them before it begins."""
    config = config_of(table.rows[row], [*table.common, f"seed={seed}", *overrides])
    config.attacks = ConfigDict(table.attacks)
    return config


def scaled(config: ConfigDict, fraction: float) -> ConfigDict:
    """The config with that fraction of its epochs, at least one step of them."""
    if fraction < 1:
        config.epochs *= fraction
    return config


def measure(config: ConfigDict, workdir: Path, table: Table, fraction: float) -> dict[str, Any]:
    """The numbers of one run: its training, its accuracies, and which examples each attack broke."""
    limit = max(round(table.images * fraction), 10)
    chosen = config.evaluation.to_dict() | {"split": "test", "limit": limit, "pictures": 0}
    report = evaluate(workdir, config.attacks, **chosen, trust=("tables",))[str(workdir)]
    per_example = np.load(workdir / "per_example.npz")
    report["attacks"] = {n: report["attacks"][n] for n in table.attacks}  # a config sorts them
    broken = {n: np.flatnonzero(per_example[f"{n}/broken"]).tolist() for n in report["attacks"]}
    wrong = np.flatnonzero(per_example["clean/prediction"] != per_example["label"]).tolist()
    return {
        "training": training(workdir), "evaluation": report, "wrong": wrong, "broken": broken,
        "hardware": f"{parallel.device_count()} × {parallel.device_kind()}, {os.cpu_count()} CPU cores",
        "revision": revision(),
    }  # fmt: skip


def training(workdir: Path) -> dict[str, Any]:
    """Seconds of steps, and the validation accuracies over epochs, from ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps, seconds, before = 0, 0.0, 0
    curve = []
    for line in lines:
        if "steps_per_second" in line:
            seconds += (line["step"] - before) / line["steps_per_second"]
            before = steps = line["step"]
        curve += [[round(line["epoch"], 3), line["validation/clean"]]] if "validation/clean" in line else []
    return {"steps": steps, "seconds": round(seconds), "validation": curve}


def revision() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    run = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()  # noqa: E731
    return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")


def work(config: ConfigDict, table: Table) -> tuple[float, float]:
    """FLOPs of a run's training, and at most of its attacks: convolutions and matrix products, as traced."""
    run, state = loop.prepare(config)
    shape, size = run.dataset.image_shape, config.batch_size
    batch = {"image": np.zeros((1, size, *shape), np.uint8)}
    batch |= {name: np.zeros((1, size), np.int32) for name in ("label", "id")}
    step = traced_flops(run.steps, parallel.replicate(state), parallel.resident(batch), jax.random.key(0), 0, 1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = traced_flops(models.bind(run.model, variables), jnp.zeros((1, *shape)))
    passes = 0
    for name in config.attacks:
        attack = attack_from(name, config.attacks[name])
        cost = cost_of(attack.function, attack.settings, Problem(shape, run.dataset.num_classes, attack.threat))
        passes += cost.forwards + 2 * cost.gradients  # a backward pass is two forward passes
    return step * parallel.device_count() * run.total_steps, forward * passes * table.images


if __name__ == "__main__":
    cli.run(main, [sys.argv[0], *(a if a.startswith("-") else f"--table={a}" for a in sys.argv[1:])])
