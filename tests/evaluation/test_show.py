"""`show`: the table, warnings and files of what `robustness` measured, without a config or a workdir."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.evaluation import Attack

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(30, 4, 4, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
MODEL = rj.model(lambda w, x: x.reshape(len(x), -1) @ w, WEIGHTS)
LABELS = np.asarray(MODEL(IMAGES).argmax(-1))
SPEC = dict(kind="pgd", perturbation="additive", radius="1/20", steps=2, curve=(0, 1))


def measured(batches, attack=SPEC, **options):
    return rj.robustness(MODEL, batches, {"step": attack}, key=jax.random.key(0), **options)


def test_arrays_pairs_and_dicts_are_the_same_examples_and_a_config_the_same_attack():
    whole = measured((IMAGES, LABELS), batch_size=7)
    pairs = measured([(IMAGES[:20], LABELS[:20]), [IMAGES[20:], LABELS[20:]]])
    dicts = measured(iter([{"image": IMAGES, "label": LABELS}]))
    one = measured({"image": IMAGES, "label": LABELS})
    threat = rj.ThreatModel("additive", "linf", 1 / 20)
    given = measured((IMAGES, LABELS), Attack(rj.attacks.pgd, threat, {"steps": 2}, curve=(0, 1)))
    assert 0 < whole.attacks["step"].broken.mean() < 1
    for other in (pairs, dicts, one, given):
        np.testing.assert_array_equal(other.label, LABELS)
        np.testing.assert_array_equal(other.attacks["step"].broken, whole.attacks["step"].broken)
    with pytest.raises(ValueError, match="attacks.step has no option|attacks.step.*no option .*'stepz'"):
        measured((IMAGES, LABELS), SPEC | {"stepz": 3})


def test_show_prints_the_table_and_writes_files_only_if_it_is_told_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = measured((IMAGES, LABELS))
    summary = rj.show(found, name="mine")
    text = capsys.readouterr().out
    accuracy = f"{100 * summary['attacks']['step']['accuracy']:.1f}%"
    assert "Accuracy, n = 30" in text and "mine" in text and accuracy in text and "Written" not in text
    assert list(tmp_path.iterdir()) == []
    again = rj.show(found, save="mine", class_names=("cat", "dog", "eel"))
    assert "Written to mine" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {
        "adversarial_step.png", "evaluation.json", "examples.npz", "per_example.npz", "robustness_step.png"
    }  # fmt: skip
    stored = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(again)) and stored["class_names"] == ["cat", "dog", "eel"]
    assert stored["attacks"]["step"]["accuracy"] == summary["attacks"]["step"]["accuracy"]


def test_results_are_shown_by_their_accuracies():
    found = measured((IMAGES, LABELS))
    robust = 100 * (1 - found.attacks["step"].broken.mean())
    assert repr(found) == f"PerExample(30 examples: clean 100.0%, step {robust:.1f}%)"
    summary = rj.summarise(found) | {"warnings": ["a"]}
    shown = f"clean 100.0%, step {robust:.1f}%, worst case {robust:.1f}%"
    assert repr(summary) == f"Summary({shown}; 1 warning)" and json.loads(json.dumps(summary)) == summary


def test_other_images_are_not_drawn_in_one_chart(tmp_path, capsys):
    for name, images in (("one", IMAGES), ("same", IMAGES), ("dark", 0.5 * IMAGES)):
        rj.show(measured((images, LABELS)), save=tmp_path / name)
    pages = [rj.report([tmp_path / "one", tmp_path / other]) for other in ("same", "dark")]
    assert [len(page.page["curves"]) for page in pages] == [1, 2]
    assert ["not the same images" in page.text("markdown") for page in pages] == [False, True]
    assert ["not the same images" in str(page.page["notes"]) for page in pages] == [False, True]


def test_files_that_it_did_not_write_are_not_replaced(tmp_path):
    found = measured((IMAGES, LABELS))
    rj.show(found, save=tmp_path / "mine")
    rj.show(found, save=tmp_path / "mine")
    cases = (({"mine": 1}, "is no evaluation: .*give another folder"), (None, "an evaluation of a workdir"))
    for content, message in cases:
        path = tmp_path / "mine" / "evaluation.json"
        whole = json.loads(path.read_text()) | {"identity": {}} if content is None else content
        path.write_text(json.dumps(whole))
        with pytest.raises(ValueError, match=message):
            rj.show(found, save=tmp_path / "mine")
        assert json.loads(path.read_text()) == whole and (tmp_path / "mine" / "robustness_step.png").exists()
        path.unlink()
        with pytest.raises(
            ValueError,
            match="holds adversarial_step.png, examples.npz, per_example.npz, which might be replaced: give an",
        ):
            rj.show(found, save=tmp_path / "mine")
        shutil.rmtree(tmp_path / "mine")
        rj.show(found, save=tmp_path / "mine")
    (tmp_path / "mine" / "comparison.json").touch()
    with pytest.raises(ValueError, match="mine holds comparison.json, .*, which might be replaced"):
        rj.show(found, save=tmp_path / "mine")
