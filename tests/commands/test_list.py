"""`robust-jax list`: what a config can name, with a line each; `robust-jax` itself."""

from __future__ import annotations

import re

import pytest

from robust_jax import commands
from robust_jax.attacks import ATTACKS
from robust_jax.commands.list import KINDS
from robust_jax.models import MODELS


@pytest.mark.parametrize("kind", KINDS)
def test_list(kind, capsys):
    commands.main(["list", kind])
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) == 2 and len(line[1]) > 15 for line in lines)
    names = [line[0] for line in lines]
    assert names == sorted(names)
    assert {"attacks": sorted(ATTACKS), "models": sorted(MODELS)}.get(kind, names) == names


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
