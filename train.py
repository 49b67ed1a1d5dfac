"""Trains what a config describes; started again it resumes.

python train.py --config=configs/digits_fgr.py --workdir=runs/digits_fgr [--config.terms.fgr.weight=1.47 ...]
"""

import shlex

from absl import flags, logging

from robust_jax import cli, extensions, parallel
from robust_jax.training import loop, stopping
from robust_jax.workdir import runs

flags.DEFINE_string("config", "configs/digits_fgr.py", "The experiment: a file with get_config().")
flags.DEFINE_string("workdir", "", "Where checkpoints and metrics go; default: runs/ and the config's name.")
flags.DEFINE_string("distributed", "", "For several hosts: auto, or HOST:PORT,COUNT,INDEX.")
flags.DEFINE_float("join_timeout", 300.0, "Seconds to wait until all hosts have started.", lower_bound=1)
flags.DEFINE_float("peer_timeout", 30.0, "Seconds without an answer after which a host counts as lost.", lower_bound=5)
flags.DEFINE_list("trust", [], "The modules, with commas, from which the workdirs of attacks' sources may name parts.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Loads the config, applies overrides, trains."""
    if options.distributed:
        parallel.initialize(options.distributed, options.join_timeout)

    logging.set_verbosity(logging.WARNING)
    workdir = options.workdir or cli.default_workdir(options.config)
    # In it from the start: the other hosts are told of a mistake in this one's command, too.
    with parallel.watched(options.peer_timeout, lambda: runs.progress(workdir), stopping.Stopped):
        config = cli.overridden(cli.load_config(options.config), overrides)
        if "," in workdir:
            raise ValueError(
                f"--workdir={workdir}: eval.py takes a comma for the start of another workdir; leave it out."
            )
        loop.train(config, workdir, cli.trusted(options.trust))
    if parallel.is_main():
        own = extensions.modules_of(config.to_dict())
        arguments = [f"--workdir={workdir}", *([f"--trust={','.join(own)}"] if own else [])]
        print(f"Trained. Now: python eval.py {shlex.join(arguments)}")


if __name__ == "__main__":
    cli.run(main)
