"""Prepares a dataset from its original files, which it may download.

robust-jax prepare NAME [FILES, or a folder of them] [--data_dir=FOLDER]
"""

from __future__ import annotations

from absl import flags

from robust_jax import cli
from robust_jax.data import originals, prepare

POSITIONAL = ("name", "from")


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("name", "", f"One of {', '.join(originals.ORIGINALS)}.", flag_values=options)
    flags.DEFINE_list("from", [], "The original files, or folders of them; none: downloads.", flag_values=options)
    flags.DEFINE_string("data_dir", None, "Of prepared datasets; default: that of TFDS.", flag_values=options)
    flags.DEFINE_bool("unverified", False, "Takes files with another checksum than the published.", flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Prepares the dataset."""
    cli.refuse_overrides("prepare", overrides)
    try:
        prepare.prepare(options.name, options["from"].value or (), options.data_dir, unverified=options.unverified)
    except OSError as error:
        raise ValueError(str(error)) from error
