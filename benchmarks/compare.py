"""Trains several configs with several seeds, measures all, prints one Markdown table, as in docs/methods.md.

python benchmarks/compare.py --configs=digits_standard,digits_fgr --seeds=0,1,2 [--config.KEY=VALUE ...]

A row `NAME[:ARGUMENT][:KEY=VALUE...]` is a config, with its argument and its own overrides:
digits_fgr:terms.fgr.weight=0, digits_methods:trades. `digits_methods:all` stands for all of its methods.
Finished runs are not trained again; every workdir keeps its evaluations.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from robust_jax import cli
from robust_jax.config.methods import METHODS
from robust_jax.evaluation import evaluate
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.training import loop
from robust_jax.workdir.runs import load
from runs import config_of
from universal_rates import universal_rates

flags.DEFINE_list("configs", ["digits_standard", "digits_fgr"], "Names of configs, each with its own overrides.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Of training and attacks.")
flags.DEFINE_string("workdir", "runs/compare", "Every run gets a folder in it.")
flags.DEFINE_string("split", "test", "test, or validation to choose hyper-parameters on.")
flags.DEFINE_integer("universal", 0, "Validation images for one universal δ, to measure that too; 0: none.")
flags.DEFINE_list("universal_radii", ["0.25", "0.75"], "Of additive and flow linf, for the universal δ.")
flags.DEFINE_integer("jobs", 1, "Configs to run at once, each in a process with one thread.")
flags.DEFINE_integer("limit", 0, "Images to measure on; 0: as each config says.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Trains, evaluates, prints."""
    columns = [c.replace(":all", f":{m}") for c in options.configs for m in (METHODS if c.endswith(":all") else [""])]
    path = Path(options.workdir) / f"table_{options.split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    one = partial(measure, given=options.flag_values_dict(), overrides=overrides)
    if options.jobs > 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        with ProcessPoolExecutor(options.jobs, get_context("spawn"), cli.keep_compiled) as pool:
            measured = collected(columns, pool.map(one, columns), path)
    else:
        measured = collected(columns, map(one, columns), path)
    print(table(measured))


def collected(columns: list[str], found: Iterable[list[dict]], path: Path) -> dict[str, list[dict]]:
    """The reports by column, written to a file whenever one is finished."""
    measured = {}
    for column, reports in zip(columns, found, strict=True):
        measured[column] = reports
        path.write_text(json.dumps(measured, indent=1))
    return measured


def measure(column: str, given: dict[str, Any], overrides: list[str]) -> list[dict]:
    """Trains and evaluates one config with every seed; a seed whose loss is no longer finite is left out."""
    reports = []
    for seed in given["seeds"]:
        config = config_of(column, [*(o.partition("config.")[2] for o in overrides), f"seed={seed}"])
        workdir = Path(given["workdir"]) / f"{column.replace(':', '_').replace('=', '_')}_seed{seed}"
        print(f"== {workdir}", flush=True)
        try:
            loop.train(config, workdir)
        except loop.NonFiniteLossError as error:
            print(f"{workdir}: {error}", file=sys.stderr)
            continue
        chosen = config.evaluation.to_dict() | {"split": given["split"]}
        chosen |= {"limit": given["limit"]} if given["limit"] else {}
        report = evaluate(workdir, config.attacks, **chosen)[str(workdir)]
        if given["universal"]:
            trained = load(workdir)
            for space, radius in zip(("additive", "flow"), given["universal_radii"], strict=True):
                found = universal_rates(trained, ThreatModel(space, "linf", float(radius)), given["universal"], 100)
                report["attacks"] |= {f"{name} {space} {radius}": {"accuracy": rate} for name, rate in found.items()}
        reports.append(report)
    jax.clear_caches()  # no other config uses its programs, and a process can map only a limited number
    return reports


def table(columns: dict[str, list[dict]]) -> str:
    """Rows are configs, columns clean accuracy and accuracy under each attack: mean ± standard deviation over seeds."""
    attacks = list(next(reports[0]["attacks"] for reports in columns.values() if reports))
    lines = ["| training | clean | " + " | ".join(attacks) + " |", "|---" * (len(attacks) + 2) + "|"]
    for column, reports in columns.items():
        if not reports:
            lines.append(f"| {column} | loss not finite |")
            continue
        rows = [[r["clean"]["accuracy"], *(r["attacks"][a]["accuracy"] for a in attacks)] for r in reports]
        mean, std = 100 * np.mean(rows, 0), 100 * np.std(rows, 0, ddof=min(len(rows) - 1, 1))
        cells = [f"{m:.1f} ± {s:.1f}" if len(rows) > 1 else f"{m:.1f}" for m, s in zip(mean, std, strict=True)]
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
