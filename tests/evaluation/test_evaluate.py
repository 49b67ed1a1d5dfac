"""The program level: work directories in, JSON, arrays, pictures and a table out."""

import dataclasses
import functools
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import data, models
from robust_jax.attacks import ATTACKS, pgd
from robust_jax.config import base, complete
from robust_jax.evaluation import outcome_cache
from robust_jax.evaluation.attack import Attack, Source
from robust_jax.evaluation.evaluate import evaluate
from robust_jax.evaluation.from_config import attack_from
from robust_jax.evaluation.statistics import wilson_interval
from robust_jax.losses import margin
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.workdir import runs

pytestmark = pytest.mark.usefixtures("quick_compile")


class Linear(nn.Module):
    """A linear classifier."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10)(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def trained():
    """Two linear classifiers of the digits: nearest class mean, and least squares, which is less robust."""
    dataset = data.load("digits")
    batch = dataset.train.take(np.arange(len(dataset.train)))
    images, targets = batch["image"].reshape(len(batch["image"]), -1) / 255, np.eye(10)[batch["label"]]
    means = targets.T @ images / targets.sum(0)[:, None]
    squares = np.linalg.lstsq(np.c_[images, np.ones(len(images))], targets, rcond=None)[0]
    classifiers = {"smooth": (means.T, -(means**2).sum(1) / 2), "steep": (squares[:-1], squares[-1])}
    return {
        name: ({"params": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}, dataset)
        for name, (kernel, bias) in classifiers.items()
    }


@pytest.fixture
def workdirs(trained, tmp_path, monkeypatch):
    config = base()
    config.evaluation.limit = 200
    config.evaluation.checks = 0
    config.attacks.shift = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.05, curve=(0, 1, 2), steps=5)
    config.attacks.warp = dict(kind="pgd", perturbation="flow", norm="linf", radius=0.155, steps=5, restarts=2)

    def restore(workdir, checkpoint, data_dir, trust=()):
        variables, dataset = trained[workdir.name]
        own = config.copy_and_resolve_references()
        own.optimizer.weight_decay = float(workdir.name == "smooth")
        return runs.Restored(own, Linear(), variables, dataset, 9 if checkpoint == "latest" else 7)

    monkeypatch.setattr(runs, "restore", restore)
    folders = [tmp_path / name for name in trained]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    return folders


def test_two_workdirs_leave_everything_the_design_lists(workdirs, capsys):
    reports = evaluate(workdirs, batch_size=64)
    for folder in workdirs:
        report = json.loads((folder / "evaluation.json").read_text())
        assert report == json.loads(json.dumps(reports[str(folder)]))
        assert set(report) == {
            "clean", "attacks", "worst_case", "split", "checkpoint_step", "batch_norm", "precision", "warnings",
            "versions", "seed", "checks",
        }  # fmt: skip
        assert (report["split"], report["checkpoint_step"], report["batch_norm"]) == ("test", 7, "none")
        assert (report["precision"], report["seed"], report["warnings"]) == ("float32", 0, [])
        assert report["checks"] == 0
        assert {"jax", "jaxlib", "flax", "robust_jax", "python", "device"} <= set(report["versions"])
        shift, warp = report["attacks"]["shift"], report["attacks"]["warp"]
        assert (shift["cost"], warp["cost"]) == (dict(forwards=7, gradients=5), dict(forwards=13, gradients=10))
        assert (warp["settings"]["steps"], warp["settings"]["restarts"]) == (5, 2)
        assert warp["threat"] == {"perturbation": "flow", "norm": "linf", "radius": 0.155, "unit": "px"}
        assert shift["curve"]["accuracy"][:2] == [report["clean"]["accuracy"], shift["accuracy"]]

        # The JSON can be counted again from the arrays.
        with np.load(folder / "per_example.npz") as arrays:
            clean = arrays["clean/prediction"] == arrays["label"]
            robust = {name: ~arrays[f"{name}/broken"] for name in ("shift", "warp")}
        assert clean.size == report["clean"]["n"] == 200
        assert report["clean"]["accuracy"] == clean.mean() > 0.85
        for name, kept in robust.items():
            assert report["attacks"][name]["accuracy"] == kept.mean() < clean.mean()
            assert report["attacks"][name]["interval"] == list(wilson_interval(int(kept.sum()), 200))
            assert (folder / f"adversarial_{name}.png").stat().st_size > 20_000
        assert report["worst_case"]["accuracy"] == (robust["shift"] & robust["warp"]).mean()
        assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    smooth, steep = reports.values()
    assert smooth["attacks"]["shift"]["curve"]["accuracy"][2] > steep["attacks"]["shift"]["curve"]["accuracy"][2] + 0.05
    # The common picture goes into the first folder, and only for the attack that has a curve.
    assert sorted(p.name for folder in workdirs for p in folder.glob("robustness_*")) == ["robustness_shift.png"]
    assert (workdirs[0] / "robustness_shift.png").stat().st_size > 20_000
    assert (workdirs[0] / "trade_off.png").stat().st_size > 20_000  # the two differ in one key
    screen = capsys.readouterr().out
    for text in ("smooth", "steep", "worst case", "flow linf 0.155 px", "5 steps × 2 restarts", "n = 200"):
        assert text in screen
    assert f"{100 * smooth['worst_case']['accuracy']:.1f}% [" in screen


def test_the_numbers_do_not_depend_on_the_batch_size(workdirs):
    attacks = {"shift": dict(kind="pgd", perturbation="additive", radius=0.05, steps=5)}
    few, many = (evaluate(workdirs[0], attacks, limit=60, batch_size=size, pictures=0) for size in (17, 250))
    (few,), (many,) = few.values(), many.values()
    for report in (few, many):
        for attack in report["attacks"].values():
            del attack["seconds"]
    assert few == many


def test_signs_of_masked_gradients_are_among_the_warnings(workdirs, capsys):
    weak = dict(kind="pgd", perturbation="additive", radius=0.05, steps=2, step_size=0.004, random_start=False)
    (report,) = evaluate(workdirs[1], {"weak": weak}, limit=60, checks=64, pictures=0).values()
    assert report["checks"] == 60
    assert {w.split(":")[0] for w in report["warnings"]} == {"one_step", "more_steps", "black_box"}
    assert "Warning, steep: one_step: FGSM breaks" in capsys.readouterr().out


OWN_SIGNS = """
from robust_jax.evaluation.masking import sign

