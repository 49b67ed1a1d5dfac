"""An interrupted evaluation goes on after the last attack that finished, and believes no file that is not its own."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest

from robust_jax.attacks import pgd
from robust_jax.evaluation import outcome_cache
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.evaluate import evaluate
from robust_jax.losses import margin
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")


def without_seconds(report):
    attacks = {name: {k: v for k, v in a.items() if k != "seconds"} for name, a in report["attacks"].items()}
    return report | {"attacks": attacks}


@pytest.mark.parametrize("worst_case_only", [False, True])
def test_what_was_killed_goes_on_after_the_last_attack_that_finished(workdirs, ran, worst_case_only):
    common = dict(kind="pgd", loss="margin")
    attacks = {
        "a": common | dict(steps=1, perturbation="additive", radius=0.02, curve=(0, 2)),
        "b": common | dict(steps=2, perturbation=("flow", "additive"), radius=(0.155, 0.02)),
        "c": common | dict(steps=3, perturbation="additive", norm="l2", radius=0.1),
        "d": common | dict(steps=4, perturbation="flow", radius=0.155),
    }
    given = dict(limit=40, worst_case_only=worst_case_only, progress=False, pictures=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(workdirs[1], attacks, **given)
    folder = workdirs[1] / "evaluation_unfinished"
    assert ran == [1, 2, 3] and len(list(folder.iterdir())) == 3
    assert not list(workdirs[1].glob("evaluations/*"))
    # Another seed, number of images or setting is another evaluation; in turn, so is all that follows.
    for change in (dict(seed=1), dict(limit=39)):
        ran.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(workdirs[1], attacks, **given | change)
        assert ran == [1, 2, 3]
    ran[:] = ["", ""]
    with pytest.raises(KeyboardInterrupt):
        evaluate(workdirs[1], attacks | {"b": attacks["b"] | dict(steps=5)}, **given)
    assert ran[2] == 5

    ran.clear()
    (resumed,) = evaluate(workdirs[1], attacks, **given).values()
    # Its own outcomes are removed; those of the other three interrupted evaluations stay: 3, 3 and 1.
    assert ran == [4] and len(list(folder.iterdir())) == 7
    ran.clear()
    three = {name: attacks[name] for name in "abc"}
    (whole,) = evaluate(workdirs[0].with_name("steep"), three, **given).values()
    assert ran == [1, 2, 3]
    for name in three:
        assert without_seconds(resumed)["attacks"][name] == without_seconds(whole)["attacks"][name]
    (found,) = workdirs[1].glob("evaluations/*d*/per_example.npz")
    with np.load(found) as arrays:
        assert arrays["b/loss"].shape == (40,)
    assert not list(workdirs[1].glob("**/adversarial_*.png"))


def test_what_is_not_ours_is_not_kept(workdirs):
    ball = ThreatModel("additive", "linf", 0.02)
    attacks = {"ours": Attack(pgd, ball), "loss": Attack(pgd, ball, {"loss": lambda z, y: margin(z, y)})}
    attacks |= {"function": Attack(lambda *a, **b: pgd(*a, **b), ball), "after": Attack(pgd, ball, {"steps": 3})}
    together = outcome_cache.fingerprints(attacks, {}, (), in_turn=False)
    assert set(together) == {"ours", "after"} and len(set(together.values())) == 2
    assert set(outcome_cache.fingerprints(attacks, {}, (), in_turn=True)) == {"ours"}
    assert together["ours"] != outcome_cache.fingerprints(attacks, {"w": np.ones(2)}, (), in_turn=False)["ours"]


def test_an_attack_that_the_user_wraps_is_not_kept(workdirs):
    @functools.wraps(pgd)
    def wrapped(*given, **options):
        return pgd(*given, **options)

    ball = ThreatModel("additive", "linf", 0.02)
    assert not outcome_cache.fingerprints({"a": Attack(wrapped, ball)}, {}, (), in_turn=False)


def test_outcomes_depend_on_the_code_of_the_whole_package(tmp_path, monkeypatch):
    assert outcome_cache.PACKAGE.name == "robust_jax" and (outcome_cache.PACKAGE / "losses.py").is_file()
    monkeypatch.setattr(outcome_cache, "PACKAGE", tmp_path)
    (tmp_path / "deep").mkdir()
    attacks, prints = {"a": Attack(pgd, ThreatModel("additive", "linf", 0.02))}, []
    for changed_at in (1, 1, 2):
        (tmp_path / "deep" / "module.py").touch()
        os.utime(tmp_path / "deep" / "module.py", (changed_at, changed_at))
        prints.append(outcome_cache.fingerprints(attacks, {}, (), in_turn=False)["a"])
    assert prints[0] == prints[1] != prints[2]


STORED = {
    "a": dict(kind="pgd", perturbation=("flow", "additive"), radius=(0.155, 0.3), steps=1, curve=(0, 0.5)),
    "b": dict(kind="pgd", perturbation="additive", radius=0.3, steps=2),
    "c": dict(kind="pgd", perturbation="additive", radius=0.3, steps=3),
    "d": dict(kind="pgd", perturbation="additive", radius=0.3, steps=4),
}
GIVEN = dict(limit=40, progress=False, pictures=0, batch_size=40)


@pytest.fixture
def interrupted(workdirs, ran):
    """A workdir whose evaluation was interrupted after three attacks, and the files of their outcomes."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(workdirs[1], STORED, **GIVEN)
    ran.clear()
    return workdirs[1], sorted((workdirs[1] / "evaluation_unfinished").iterdir(), key=lambda p: p.stat().st_mtime_ns)


