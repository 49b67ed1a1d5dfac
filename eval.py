"""Measures trained workdirs: clean accuracy, accuracy under every attack, the worst case; tables, JSON, pictures.

python eval.py --workdir=runs/digits_standard,runs/digits_fgr [--config=FILE] [--config.KEY=VALUE ...]

Without --config each workdir is measured by the attacks it was configured with; overrides start from the first one's
and then serve all.
"""

from absl import flags, logging

from robust_jax import cli, evaluation, experiment

flags.DEFINE_string("workdir", "runs/digits_fgr", "What train.py wrote; several, with commas, share pictures.")
flags.DEFINE_string("config", "", "A config whose attacks and evaluation settings are used for all workdirs.")


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Loads configs, applies overrides, evaluates."""
    logging.set_verbosity(logging.WARNING)
    workdirs = [w for w in options.workdir.split(",") if w]
    if not workdirs:
        raise ValueError("--workdir is empty: give one or more folders that train.py wrote.")
    given = cli.load_config(options.config) if options.config else None
    configs = [cli.overridden(given or experiment.read_config(w), overrides) for w in workdirs]
    chosen = configs[0].evaluation
    evaluation.evaluate(
        workdirs,
        None if given is None and not overrides else configs[0].attacks,
        split=chosen.split,
        limit=chosen.limit or None,
        batch_size=chosen.batch_size,
        checkpoint=chosen.checkpoint,
    )


if __name__ == "__main__":
    cli.run(main)