@sign("outcomes")
def weak(look):
    names = [name for name, outcome in look.measured.attacks.items() if outcome.broken.mean() < 0.9]
    return [f"weak: {name} leaves more than one image in ten" for name in names]

@sign("gradients")
def steep(look):
    return [f"steep: {(look.slopes[1] > 0).sum()} of {len(look.images)} images have a gradient"]

def no_sign(look):
    return []
"""


def test_signs_of_the_users_own_are_among_the_warnings(workdirs, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_signs.py").write_text(OWN_SIGNS)
    monkeypatch.syspath_prepend(tmp_path)
    attacks = {"weak": dict(kind="pgd", perturbation="additive", radius=0.01, steps=1)}
    given = dict(limit=60, pictures=0, signs=("my_signs:steep", "my_signs:weak"))
    (report,) = evaluate(workdirs[1], attacks, **given, checks=20).values()
    own = ["weak: weak leaves more than one image in ten", "steep: 20 of 20 images have a gradient"]
    assert [w for w in report["warnings"] if w in own] == own
    assert "Warning, steep: steep: 20 of 20 images have a gradient" in capsys.readouterr().out
    (report,) = evaluate(workdirs[1], attacks, **given, checks=0).values()
    assert report["warnings"] == own[:1]
    for signs, message in (
        (("my_signs:absent",), "evaluation.signs='my_signs:absent'.*absent"),
        (("my_signs:no_sign",), "evaluation.signs='my_signs:no_sign' is no sign.*masking.sign.*'outcomes'"),
        (("blackbox",), "evaluation.signs='blackbox'.*Did you mean 'black_box'"),
        ("my_signs:weak", "give a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(workdirs[1], attacks, signs=signs)


def test_the_worst_case_alone(workdirs, capsys):
    (every,) = evaluate(workdirs[1], limit=60, pictures=0).values()
    (short,) = evaluate(workdirs[1], limit=60, worst_case_only=True, pictures=0).values()
    assert short["worst_case"] == every["worst_case"] and "curve" in every["attacks"]["shift"]
    first, second = short["attacks"].values()
    assert (first["seen"], first["after"]) == (round(60 * short["clean"]["accuracy"]), [])
    assert (second["seen"], second["after"]) == (round(60 * every["attacks"]["shift"]["accuracy"]), ["shift"])
    assert "curve" not in first and second["accuracy"] == short["worst_case"]["accuracy"] and second["n"] == 60
    assert "restarts, on what was left" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def ran(monkeypatch):
    """The names of the attacks that run; those after the third are interrupted."""
    module = sys.modules["robust_jax.evaluation.robustness"]  # the package has the function under that name
    names, original = [], module._outcome

    def counted(trial, *given):
        if len(names) == 3:
            raise KeyboardInterrupt
        names.append(trial.attack.all_settings()["steps"])
        return original(trial, *given)

    monkeypatch.setattr(module, "_outcome", counted)
    return names


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
    assert not (workdirs[1] / "evaluation.json").exists()
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
    assert ran == [4] and not folder.exists()
    ran.clear()
    three = {name: attacks[name] for name in "abc"}
    (whole,) = evaluate(workdirs[0].with_name("steep"), three, **given).values()
    assert ran == [1, 2, 3]
    for name in three:
        assert without_seconds(resumed)["attacks"][name] == without_seconds(whole)["attacks"][name]
    with np.load(workdirs[1] / "per_example.npz") as arrays:
        assert arrays["b/loss"].shape == (40,)
    assert not list(workdirs[1].glob("adversarial_*.png"))


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


def test_outcomes_depend_on_the_code_of_the_whole_package():
    assert outcome_cache.PACKAGE.name == "robust_jax" and (outcome_cache.PACKAGE / "losses.py").is_file()


def test_attacks_given_replace_the_configs(workdirs):
    attacks = {
        "mine: 1": Attack(pgd, ThreatModel("additive", "l2", 0.5), dict(steps=3)),
        "data": dict(kind="fgsm", perturbation="affine", radius=(10, 1, 1), curve=(0.5,)),
    }
    given = dict(limit=20, split="validation", checkpoint="latest", seed=5)
    (report,) = evaluate(str(workdirs[1]), attacks, **given).values()
    assert (report["split"], report["checkpoint_step"], report["seed"]) == ("validation", 9, 5)
    assert list(report["attacks"]) == ["mine: 1", "data"]
    assert report["attacks"]["data"]["curve"]["radius"] == [[5, 0.5, 0.5], [10, 1, 1]]
    for name in ("adversarial_mine_1", "adversarial_data", "robustness_data"):
        assert (workdirs[1] / f"{name}.png").exists()


def test_a_transfer_attack_is_a_row_of_the_evaluation_and_part_of_what_it_resumes(workdirs, capsys, trained):
    smooth, steep = workdirs
    spec = dict(kind="pgd", perturbation="additive", norm="linf", radius=0.05, steps=5)
    transfer = spec | {"source": str(steep)}
    found = evaluate(smooth, {"own": spec, "transfer": transfer}, progress=False, pictures=0)[str(smooth)]["attacks"]
    assert found["own"]["accuracy"] < found["transfer"]["accuracy"]
    assert found["transfer"]["settings"]["source"] == str(steep)
    assert "made on" in capsys.readouterr().out
    one = attack_from("transfer", transfer)
    variables = jax.tree.map(lambda w: 2 * w, one.source.logits_fn.variables)
    retrained = dataclasses.replace(one, source=Source(one.source.name, models.bind(Linear(), variables)))
    prints = [outcome_cache.fingerprints({"a": a}, trained["smooth"][0], [], False)["a"] for a in (one, retrained)]
    assert prints[0] != prints[1]
    closure = dataclasses.replace(one, source=Source("closure", lambda x: x.sum((1, 2))))
    assert not outcome_cache.fingerprints({"a": closure}, trained["smooth"][0], [], False)


@pytest.mark.parametrize("kind", ATTACKS)
def test_every_attack_of_a_completed_config_can_be_traced(kind):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    space, norm = {
        "adef": ("flow", "linf"), "stadv": ("flow", "linf"), "grid": ("affine", "linf"), "ead": ("additive", "l1"),
        "carlini_wagner": ("additive", "l2"), "ddn": ("additive", "l2"),
    }.get(kind, ("additive", "linf"))  # fmt: skip
    c.attacks.a = dict(kind=kind, perturbation=space, norm=norm, radius=(9.0, 1.0, 1.0) if space == "affine" else 0.1)
    attack = attack_from("a", complete(c).attacks.a)
    model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((16, 3)))
    robustness = sys.modules["robust_jax.evaluation.robustness"]
    trial, ids = robustness._Trial(model, model, attack, jax.random.key(0), dict), jnp.arange(2)

    def run(images):
        return robustness._attacked(trial, {"image": images, "label": ids, "id": ids}, 0.5)[0]

    found = jax.eval_shape(run, jnp.zeros((2, 4, 4, 1)))
    assert found.shape == (2, 4, 4, 1)


def test_attack_from_a_config():
    spec = dict(kind="pgd", perturbation="additive", radius="8/255", steps=10, loss="margin", curve=[0, 1])
    attack = attack_from("a", spec)
    assert attack.threat.radius == pytest.approx(8 / 255)
    assert attack.settings == {"steps": 10, "loss": margin} and attack.curve == (0, 1)
    for change, message in (
        (dict(kind="pdg"), "kind='pdg'.*'fgsm'.*'pgd'"),
        (dict(step=3), r"'step'.*'restarts'.*'steps'"),
        (dict(loss="hinge"), "hinge.*cross_entropy"),
        (dict(norm="l3x"), "l3x"),
    ):
        with pytest.raises(ValueError, match=message):
            attack_from("a", spec | change)
    with pytest.raises(ValueError, match="radius"):
        attack_from("a", dict(kind="pgd", perturbation="flow"))


def test_errors(workdirs):
    with pytest.raises(ValueError, match="no workdir"):
        evaluate([])
    with pytest.raises(ValueError, match="test.*train.*validation"):
        evaluate(workdirs, split="held_out")
    with pytest.raises(ValueError, match="limit"):
        evaluate(workdirs, limit=-1)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        evaluate(workdirs, batch_size=0)
