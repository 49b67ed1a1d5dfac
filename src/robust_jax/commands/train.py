"""Trains what a config describes; started again it resumes.

robust-jax train --config=digits_fgr --workdir=runs/digits_fgr [--config.terms.fgr.weight=1.47 ...]
"""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

from absl import flags, logging

from robust_jax import cli, extensions, parallel
from robust_jax.config.command_line import overridden
from robust_jax.training import loop, stopping
from robust_jax.workdir import runs

POSITIONAL = ()


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    text, seconds = partial(flags.DEFINE_string, flag_values=options), partial(flags.DEFINE_float, flag_values=options)
    text("config", "digits_fgr", "The experiment: a file with get_config(), or one of `robust-jax list configs`.")
    text("workdir", "", "Where checkpoints and metrics go; default: runs/ and the config's name.")
    text("distributed", "", "For several hosts: auto, or HOST:PORT,COUNT,INDEX.")
    seconds("join_timeout", 300.0, "Seconds to wait until all hosts have started.", lower_bound=1)
    seconds("peer_timeout", 30.0, "Seconds without an answer after which a host counts as lost.", lower_bound=5)
    flags.DEFINE_list("trust", [], "The modules, with commas, that workdirs of `source` may name.", flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Loads the config, applies overrides, trains."""
    if options.distributed:
        parallel.initialize(options.distributed, options.join_timeout)

    logging.set_verbosity(logging.WARNING)
    workdir = options.workdir or cli.default_workdir(options.config)
    # In it from the start: the other hosts are told of a mistake in this one's command, too.
    with parallel.watched(options.peer_timeout, lambda: runs.progress(workdir), stopping.Stopped):
        config = overridden(cli.load_config(options.config), overrides)
        if "," in workdir:
            raise ValueError(
                f"--workdir={workdir}: robust-jax evaluate takes a comma for the start of another workdir; "
                f"leave it out."
            )
        loop.train(config, workdir, cli.trusted(options.trust))
    if parallel.is_main():
        own = extensions.modules_of(config.to_dict())
        arguments = [f"--workdir={workdir}", *([f"--trust={','.join(own)}"] if own else [])]
        program = "python eval.py" if Path(sys.argv[0]).name == "train.py" else "robust-jax evaluate"
        print(f"Trained. Now: {program} {shlex.join(arguments)}")