class Planted:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def npz(arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def robust(content):
    """The file changed so that the attack broke nothing."""
    arrays = dict(np.load(io.BytesIO(content)))
    return npz(arrays | {"broken": np.zeros_like(arrays["broken"])})


DAMAGE = {
    "empty": (lambda content: b"", "not a zip file"),
    "cut": (lambda content: content[:-100], "not a zip file"),
    "garbage": (lambda content: b"garbage" * 99, "not a zip file"),
    "a flipped bit": (lambda c: c[: (i := len(c) // 2)] + bytes([c[i] ^ 1]) + c[i + 1 :], "npz: "),
    "planted": (robust, "its content is not what was written"),
    "rows are missing": (lambda c: npz({k: v[:9] if v.ndim else v for k, v in np.load(io.BytesIO(c)).items()}),
                         "its content is not what was written"),
    "an array is missing": (lambda c: npz({k: v for k, v in np.load(io.BytesIO(c)).items() if k != "loss"}),
                            "its content is not what was written"),
    "no checksum": (lambda c: npz({k: v for k, v in np.load(io.BytesIO(c)).items() if k != "checksum"}),
                    "its content is not what was written"),
    "a pickle": (lambda content: pickle.dumps(Planted("ran")), "it is a pickle"),
    "a pickled array": (lambda content: npz({"broken": np.array([Planted("ran")], object)}), "a pickle"),
}  # fmt: skip


def test_a_damaged_outcome_is_named_and_measured_again(interrupted, ran, tmp_path, monkeypatch, caplog):
    folder, (_, second, _) = interrupted
    monkeypatch.chdir(tmp_path)
    content, kept = second.read_bytes(), {p: p.read_bytes() for p in second.parent.iterdir()}
    reports, unpickled = [], tmp_path / "ran"
    for damage, message in [(lambda c: c, ""), *DAMAGE.values()]:
        second.parent.mkdir(exist_ok=True)
        for path, bytes_of in kept.items():
            path.write_bytes(bytes_of)
        second.write_bytes(damage(content))
        ran.clear(), caplog.clear()
        (report,) = evaluate(folder, STORED, **GIVEN).values()
        reports.append(without_seconds(report))
        warned = caplog.text
        if message:
            assert ran == [2, 4] and str(second) in warned and message in warned and "attack b runs again" in warned
        else:
            assert ran == [4] and "again" not in warned
    assert all(report == reports[0] for report in reports) and reports[0]["attacks"]["b"]["accuracy"] < 0.3
    assert not unpickled.exists()


def test_an_outcome_of_other_examples_is_measured_again_whatever_its_checksum(interrupted, ran, caplog):
    folder, (first, second, third) = interrupted
    (expected,) = evaluate(folder, {"b": STORED["b"]}, **GIVEN).values()
    shutil.rmtree(first.parent)
    with pytest.raises(KeyboardInterrupt):
        ran.clear()
        evaluate(folder, STORED, **GIVEN)
    for path, forge in (
        (first, lambda a: {"curve/0": a["curve/0"] ^ True}),
        (second, lambda a: {"broken": np.zeros_like(a["broken"])}),
        (third, lambda a: {"prediction": a["prediction"][:9]}),
    ):
        arrays = dict(np.load(path))
        arrays |= forge(arrays)
        del arrays["checksum"]
        path.write_bytes(npz(arrays | {"checksum": outcome_cache._digest(arrays, path.stem)}))
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, STORED, **GIVEN)
    assert ran == [1, 2, 3]
    warned = caplog.text
    for problem in (
        "outcome of a does not fit (the curve contradicts",
        "outcome of b does not fit (broken contradicts the predictions)",
        "outcome of c does not fit (prediction has shape (9,), and there are 40 examples)",
    ):
        assert problem in warned
    ran.clear()
    (report,) = evaluate(folder, STORED, **GIVEN).values()
    assert ran == [4] and report["attacks"]["b"]["accuracy"] == expected["attacks"]["b"]["accuracy"]


def test_an_outcome_under_the_name_of_another_attack_is_not_believed(interrupted, ran, caplog):
    folder, (_, second, third) = interrupted
    third.write_bytes(second.read_bytes())
    evaluate(folder, STORED, **GIVEN)
    assert ran == [3, 4] and "attack c runs again" in caplog.text


def test_outcomes_are_not_kept_through_a_link_and_the_evaluation_goes_on(workdirs, tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (workdirs[1] / "evaluation_unfinished").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "precious").write_text("precious")
    there = workdirs[1] / "evaluations" / "mine"
    there.mkdir(parents=True)
    for name in ("evaluation.json", "per_example.npz", "adversarial_b.png"):
        (there / name).symlink_to(tmp_path / "precious")
    (report,) = evaluate(workdirs[1], {"b": STORED["b"]}, limit=20, progress=False, out="mine").values()
    assert report["attacks"]["b"]["n"] == 20 and json.loads((there / "evaluation.json").read_text()) == report
    assert "outcome of b cannot be kept" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir()) and (tmp_path / "precious").read_text() == "precious"
