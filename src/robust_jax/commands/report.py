"""Shows what workdirs and their evaluations hold, on one page of HTML or as a table.

robust-jax report runs/digits_standard runs/digits_fgr [--out=FILE] [--format=html|csv|latex|markdown]

The page is one file that loads nothing else: accuracies with intervals, curves, training, classes, adversarial
examples, warnings, and how to reproduce it. All evaluations of a workdir are shown. Nothing that a workdir names is
imported or run.
"""

from __future__ import annotations

from absl import flags

from robust_jax import cli
from robust_jax.evaluation.page import FORMATS, report
from robust_jax.files import printable

POSITIONAL = ("workdir",)


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list("workdir", [], "What train wrote, evaluated or not.", flag_values=options)
    flags.DEFINE_string("format", "html", f"One of {', '.join(FORMATS)}.", flag_values=options)
    flags.DEFINE_string("out", "", "The file; default: report.html, and tables on screen.", flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Writes the page, or writes or prints the table."""
    cli.refuse_overrides("report", overrides)
    workdirs = [workdir for workdir in options.workdir if workdir]
    if not workdirs:
        raise ValueError("report needs workdirs: robust-jax report runs/digits_standard runs/digits_fgr")
    found = report(workdirs)
    if options.format != "html" and not options.out:
        print(found.text(options.format), end="")
        return
    path = found.save(options.out or "report.html", options.format)
    print(printable(f"Written to {path}"))
