"""Commands: ``robust-jax COMMAND ...``, the same as ``python -m robust_jax COMMAND ...``.

A command is a module of this package: its docstring is its help, ``define`` defines its flags, ``POSITIONAL`` names
the flags that may be given without their names, and ``main(options, overrides)`` does it. With ``rewritten(arguments,
options)`` it may take flags that are known only then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "train": "train what a config describes",
    "evaluate": "measure trained workdirs: tables, JSON, pictures",
    "attack": "attack trained workdirs with one attack, without a config",
    "compare": "whether two methods differ: over seeds, with a paired test",
    "report": "show what workdirs hold: one page, or a table",
    "prepare": "prepare a dataset from its original files",
    "list": "list attacks, configs, datasets, methods, models, optimizers, perturbations, points, terms or writers",
}


def run(command: str, arguments: Sequence[str], program: str) -> None:
    """Runs a command with the arguments of its command line, and exits.

    Args:
      command: a key of `COMMANDS`.
      arguments: without the names of program and command.
      program: what messages call it.
    """
    from absl import flags

    from robust_jax import cli

    module = importlib.import_module(f"robust_jax.commands.{command}")
    options = flags.FlagValues()
    module.define(options)
    if hasattr(module, "rewritten"):
        arguments = module.rewritten(arguments, options)
    cli.run(
        module.main, [program, *arguments], options=options, positional=module.POSITIONAL, about=module.__doc__
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The program ``robust-jax``."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print(f"robust-jax COMMAND ...\n\n{lines}\n\nrobust-jax COMMAND --help tells the flags of one.")
        return
    if command == "--version":
        print(version("robust_jax"))
        return
    from robust_jax.extensions import choose

    try:
        choose("command", command, COMMANDS)
    except ValueError as error:
        print(f"robust-jax: {error}", file=sys.stderr)
        sys.exit(2)
    run(command, rest, f"robust-jax {command}")
