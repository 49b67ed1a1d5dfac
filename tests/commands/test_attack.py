"""`robust-jax attack`: one attack on trained workdirs, without a config."""

from __future__ import annotations

import re

import pytest

from robust_jax import commands
from robust_jax.commands import attack
from robust_jax.evaluation.measure import chosen_attacks


@pytest.fixture
def called(monkeypatch):
    """What the command calls `evaluate` with; the attack is built, and nothing runs."""
    calls = []

    def evaluate(workdirs, attacks, **given):
        calls.append((workdirs, attacks, given))
        chosen_attacks(attacks)

    monkeypatch.setattr(attack, "evaluate", evaluate)
    return calls


def test_flags_are_the_ball_the_options_of_the_attack_and_what_is_evaluated(called):
    flags = "--attack=pgd --perturbation flow,additive --radius=0.155,8/255 --steps 100 --loss=margin"
    flags += " --random_start=false --restarts=3 --option=momentum=0.9 --limit=100 --seed 3 --out=mine"
    commands.main(["attack", "runs/a", *flags.split(), "runs/b"])
    ((workdirs, attacks, given),) = called
    assert workdirs == ["runs/a", "runs/b"] and given == {
        "limit": 100,
        "seed": 3,
        "out": "mine",
        "save_adversarial": False,
        "worst_case_only": False,
        "trust": (),
    }
    assert attacks == {"pgd": dict(
        kind="pgd", perturbation=("flow", "additive"), radius=(0.155, 8 / 255), steps=100, loss="margin",
        random_start=False, restarts=3, momentum=0.9,
    )}  # fmt: skip


def test_a_name_a_norm_and_a_curve(called):
    flags = "--attack=pgd --perturbation=additive --norm=l2 --radius=1/2 --curve=0,0.5,1 --name=mine --split=train"
    flags += " --save_adversarial --random_start"
    commands.main(["attack", "runs/a", *flags.split()])
    ((_, attacks, given),) = called
    curve = (0, 0.5, 1)
    assert given == {"split": "train", "save_adversarial": True, "worst_case_only": False, "trust": ()}
    assert attacks == {
        "mine": dict(kind="pgd", perturbation="additive", norm="l2", radius=0.5, curve=curve, random_start=True)
    }


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "runs/a --attack=pdg --perturbation=flow --radius=1",
            "--attack='pdg' is unknown: choose.*Did you mean 'pgd'?",
        ),
        ("runs/a --perturbation=flow --radius=1", "--attack='' is unknown: choose one of"),
        ("runs/a --perturbation=my:space --radius=1", "--attack='' is unknown: choose one of"),
        ("--attack=pgd --perturbation=flow --radius=1", "attack needs a workdir"),
        ("runs/a --attack=pgd --perturbation=flow", "--radius is missing: give the ball"),
        ("runs/a --attack=pgd --radius=1", "--perturbation is missing"),
        (
            "runs/a --attack=pgd --perturbation=flwo --radius=1",
            "attacks.pgd: perturbation='flwo' is unknown: choose one of",
        ),
        (
            "runs/a --attack=pgd --perturbation=flow --radius=1 --stepz=3",
            r"attacks.pgd \(kind pgd\) has no option \['stepz'\]",
        ),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --steps=0", "attacks.pgd.steps=0 must be at least 1"),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --steps", "attacks.pgd.steps=True"),
        ("runs/a --attack=pgd --perturbation=flow --radius=x", "attacks.pgd.radius='x': give a finite number"),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --option=steps", "--option=steps: give KEY=VALUE"),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --option=kind=fgsm", "--option=kind=fgsm: give KEY=VALUE"),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --limit=x", "limit.*'x'|x.*limit"),
        ("runs/a --attack=pgd --perturbation=flow --radius=1 --config.seed=1", "attack has no config"),
        ("runs/a --attack=no_such_module:x --perturbation=flow --radius=1", "'no_such_module:x' cannot be imported"),
    ],
)
def test_mistakes_are_one_message(called, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        commands.main(["attack", *flags.split()])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("robust-jax attack: ") and error.count("\n") == 1
    assert re.search(message, error), error


def test_an_option_that_is_on_or_off_takes_no_workdir_for_its_value(called):
    flags = "--attack=pgd --perturbation=additive --radius=0.1 --early_stop runs/a --random_start false"
    commands.main(["attack", *flags.split()])
    ((workdirs, attacks, _),) = called
    assert workdirs == ["runs/a"] and attacks["pgd"]["early_stop"] is True and attacks["pgd"]["random_start"] is False
