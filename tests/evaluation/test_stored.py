"""Evaluations side by side: each in a folder named after what it is of, none replaced by another."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import pgd
from robust_jax.evaluation import stored
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.evaluate import evaluate
from robust_jax.evaluation.identity import attack_of
from robust_jax.evaluation.settings import Settings
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")
SPEC = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.05, steps=1)
QUICK = dict(limit=20, checks=0, pictures=0, progress=False)


def measured(workdir, attacks=None, **given):
    (report,) = evaluate(workdir, attacks, **QUICK | given).values()
    return report


class Stop(Exception):
    """Raised where an evaluation would begin to measure."""


@pytest.fixture
def name_of(workdirs, monkeypatch):
    """A function that says under which name an evaluation would be kept."""

    def stop(workdir, place, *_):
        raise Stop(place)

    def name_of(attacks=None, **given):
        with pytest.raises(Stop) as stopped:
            evaluate(workdirs[1], attacks, **QUICK | given)
        return stopped.value.args[0].names[0]

    monkeypatch.setattr("robust_jax.evaluation.measure.measure", stop)
    return name_of


def test_names_say_what_differs_from_the_config(name_of):
    shift = SPEC | dict(steps=5, curve=(0, 1, 2))
    warp = dict(kind="pgd", perturbation="flow", norm="linf", radius=0.155, steps=5, restarts=2)
    own = dict(shift=shift, warp=warp)
    assert name_of(limit=200) == "test"
    assert name_of(own, limit=200) == "test"  # the same as the config says, written out
    assert name_of(own, limit=0) == "test-all"
    assert name_of(limit=0, split="validation", seed=3, checkpoint="latest") == "validation-seed_3-latest"
    assert name_of({"shift": shift}) == "test-first_20-only_shift"
    assert name_of({"shift": shift | dict(curve=())}) == "test-first_20-shift"
    assert name_of({"shift": shift | dict(steps=2, radius="1/50")}) == "test-first_20-shift-radius_0.02-steps_2"
    assert name_of({"shift": shift | dict(steps=1, radius=0.02, norm="l2")}) == "test-first_20-shift"
    assert name_of({"new: 1": SPEC}, worst_case_only=True) == "test-first_20-worst_case_only-new_1"
    assert name_of({}, checks=9, signs=("black_box",)) == "test-first_20-checks_9-black_box-no_attacks"
    long, other = (name_of({name * 40: SPEC for name in names}) for names in ("abc", "abd"))
    assert long.startswith("test-first_20-aaaaaaa") and len(long) == 80 and long != other


def test_another_evaluation_of_the_same_name_gets_another_and_the_same_one_replaces_itself(workdirs, trained):
    folder = workdirs[1]

    def found(**given):
        return measured(folder, {"shift": SPEC}, limit=200, **given)

    name = found()["name"]
    trained["steep"][0]["params"]["Dense_0"]["bias"] += 0.1  # trained further
    again = found()
    trained["steep"][0]["params"]["Dense_0"]["bias"] += 0.1
    third = found()
    assert again["name"] != third["name"] and again["identity"]["weights"] != third["identity"]["weights"]
    for other in (again, third):  # of the same step, which would tell nothing
        assert other["name"].startswith(f"{name}-") and len(other["name"]) == len(f"{name}-12345678")
    content = {p: p.read_bytes() for p in folder.rglob("evaluation.json")}
    assert len(content) == 3
    assert found(batch_size=7)["name"] == third["name"]
    shutil.rmtree(folder / "evaluations" / name)
    assert found()["name"] == third["name"]  # not a second time under the name that is free
    kept = folder / "evaluations" / again["name"] / "evaluation.json"
    assert kept.read_bytes() == content[kept]


def test_a_given_name_is_kept_for_one_evaluation(workdirs):
    folder = workdirs[1]
    first = measured(folder, {"shift": SPEC}, out="mine")
    assert first["name"] == "mine" and measured(folder, {"shift": SPEC}, out="mine")["name"] == "mine"
    before = (folder / "evaluations" / "mine" / "evaluation.json").read_bytes()
    message = "steep/evaluations/mine holds another evaluation, with other examples, n, seed, which is kept: take"
    with pytest.raises(ValueError, match=message):
        measured(folder, {"shift": SPEC}, limit=10, seed=1, out="mine")
    assert (folder / "evaluations" / "mine" / "evaluation.json").read_bytes() == before
    for name in ("", "a/b", "..", ".x", "x" * 101, "a b"):
        with pytest.raises(ValueError, match="cannot be the name of an evaluation"):
            measured(folder, {"shift": SPEC}, out=name)


def test_pictures_are_of_the_evaluation_beside_them(workdirs):
    folder = workdirs[1] / "evaluations" / "mine"
    spec = SPEC | dict(curve=(0, 1))
    measured(workdirs[1], {"shift": spec}, pictures=2, out="mine")
    assert {p.name for p in folder.iterdir()} == {
        "evaluation.json", "examples.npz", "per_example.npz", "adversarial_shift.png", "robustness_shift.png"
    }  # fmt: skip
    (folder / "robustness_old.png").write_bytes(b"of an evaluation that was here before")
    (folder / ".evaluation.json.1.ab.tmp").write_bytes(b"{")
    (folder / "notes.txt").write_text("the user's")
    measured(workdirs[1], {"shift": spec}, out="mine")
    assert {p.name for p in folder.iterdir()} == {
        "evaluation.json", "per_example.npz", "robustness_shift.png", "notes.txt"
    }  # fmt: skip
    with np.load(folder / "per_example.npz") as arrays:
        assert arrays["label"].shape == (20,)


def test_an_evaluation_appears_whole_or_not_at_all(workdirs, monkeypatch):
    place = stored.Place(workdirs[1] / "evaluations", {"n": 1}, ("one", "two"))

    def fails(folder, name):
        (folder / "per_example.npz").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.keep(fails)
    assert list((workdirs[1] / "evaluations").iterdir()) == []
    left = workdirs[1] / "evaluations" / ".one.1.ab.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    waiting = workdirs[1] / "evaluations" / ".two.wait"  # adversarial images of an evaluation that goes on
    waiting.mkdir()
    (waiting / "images").write_text("")
    os.utime(waiting, (0, 0))
    report = {"accuracy": 1.0, "interval": [0.0, 1.0], "n": 1}
    whole = {"clean": report, "worst_case": report, "attacks": {}, "warnings": []}

    def other_process_is_quicker(folder, name):
        (folder / "evaluation.json").write_text(json.dumps(whole | {"identity": {"n": 1}}))
        if name == "one":
            there = folder.with_name("one")
            there.mkdir()
            (there / "evaluation.json").write_text(json.dumps(whole | {"identity": {"n": 2}}))
        return name

    assert place.keep(other_process_is_quicker) == "two" and not left.exists()
    assert {n: r["identity"]["n"] for n, r in stored.evaluations(workdirs[1]).items()} == {"one": 2, "two": 1}
    assert sorted(p.name for p in (workdirs[1] / "evaluations").iterdir()) == [".two.wait", "one", "two"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: "", "is empty"),
        (lambda text: text[:-20], "is no JSON"),
        (lambda text: "[1]", "is no evaluation: it holds a list"),
        (lambda text: "{}", "is no evaluation: it lacks attacks"),
    ],
)
def test_a_damaged_evaluation_is_named_left_out_and_kept(workdirs, caplog, damage, message):
    folder = workdirs[1]
    measured(folder, {"shift": SPEC}, out="good")
    name = measured(folder, {"shift": SPEC})["name"]
    path = folder / "evaluations" / name / "evaluation.json"
    path.write_text(damaged := damage(path.read_text()))
    assert list(stored.evaluations(folder)) == ["good"]
    assert str(path) in caplog.text and re.search(message, caplog.text)
    assert measured(folder, {"shift": SPEC})["name"] == f"{name}-step_7" and path.read_text() == damaged
    with pytest.raises(ValueError, match="holds another evaluation, that cannot be read, which is kept: take another"):
        measured(folder, {"shift": SPEC}, out=name)


def test_nothing_is_written_through_links(workdirs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (workdirs[1] / "evaluations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="steep/evaluations is a symbolic link"):
        measured(workdirs[1], {"shift": SPEC})
    (workdirs[0] / "evaluations").mkdir()
    (workdirs[0] / "evaluations" / "mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="smooth/evaluations/mine is a symbolic link"):
        measured(workdirs[0], {"shift": SPEC}, out="mine")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"threat"', '"thread"', r"attacks.shift lacks \['threat'\]"),
        ('"clean": {\n  "accuracy": ', '"clean": {\n  "x": ', "clean is no accuracy"),
        ('"warnings": []', '"warnings": [3]', "it lacks attacks or warnings"),
    ],
)
def test_what_is_no_evaluation_is_left_out_of_lists(workdirs, caplog, old, new, message):
    name = measured(workdirs[1], {"shift": SPEC})["name"]
    path = workdirs[1] / "evaluations" / name / "evaluation.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert stored.evaluations(workdirs[1]) == {} and str(path) in caplog.text and re.search(message, caplog.text)
    assert measured(workdirs[1], {"shift": SPEC})["name"] == name  # measured again, it is whole
    assert list(stored.evaluations(workdirs[1])) == [name]


def test_losses_of_ones_own_are_told_apart_from_built_in_ones_of_their_name():
    def margin(logits, labels):
        return -losses.margin(logits, labels)

    threat = ThreatModel("additive", "linf", 0.1)
    theirs, own = (attack_of(Attack(pgd, threat, {"loss": loss})) for loss in (losses.margin, margin))
    assert theirs["settings"]["loss"] == "margin" and own["settings"]["loss"].endswith("<locals>.margin")


def test_numbers_of_numpy_are_settings():
    settings = Settings(seed=np.int64(3), checks=np.int32(8))
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["seed"] == 3


def test_the_folder_of_comparisons_is_no_run_among_others(tmp_path):
    run, comparisons = tmp_path / "a", tmp_path / "comparisons"
    comparisons.mkdir()
    assert stored.runs_among([comparisons, run, run]) == [run]
    assert stored.runs_among([comparisons]) == [comparisons]  # which is then told to be no workdir
    (comparisons / "config.json").write_text("{}")
    assert stored.runs_among([comparisons, run]) == [comparisons, run]
