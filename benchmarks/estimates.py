"""About how long the tables of reproduce.py take, from their arithmetic: python benchmarks/estimates.py [--size=full]

Minutes of training and of attacks of all rows and seeds, at `--gflops` sustained GFLOP/s, from the convolutions and
matrix products of a training step and of the attacks, as if no example ended early. A row whose weight is chosen counts
as if all values were tried. Work that is not done at every step, such as RAT's universal perturbations, counts as if it
were.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from measurements import report
from origin import source
from reproduce import Plan
from robust_jax import cli, models, parallel
from robust_jax.attacks.define import Problem, cost_of
from robust_jax.evaluation.from_config import attack_from
from robust_jax.extensions import choose
from robust_jax.training.run import prepare
from tables import TABLES
from timing import traced_flops

flags.DEFINE_list("tables", None, "Some of the tables; all unless given.")
flags.DEFINE_float("gflops", 10000.0, "The rate that is assumed.", lower_bound=1e-3)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Prints a row per table."""
    keys = [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    origin, rows = source(), []
    for name in options.tables or TABLES:
        choose("tables", name, TABLES)
        if options.size not in TABLES[name]:
            continue
        plan = Plan(TABLES[name][options.size], Path("unused"), keys, 1.0, Path("unused"))
        each = [minutes(plan, row, options.gflops) for row in plan.table.rows]
        training, attacks = (sum(of) for of in zip(*each, strict=True))
        rows.append({"table": name, "training, minutes": training, "attacks, minutes": attacks})
        print(rows[-1], dict(zip(plan.table.rows, each, strict=True)), flush=True)
    report(
        {f"Size {options.size}, at {options.gflops:g} GFLOP/s": rows}, str(Path(options.out) / "estimates.json"), origin
    )


def minutes(plan: Plan, row: str, gflops: float) -> tuple[float, float]:
    """Of training, in all seeds and with all values that are tried, and of attacks, in all seeds."""
    choice, seeds = plan.table.rows[row].choice, len(plan.table.seeds)
    train, attack = (flops / (6e10 * gflops) for flops in work(plan.config(row, plan.table.seeds[0])))
    return train * (seeds + (len(choice.values) - 1 if choice else 0)), attack * seeds


def work(config: ConfigDict) -> tuple[float, float]:
    """FLOPs of a run's training, and of its attacks if no example ends early: convolutions and matrix products."""
    run, state = prepare(config)
    shape, size = run.dataset.image_shape, config.batch_size
    batch = {"image": np.zeros((1, size, *shape), np.uint8)}
    batch |= {name: np.zeros((1, size), np.int32) for name in ("label", "id")}
    step = traced_flops(run.steps, parallel.replicate(state), parallel.resident(batch), jax.random.key(0), 0, 1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = traced_flops(models.bind(run.model, variables), jnp.zeros((1, *shape)))
    passes = 0
    for name, spec in config.attacks.items():
        attack = attack_from(name, spec)
        cost = cost_of(attack.function, attack.settings, Problem(shape, run.dataset.num_classes, attack.threat))
        if cost:
            passes += cost.forwards + cost.gradients  # a backward pass in the images is about a forward pass
    return step * parallel.device_count() * run.total_steps, forward * passes * config.evaluation.limit


if __name__ == "__main__":
    cli.run(main)
