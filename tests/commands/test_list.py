"""`robust-jax list`: what a config can name, with a line each; `robust-jax` itself."""

from __future__ import annotations

import re

import pytest

from robust_jax import cli, commands
from robust_jax.attacks import ATTACKS
from robust_jax.commands.list import KINDS
from robust_jax.config.methods import METHODS
from robust_jax.config.optimizers import known_optimizers
from robust_jax.data.known import KNOWN
from robust_jax.models import MODELS
from robust_jax.objectives.points import POINTS
from robust_jax.objectives.terms import TERMS
from robust_jax.spaces import registry
from robust_jax.training import writers

TABLES = {
    "attacks": ATTACKS, "configs": cli.config_names(), "datasets": KNOWN, "methods": METHODS, "models": MODELS,
    "optimizers": known_optimizers(), "perturbations": registry.built_in(), "points": POINTS, "terms": TERMS,
    "writers": writers.built_in(),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_list(kind, capsys):
    commands.main(["list", kind])
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) == 2 and len(line[1]) > 15 for line in lines)
    assert [line[0] for line in lines] == sorted(TABLES[kind]) != []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["list", "attack"], "list='attack' is unknown.*'perturbations'.*Did you mean 'attacks'?"),
        (["list"], "list='' is unknown.*'terms'"),
        (["lst"], "command='lst' is unknown.*Did you mean 'list'?"),
        (["list", "attacks", "points"], "unexpected ..points"),
        (["evaluate", "--wrokdir=x"], "wrokdir.*--workdir"),
        (["train", "--config=digit_fgr"], "Did you mean 'digits_fgr'?"),
    ],
)
def test_a_mistake_is_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("robust-jax")
    assert re.search(message, error)


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_command_has_a_line_and_a_help(command, capsys):
    commands.main([])
    assert f"  {command}" in capsys.readouterr().out
    commands.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"robust-jax {command}" in text and "--" in text
