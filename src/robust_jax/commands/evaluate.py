"""Measures trained workdirs: clean accuracy, accuracy under every attack, the worst case; tables, JSON, pictures.

robust-jax evaluate runs/digits_standard runs/digits_fgr [--config=FILE] [--config.KEY=VALUE ...]

Evaluations of other attacks, examples, seeds or checkpoints lie side by side, in WORKDIR/evaluations/NAME: --out=NAME.
--list lists them. What several workdirs share goes to comparisons/NAME beside them, or to --out=FOLDER.
Without --config each workdir is measured by the attacks and settings of its own config. Overrides of attacks apply to
the attacks of --config, or of the first workdir, which then serve all workdirs; data.data_dir, evaluation, attacks and
seed can be overridden. The seed is that of the attacks' draws, and without an override each workdir's own. A workdir
that names parts of your own, "my_parts:entropy", is evaluated with --trust=my_parts: importing a module runs its code,
and a workdir may come from anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from robust_jax import cli, parallel
from robust_jax.config.command_line import OVERRIDE, overridden
from robust_jax.evaluation import evaluate, stored, table
from robust_jax.files import printable
from robust_jax.workdir import saved_config

POSITIONAL = ("workdir",)
OVERRIDABLE = ("attacks.", "evaluation.", "data.data_dir", "seed")


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list("workdir", ["runs/digits_fgr"], "What train wrote; several share pictures.", flag_values=options)
    flags.DEFINE_string("config", "", "A config whose attacks and settings serve all workdirs.", flag_values=options)
    text = "The name of the evaluation; of several workdirs, the folder of their comparison."
    flags.DEFINE_string("out", None, text, flag_values=options)
    flags.DEFINE_bool("list", False, "Lists the evaluations that there are, and measures nothing.", flag_values=options)
    flags.DEFINE_bool("report", False, "Also writes report.html, as robust-jax report does.", flag_values=options)
    text = "Keeps adversarial images and δ in adversarial.npz."
    flags.DEFINE_bool("save_adversarial", False, text, flag_values=options)
    flags.DEFINE_list("trust", [], "The modules, with commas, that configs may name parts of.", flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Loads a config, applies overrides, evaluates."""
    logging.set_verbosity(logging.WARNING)
    workdirs = [w for w in options.workdir if w]
    if not workdirs:
        raise ValueError("--workdir is empty: give one or more folders that robust-jax train wrote.")
    if options["list"].value:
        _list(workdirs)
        return
    evaluate(workdirs, **_asked(options, overrides, workdirs[0]))
    if options.report and parallel.is_main():
        from robust_jax.evaluation.page import report  # the page's templates are not needed without it

        print(printable(f"Written to {report(workdirs).save(Path(workdirs[0]) / 'report.html')}"))


def _list(workdirs: Sequence[str]) -> None:
    """Prints the evaluations that workdirs hold."""
    for workdir in workdirs:
        if not Path(workdir).expanduser().is_dir():
            raise ValueError(f"{workdir} is no folder: give what train wrote.")
    table.show_stored({workdir: stored.evaluations(workdir) for workdir in workdirs})


def _asked(options: flags.FlagValues, overrides: Sequence[str], first: str) -> dict[str, Any]:
    """The arguments of `evaluate` that the command line says.

    Args:
      options: the flags.
      overrides: of --config, or else of the config of the first workdir.
      first: the first workdir.
    """
    paths = [OVERRIDE.fullmatch(o)[1] for o in overrides]  # type: ignore[index]
    if trained := [path for path in paths if not path.startswith(OVERRIDABLE)]:
        raise ValueError(f"{trained} belong to training: robust-jax evaluate overrides {list(OVERRIDABLE)} only.")
    trust = cli.trusted(options.trust)
    config = cli.load_config(options.config) if options.config else saved_config.read_config(first, trust)
    if overrides:
        config = overridden(config, overrides)
    given = {p.split(".")[1]: config.evaluation[p.split(".")[1]] for p in paths if p.startswith("evaluation.")}
    seed = {"seed": config.seed} if "seed" in paths else {}
    own_attacks = not options.config and not any(path.startswith("attacks.") for path in paths)
    return {
        **(config.evaluation if options.config else given),
        **seed,
        "attacks": None if own_attacks else config.attacks,
        "data_dir": config.data.data_dir if "data.data_dir" in paths else None,
        "out": options.out,
        "save_adversarial": options.save_adversarial,
        "trust": trust,
    }
