"""Compares two methods that were evaluated on the same images: accuracies over seeds, and a paired test.

robust-jax compare runs/fgr_0 runs/fgr_1 --against=runs/standard_0,runs/standard_1 [--evaluation=test]

The first workdir is paired with the first of --against, and so on. A row per attack that all were evaluated with in the
same way; --worst=flow_pgd,flow_apgd adds one of the worst of several.
"""

from __future__ import annotations

from absl import flags

from robust_jax import cli
from robust_jax.evaluation.paired import compare

POSITIONAL = ("workdir",)


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list("workdir", [], "The evaluated runs of one method.", flag_values=options)
    flags.DEFINE_list("against", [], "As many of another method.", flag_values=options)
    flags.DEFINE_string("evaluation", None, "Its name; needed if the runs have several in common.", flag_values=options)
    words = "A row of the worst of these attacks, with commas; may be given several times."
    flags.DEFINE_multi_string("worst", [], words, flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Prints the table."""
    cli.refuse_overrides("compare", overrides)
    if not options.workdir or not options.against:
        raise ValueError("compare needs two methods: robust-jax compare runs/fgr_0 --against=runs/standard_0")
    worst = {f"worst of {names.replace(',', ', ')}": tuple(names.split(",")) for names in options.worst}
    compare(options.workdir, options.against, evaluation=options.evaluation, worst=worst)
