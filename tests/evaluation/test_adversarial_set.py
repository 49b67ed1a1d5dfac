"""The adversarial images of an evaluation, kept in one file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax import data
from robust_jax.evaluation.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(30, 4, 4, 1)).astype(np.float32)
MODEL = rj.model(lambda w, x: x.reshape(len(x), -1) @ w, RNG.normal(size=(16, 3)).astype(np.float32))
LABELS = np.asarray(MODEL(IMAGES).argmax(-1))
LABELS[::5] = (LABELS[::5] + 1) % 3
ATTACKS = {
    "pixels": dict(kind="pgd", perturbation="additive", radius="1/20", steps=2, curve=(0, 2)),
    "both": dict(kind="pgd", perturbation=("flow", "additive"), radius=(0.2, 0.05), steps=2),
}


@pytest.mark.parametrize("in_turn", [False, True])
def test_the_file_holds_what_was_measured(tmp_path, in_turn):
    path = tmp_path / "sets" / "mine.npz"
    options = dict(key=jax.random.key(0), worst_case_only=in_turn)
    measured = rj.robustness(MODEL, (IMAGES, LABELS), ATTACKS, **options, batch_size=7, save=path)
    without = rj.robustness(MODEL, (IMAGES, LABELS), ATTACKS, **options, batch_size=30)
    assert [p.name for p in path.parent.iterdir()] == ["mine.npz"]
    with np.load(path) as stored:
        kept = dict(stored)
    assert set(kept) == {
        "images", "labels", "id", "prediction", "pixels/images", "pixels/delta/0", "pixels/prediction",
        "pixels/success", "both/images", "both/delta/0", "both/delta/1", "both/prediction", "both/success",
    }  # fmt: skip
    np.testing.assert_array_equal(kept["images"], IMAGES)
    np.testing.assert_array_equal(kept["labels"], LABELS)
    for name, spec in ATTACKS.items():
        outcome = measured.attacks[name]
        np.testing.assert_array_equal(outcome.broken, without.attacks[name].broken)
        images, leaves = kept[f"{name}/images"], [v for k, v in kept.items() if k.startswith(f"{name}/delta/")]
        delta = tuple(leaves) if name == "both" else leaves[0]
        threat = rj.ThreatModel(spec["perturbation"], "linf", 0.2 if name == "pixels" else (0.2, 0.2))
        moved = jnp.clip(threat.perturbation.apply(IMAGES, delta), 0, 1)
        np.testing.assert_allclose(moved, images, atol=1e-6)
        np.testing.assert_array_equal(MODEL(images).argmax(-1), kept[f"{name}/prediction"])
        np.testing.assert_array_equal(kept[f"{name}/success"], kept[f"{name}/prediction"] != LABELS)
        assert images.dtype == np.float32 and leaves[0].dtype == np.float32
        if in_turn:
            np.testing.assert_array_equal(images[~outcome.seen], IMAGES[~outcome.seen])
            assert not any(leaf[~outcome.seen].any() for leaf in leaves) and 0 < (~outcome.seen).sum() < 30


def test_an_attack_that_sees_no_example_leaves_the_clean_images(tmp_path):
    attacks = {"all": dict(kind="pgd", perturbation="additive", radius=1.0, steps=3), "none": ATTACKS["pixels"]}
    measured = rj.robustness(
        lambda x: MODEL(1 - x) - MODEL(x), (IMAGES, LABELS * 0), attacks, key=jax.random.key(0), worst_case_only=True,
        save=tmp_path / "mine.npz",
    )  # fmt: skip
    assert not measured.attacks["none"].seen.any()
    with np.load(tmp_path / "mine.npz") as stored:
        np.testing.assert_array_equal(stored["none/images"], stored["images"])
        assert not stored["none/delta/0"].any() and stored["none/delta/0"].shape == IMAGES.shape


def test_it_is_a_data_set(tmp_path):
    path = tmp_path / "mine.npz"
    rj.robustness(MODEL, (IMAGES, LABELS), ATTACKS, key=jax.random.key(0), save=str(path))
    clean = data.load(f"npz:{path}")
    assert clean.num_classes == 3 and clean.image_shape == (4, 4, 1)
    with np.load(path) as stored:
        source = data.from_arrays(stored["pixels/images"], stored["labels"])
        np.testing.assert_array_equal(source[3]["image"], np.round(255 * stored["pixels/images"][3]))


def test_a_wrong_name_is_told_before_anything_runs(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for path, message in (
        (tmp_path / "mine", "give the name of an .npz file"),
        (tmp_path / "folder.npz", "is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            rj.robustness(MODEL, (IMAGES, LABELS), ATTACKS, key=jax.random.key(0), save=path)


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="attacks.pixels"):
        bad = {"pixels": ATTACKS["pixels"] | {"stepz": 3}}
        rj.robustness(MODEL, (IMAGES, LABELS), bad, key=jax.random.key(0), save=tmp_path / "mine.npz")
    with pytest.raises(ValueError, match="labels"):
        rj.robustness(MODEL, (IMAGES, LABELS + 0.5), ATTACKS, key=jax.random.key(0), save=tmp_path / "mine.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_keeps_it_if_asked(workdirs):
    attacks = {"shift": dict(kind="pgd", perturbation="additive", radius=0.05, steps=1)}
    given = dict(limit=20, checks=0, pictures=0, progress=False)
    (report,) = evaluate(workdirs[0], attacks, **given, save_adversarial=True).values()
    folder = workdirs[0] / "evaluations" / report["name"]
    with np.load(folder / "adversarial.npz") as stored:
        robust = ~stored["shift/success"] & (stored["prediction"] == stored["labels"])
        assert robust.mean() == report["attacks"]["shift"]["accuracy"] and len(robust) == 20
    assert [p.name for p in (workdirs[0] / "evaluations").iterdir()] == [report["name"]]
    evaluate(workdirs[1], attacks, **given)
    assert not list(workdirs[1].rglob("adversarial.npz"))
