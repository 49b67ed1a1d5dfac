"""`python -m robust_jax`: what a config can name, with a line each."""

from __future__ import annotations

import pytest

from robust_jax import __main__ as program
from robust_jax.attacks import ATTACKS
from robust_jax.models import MODELS


@pytest.mark.parametrize("kind", program.KINDS)
def test_list(kind, capsys):
    assert program.main(["list", kind]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) == 2 and len(line[1]) > 15 for line in lines)
    names = [line[0] for line in lines]
    assert names == sorted(names)
    assert {"attacks": sorted(ATTACKS), "models": sorted(MODELS)}.get(kind, names) == names


def test_an_unknown_kind_is_told_with_all_that_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["list", "attack"])
    assert end.value.code == 2 and "choose from" in (text := capsys.readouterr().err) and "perturbations" in text
