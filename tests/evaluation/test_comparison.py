"""What several workdirs share lies in a folder of its own, and no comparison replaces another."""

from __future__ import annotations

import json

import pytest

from robust_jax.evaluation import comparison
from robust_jax.evaluation.report import shared_attacks
from robust_jax.evaluation.stored import forget


def report(accuracy, name="test", attack="pgd", mark=1):
    rate = {"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy], "n": 10}
    entry = rate | {
        "threat": {"perturbation": "additive", "norm": "linf", "radius": 0.1, "unit": ""},
        "settings": {"attack": "pgd", "steps": 5},
        "curve": {"multiple": [0, 1], "radius": [0, 0.1], "accuracy": [1, accuracy], "interval": [[0, 1], [0, 1]]},
    }
    whole = {"clean": rate, "attacks": {attack: entry}, "worst_case": rate, "warnings": [], "name": name}
    return whole | {"checkpoint_step": 3, "identity": {"mark": mark}}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_names_tell_the_workdirs_and_their_evaluations(tmp_path):
    one, two = str(tmp_path / "runs" / "fgr"), str(tmp_path / "runs" / "igr [x]")
    (tmp_path / "runs").mkdir()

    def placed(reports):
        return comparison.place_of(reports)

    place = placed({one: report(0.9), two: report(0.8)})
    assert place.root == tmp_path / "runs" / "comparisons" and place.names[0] == "fgr-igr_x_-test"
    assert placed({one: report(0.9), two: report(0.8, "test-latest")}).names[0] == "fgr_test-igr_x__test-latest"
    other = placed({one: report(0.9, mark=2), two: report(0.8)})
    assert other.names[0] == place.names[0] and other.names[1] != place.names[1]
    many = placed({str(tmp_path / "runs" / f"sweep_{i}"): report(0.9) for i in range(20)})
    assert len(many.names[0]) == 80 and many.names[0].startswith("sweep_0-sweep_1-")
    (tmp_path / "a").mkdir()
    apart = placed({one: report(0.9), str(tmp_path / "a" / "fgr"): report(0.9)})
    assert apart.root == tmp_path / "comparisons"
    assert placed({"/x/run": report(0.9), one: report(0.9)}).root.parent.as_posix() == "/x"  # not in the root folder


def test_a_comparison_keeps_its_folder_and_its_pictures(tmp_path):
    reports = {str(tmp_path / name): report(0.9) for name in "ab"}
    first = comparison.keep(reports, ("terms.fgr.weight", [1, 3]))
    assert first == tmp_path / "comparisons" / "a-b-test"
    assert files(first) == ["comparison.json", "robustness_pgd.png", "trade_off.png"]
    assert comparison.keep(reports, None) == first and files(first) == ["comparison.json", "robustness_pgd.png"]
    changed = {folder: report(0.5, mark=2) for folder in reports}
    second = comparison.keep(changed, None)
    assert second != first and second.name.startswith("a-b-test-")
    accuracies = [json.loads((f / "comparison.json").read_text())["table"][1]["accuracies"] for f in (first, second)]
    assert [a["a"]["accuracy"] for a in accuracies] == [0.9, 0.5]


def test_a_folder_of_the_users_is_taken_for_one_comparison_and_keeps_what_is_the_users(tmp_path):
    reports = {str(tmp_path / name): report(0.9) for name in "ab"}
    mine = tmp_path / "paper" / "figure"
    assert comparison.keep(reports, None, str(mine)) == mine
    (mine / "robustness_my_own.png").write_bytes(b"the user's")
    comparison.keep(reports, None, str(mine))
    assert files(mine) == ["comparison.json", "robustness_my_own.png", "robustness_pgd.png"]
    before = (mine / "comparison.json").read_bytes()
    with pytest.raises(
        ValueError, match="paper/figure holds another comparison, with other evaluations, which is kept"
    ):
        comparison.keep({folder: report(0.9, mark=2) for folder in reports}, None, str(mine))
    assert (mine / "comparison.json").read_bytes() == before


@pytest.mark.parametrize("pictures", [["../precious.png"], ["precious.png"], [3], "precious.png", None])
def test_only_pictures_of_evaluations_are_forgotten(tmp_path, pictures):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in (tmp_path / "precious.png", folder / "precious.png"):
        path.write_bytes(b"precious")
    (folder / "comparison.json").write_text(json.dumps({"pictures": pictures}))
    forget(folder, "comparison.json")
    assert files(folder) == ["precious.png"] and (tmp_path / "precious.png").exists()


def test_no_picture_joins_numbers_of_other_images():
    one, two = report(0.9) | {"split": "test"}, report(0.8) | {"split": "validation"}
    assert list(shared_attacks({"a": one, "b": one})) == ["pgd"]
    assert shared_attacks({"a": one, "b": two}) == {}
    fewer = one | {"clean": one["clean"] | {"n": 9}}
    assert shared_attacks({"a": one, "b": fewer}) == {}


def test_no_trade_off_without_a_common_attack(tmp_path):
    reports = {"a": report(0.9), "b": report(0.8, attack="fgsm")}
    assert files(comparison.keep({str(tmp_path / n): r for n, r in reports.items()}, ("seed", [0, 1]))) == [
        "comparison.json"
    ]


def test_a_point_of_the_trade_off_is_the_mean_over_the_seeds_of_a_value(tmp_path, monkeypatch):
    seen = {}
    original = comparison.curves.trade_off

    def drawn(*given, title):
        seen.update(given=given, title=title)
        return original(*given, title=title)

    monkeypatch.setattr(comparison.curves, "trade_off", drawn)
    reports = {str(tmp_path / f"run_{i}"): report(accuracy) for i, accuracy in enumerate((0.9, 0.5, 0.7))}
    comparison.keep(reports, ("epochs", (2.0, 1.0, 2.0)))
    clean, robust, labels = seen["given"]
    assert labels == ["1", "2"] and clean == pytest.approx([0.5, 0.8])
    assert list(robust.values())[0] == pytest.approx([0.5, 0.8])
    assert seen["title"].endswith("mean over seeds")
