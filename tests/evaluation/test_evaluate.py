"""The program level: work directories in, JSON, arrays, pictures and a table out."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import models
from robust_jax.attacks import ATTACKS, pgd
from robust_jax.config import base, complete
from robust_jax.evaluation import identity, masking, outcome_cache
from robust_jax.evaluation.attack import Attack, Source
from robust_jax.evaluation.evaluate import evaluate
from robust_jax.evaluation.from_config import attack_from
from robust_jax.evaluation.page import reproduce
from robust_jax.evaluation.statistics import wilson_interval
from robust_jax.evaluation.trial import Trial, attacked
from robust_jax.losses import margin
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.workdir import runs

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_two_workdirs_leave_everything_the_design_lists(workdirs, tmp_path, capsys):
    reports = evaluate(workdirs, batch_size=64)
    for folder in (workdir / "evaluations" / "test" for workdir in workdirs):
        report = json.loads((folder / "evaluation.json").read_text())
        assert report == json.loads(json.dumps(reports[str(folder.parents[1])]))
        assert set(report) == {
            "clean", "attacks", "worst_case", "split", "checkpoint", "checkpoint_step", "batch_norm", "precision",
            "class_names", "warnings", "versions", "seed", "checks", "name", "identity", "pictures",
        }  # fmt: skip
        assert (report["split"], report["checkpoint_step"], report["batch_norm"]) == ("test", 7, "none")
        assert (report["precision"], report["seed"], report["warnings"]) == ("float32", 0, [])
        assert report["checks"] == 0
        assert {"jax", "jaxlib", "flax", "robust_jax", "python", "device"} <= set(report["versions"])
        shift, warp = report["attacks"]["shift"], report["attacks"]["warp"]
        assert (shift["cost"], warp["cost"]) == (dict(forwards=7, gradients=5), dict(forwards=13, gradients=10))
        assert (warp["settings"]["steps"], warp["settings"]["restarts"]) == (5, 2)
        assert warp["threat"] == {"perturbation": "flow", "norm": "linf", "radius": 0.155, "unit": "px per axis"}
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
    # Pictures of radii are only of the attack that has a curve; common ones go to the comparison.
    common = workdirs[0].parent / "comparisons" / "smooth-steep-test"
    drawn = [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("robustness_*"))]
    own = "evaluations/test/robustness_shift.png"
    assert drawn == ["comparisons/smooth-steep-test/robustness_shift.png", f"smooth/{own}", f"steep/{own}"]
    assert (common / "robustness_shift.png").stat().st_size > 20_000
    assert (common / "trade_off.png").stat().st_size > 20_000  # the two differ in one key
    shared = json.loads((common / "comparison.json").read_text())
    assert shared["workdirs"]["steep"] == {"workdir": str(workdirs[1]), "evaluation": "test", "checkpoint_step": 7}
    assert [row["attack"] for row in shared["table"]] == ["clean", "shift", "warp", "worst case"]
    assert shared["table"][1]["accuracies"]["steep"]["accuracy"] == steep["attacks"]["shift"]["accuracy"]
    assert shared["pictures"] == ["robustness_shift.png", "trade_off.png"]
    assert shared["sweep"] == {"key": "optimizer.weight_decay", "values": [1.0, 0.0]}
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


def test_where_results_cannot_be_written_nothing_is_measured(workdirs, ran, monkeypatch):
    for name in ("evaluation.json", "per_example.npz"):
        (workdirs[0] / "evaluations" / "test" / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"smooth/evaluations/test/{name} is a folder"):
            evaluate(workdirs[0])
        (workdirs[0] / "evaluations" / "test" / name).rmdir()

    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("robust_jax.evaluation.measure.try_to_write", full)
    with pytest.raises(
        ValueError, match=f"writing to {workdirs[1]}/evaluations failed: No space left on device. .*start again"
    ):
        evaluate(workdirs[1])
    assert ran == []


def test_signs_of_masked_gradients_are_among_the_warnings(workdirs, capsys):
    weak = dict(kind="pgd", perturbation="additive", radius=0.05, steps=2, step_size=0.004, random_start=False)
    (report,) = evaluate(workdirs[1], {"weak": weak}, limit=60, checks=64, pictures=0).values()
    assert report["checks"] == 60
    assert {w.split(":")[0] for w in report["warnings"]} == {"one_step", "more_steps", "black_box", "other_losses"}
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
    assert report["warnings"] == [own[0], "steep: 60 of 60 images have a gradient"]  # those that cost little stay
    for signs, message in (
        (("my_signs:absent",), "evaluation.signs='my_signs:absent'.*absent"),
        (("my_signs:no_sign",), "evaluation.signs='my_signs:no_sign' is no sign.*masking.sign.*'outcomes'"),
        (("blackbox",), "evaluation.signs='blackbox'.*Did you mean 'black_box'"),
        ("my_signs:weak", "signs must be a tuple or list"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(workdirs[1], attacks, signs=signs)


def test_loss_surfaces_and_gradients_are_drawn_if_asked_for(workdirs):
    pictures = {"loss_surface_shift.png", "loss_surface_warp.png", "gradients.png"}
    folder = workdirs[0] / "evaluations" / "test-first_30"
    for surfaces, drawn in ((2, pictures), (0, set())):  # the same evaluation, whose pictures are replaced
        evaluate(workdirs[0], limit=30, surfaces=surfaces)
        found = {path.name: path.stat().st_size for path in folder.glob("*.png")}
        assert found.keys() & pictures == drawn and all(found[name] > 10_000 for name in drawn)


def test_the_worst_case_alone(workdirs, capsys):
    (every,) = evaluate(workdirs[1], limit=60, pictures=0).values()
    (short,) = evaluate(workdirs[1], limit=60, worst_case_only=True, pictures=0).values()
    assert short["worst_case"] == every["worst_case"] and "curve" in every["attacks"]["shift"]
    first, second = short["attacks"].values()
    assert (first["seen"], first["after"]) == (round(60 * short["clean"]["accuracy"]), [])
    assert (second["seen"], second["after"]) == (round(60 * every["attacks"]["shift"]["accuracy"]), ["shift"])
    assert "curve" not in first and second["accuracy"] == short["worst_case"]["accuracy"] and second["n"] == 60
    assert "restarts, on what shift left" in " ".join(capsys.readouterr().out.split())


def test_names_are_no_markup_no_formula_and_no_path(trained, workdirs, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / "run[bold]x $x^$", tmp_path / "[red]"]
    for folder in folders:
        monkeypatch.setitem(trained, folder.name, trained["steep"])
        (folder / "checkpoints" / "best" / "7").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    spec = dict(kind="pgd", perturbation="additive", radius=0.3, steps=2, curve=(0, 1))
    name = "[blue]a $x^$ {x}"
    reports = evaluate(folders, {name: spec}, limit=20, progress=False)
    shared = tmp_path / "comparisons" / "run_bold_x_x_-_red_-test-first_20-_blue_a_x_x_"
    for place in (shared, folders[0] / "evaluations" / "test-first_20-_blue_a_x_x_"):
        assert (place / "robustness__blue_a_x_x_.png").exists()
    screen = " ".join(capsys.readouterr().out.split())
    assert "[blue]a" in screen and "run[bold]x" in screen and "[red]" in screen and len(reports) == 2
    for other in ("a/b", "../../up", "x" * 300, "\x1b[31m"):
        with pytest.raises(ValueError, match="attacks: the name .* cannot be used"):
            evaluate(folders, {other: spec})
    with pytest.raises(ValueError, match=r"attacks 'a:b' and 'a b' would write the same files, named 'a_b'"):
        evaluate(folders, {"a:b": spec, "a b": spec})


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
        assert (workdirs[1] / "evaluations" / report["name"] / f"{name}.png").exists()


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
    other = models.bind(one.source.logits_fn.model, variables)
    retrained = dataclasses.replace(one, source=Source(one.source.name, other))
    prints = [outcome_cache.fingerprints({"a": a}, trained["smooth"][0], [], False)["a"] for a in (one, retrained)]
    assert prints[0] != prints[1]
    closure = dataclasses.replace(one, source=Source("closure", lambda x: x.sum((1, 2))))
    assert not outcome_cache.fingerprints({"a": closure}, trained["smooth"][0], [], False)


PARTS = """
from robust_jax import Perturbation, attacks, losses
from robust_jax.spaces.additive import additive as built_in

additive = Perturbation(built_in.zeros, lambda images, delta: images - delta, "additive")


def pgd(logits_fn, images, labels, threat, *, key, steps=1):
    return attacks.pgd(logits_fn, images, labels, threat, key=key, steps=steps)


def margin(logits, labels):
    return losses.margin(logits, labels)
"""


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
    trial, ids = Trial(model, model, attack, jax.random.key(0), dict, 2), jnp.arange(2)

    def run(images):
        return attacked(trial, {"image": images, "label": ids, "id": ids}, 0.5)[0]

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
    with pytest.raises(ValueError, match=r"attacks.a \(kind pgd\) lacks \['radius'\]"):
        attack_from("a", dict(kind="pgd", perturbation="flow"))


def test_errors(workdirs):
    with pytest.raises(ValueError, match="no workdir"):
        evaluate([])
    with pytest.raises(ValueError, match="test.*train.*validation"):
        evaluate(workdirs, split="held_out")
    with pytest.raises(ValueError, match="limit=-1 must be at least 0"):
        evaluate(workdirs, limit=-1)
    with pytest.raises(ValueError, match="batch_size=0 must be above 0"):
        evaluate(workdirs, batch_size=0)
    for given, message in (
        (dict(seed=2**32), "seed=4294967296 must be at most 4294967295"),
        (dict(seed=-1), "seed=-1 must be at least 0"),
        (dict(limit="many"), "limit must be a whole number or None, got 'many'"),
        (dict(batch_size=2.5), "batch_size must be a whole number or None, got 2.5"),
        (dict(signs=3), "signs must be a tuple or list"),
        (dict(checkpoint="newest"), "checkpoint='newest' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(workdirs, **given)


@pytest.mark.parametrize(
    "curve, message",
    [
        ((-1, 1), r"curve=\(-1, 1\): give multiples >= 0"),
        ((0, float("nan")), "give multiples >= 0"),
        ((0, float("inf")), "give multiples >= 0"),
        (("x", 1), "give multiples >= 0"),
        ((0, [1]), "give multiples >= 0"),
        (1.5, "give a tuple of multiples"),
        ("012", "give a tuple of multiples"),
        (range(200_000), "has 200,000 radii: at most 1,000 are measured"),
    ],
)
def test_curves_of_no_radii_or_too_many(curve, message):
    with pytest.raises(ValueError, match=message):
        Attack(pgd, ThreatModel("additive", "linf", 0.1), curve=curve)
    if not isinstance(curve, tuple | float | str):
        curve = tuple(curve)
    with pytest.raises(ValueError, match=f"attacks.a.{message}" if message.startswith("curve") else "attacks.a.curve"):
        attack_from("a", dict(kind="pgd", perturbation="additive", radius=0.1, curve=curve))


def test_curves_may_be_arrays():
    for curve in (np.array([0, 1.5]), jnp.array([0, 1.5]), [0, 1.5], tuple(np.float32([0, 1.5]))):
        assert Attack(pgd, ThreatModel("additive", "linf", 0.1), curve=curve).multiples() == [1.0, 1.5]


def test_a_workdir_given_twice_is_measured_once_and_a_sweep_still_drawn(workdirs, tmp_path):
    attacks = {"shift": dict(kind="fgsm", perturbation="additive", radius=0.05)}
    reports = evaluate([workdirs[0], workdirs[0], workdirs[1]], attacks, limit=20, pictures=0)
    assert list(reports) == list(map(str, workdirs))
    (comparison,) = (tmp_path / "comparisons").glob("*/comparison.json")
    assert json.loads(comparison.read_text())["sweep"]["values"] == [1.0, 0.0]


def test_where_memory_runs_out_signs_are_looked_for_at_fewer_images(workdirs, monkeypatch, caplog):
    original, counts = masking.probe, []

    def small(logits_fn, images, *given, **options):
        counts.append(len(images))
        if len(images) > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return original(logits_fn, images, *given, **options)

    monkeypatch.setattr(masking, "probe", small)
    weak = dict(kind="pgd", perturbation="additive", radius=0.05, steps=2, step_size=0.004, random_start=False)
    (report,) = evaluate(workdirs[1], {"weak": weak}, limit=60, checks=60, pictures=0).values()
    assert counts == [60, 30, 15] and "looked for at 15 images" in caplog.text
    assert report["checks"] == 15
    assert any(warning.startswith("other_losses:") for warning in report["warnings"])


def test_a_run_that_is_not_finished_is_told(workdirs):
    (workdirs[0] / "checkpoints" / "latest" / "1000").rename(workdirs[0] / "checkpoints" / "latest" / "9")
    (workdirs[0] / "metrics.jsonl").write_text('{"step": 12}\n')
    reports = evaluate(workdirs, {}, limit=20, pictures=0)
    told = [[w for w in report["warnings"] if w.startswith("training:")] for report in reports.values()]
    assert told == [["training: it is not finished, step 12 of 101"], []]


def test_a_missing_checkpoint_is_told_before_anything_is_measured(workdirs):
    (workdirs[1] / "checkpoints" / "best" / "7").rmdir()
    with pytest.raises(ValueError, match="steep holds no best checkpoint: .* take the latest one"):
        evaluate(workdirs, limit=20)
    assert not (workdirs[0] / "evaluations").exists()


def test_images_of_another_size_are_other_images(workdirs, monkeypatch, capsys):
    restored = runs.restored

    def resized(workdir, *given):
        found = restored(workdir, *given)
        found.config.data.eval_resize = 16 * (Path(workdir).name == "steep")
        return found

    monkeypatch.setattr(runs, "restored", resized)
    reports = evaluate(workdirs, {}, limit=20, pictures=0)
    assert "These are not the same images" in capsys.readouterr().out
    assert len({report["identity"]["examples"] for report in reports.values()}) == 2


def test_parts_of_ones_own_are_not_taken_for_the_built_in_ones_of_their_names(workdirs, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_parts_2.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    common = dict(radius=0.05, steps=1)
    attacks = {
        "built_in": dict(kind="pgd", perturbation="additive", **common),
        "own": dict(kind="own_parts_2:pgd", perturbation="additive", **common),
        "loss": dict(kind="pgd", perturbation="additive", loss="own_parts_2:margin", **common),
        "space": dict(kind="pgd", perturbation="own_parts_2:additive", **common),
    }
    (report,) = evaluate(workdirs[0], attacks, limit=20, pictures=0).values()
    found = report["attacks"]
    assert [found[name]["settings"]["attack"] for name in attacks] == ["pgd", "own_parts_2:pgd", "pgd", "pgd"]
    assert found["loss"]["settings"]["loss"] == "own_parts_2:margin"
    assert found["space"]["threat"]["perturbation"] == "own_parts_2:additive"
    names = {}
    exec(
        reproduce.evaluation(workdirs[0], report).rpartition("\n")[0].replace("import robust_jax as rj", ""), {}, names
    )
    again = {name: attack_from(name, spec) for name, spec in names["attacks"].items()}
    assert identity.attacks_of(again) == report["identity"]["attacks"]


def test_another_checkpoint_than_was_asked_for_is_told(workdirs, monkeypatch):
    restored = runs.restored
    monkeypatch.setattr(runs, "restored", lambda *given: restored(*given)._replace(checkpoint="latest"))
    attacks = {"shift": dict(kind="fgsm", perturbation="additive", radius=0.05)}
    (report,) = evaluate(workdirs[0], attacks, limit=20, pictures=0).values()
    assert report["checkpoint"] == "latest"
    assert "checkpoint: the best one is damaged; this is the latest one, of step 7" in report["warnings"]
