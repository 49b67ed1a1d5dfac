"""What a config builds, the workdir's claim on its config, and a run restored from its workdir."""

from __future__ import annotations

import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_jax import data
from robust_jax.config import base, build, complete
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.training.step import init_state
from robust_jax.workdir import checkpoints, runs, saved_config


def config(**changes):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.flow = dict(kind="pgd", perturbation="flow", radius="1/4")
    for path, value in changes.items():
        *groups, name = path.split("__")
        at = c
        for group in groups:
            at = at[group]
        at[name] = value
    return complete(c)


pytestmark = pytest.mark.usefixtures("quick_compile")


@cache
def initial():
    return jax.device_get(build.init_variables(build.create_model(config(), 10), (8, 8, 1), seed=0))


def save(workdir, kind, step):
    variables = jax.tree.map(lambda x: x + np.float32(step), initial())
    state = init_state(variables, optax.sgd(0.1), 0.0).replace(step=jnp.int32(step))
    with checkpoints.opened(workdir) as saved:
        saved.save(kind, step, jax.device_get(state))
    return variables


def test_the_dataset_and_its_limit():
    whole = build.load_dataset(config())
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (1293, 144, 360)
    few = build.load_dataset(config(data__limit=50))
    again = build.load_dataset(config(data__limit=50))
    other = build.load_dataset(config(data__limit=50, seed=1))
    assert len(few.train) == len(set(few.train.ids)) == 50 and len(few.validation) == 144
    np.testing.assert_array_equal(few.train.ids, again.train.ids)
    assert set(few.train.ids) <= set(whole.train.ids) and set(few.train.ids) != set(other.train.ids)
    assert len(build.load_dataset(config(data__limit=1293)).train) == 1293
    for wrong, message in ((1294, ": give 1 to 1293"), (-1, " must be at least 0")):
        with pytest.raises(ValueError, match=f"data.limit={wrong}{message}"):
            build.load_dataset(config(data__limit=wrong))


def test_the_model_has_the_configs_settings():
    model = build.create_model(config(model__dtype="bfloat16"), 7)
    assert (model.num_classes, model.dtype) == (7, jnp.bfloat16)
    assert (model.mean, model.std) == (pytest.approx((0.305,)), pytest.approx((0.376,)))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    vgg = build.create_model(config(model__name="vgg11", sync_batch_norm=True), 10)
    assert vgg.batch_norm_axis == "devices"
    assert build.create_model(config(model__name="vgg11"), 10).batch_norm_axis is None
    with pytest.raises(ValueError, match="digits_cnn.*batch_norm_axis"):
        build.create_model(config(sync_batch_norm=True), 10)


def test_the_seed_draws_the_weights():
    model = build.create_model(config(), 10)
    one, same, other = initial(), *(build.init_variables(model, (8, 8, 1), seed) for seed in (0, 1))
    kernels = [v["params"]["Dense_1"]["kernel"] for v in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01


def test_claim_writes_the_config_and_it_reads_back(tmp_path):
    c = config(schedule__boundaries=(1.0, 2.0), epochs=3.0)
    runs.claim(c, tmp_path / "a" / "b")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["config.json"]
    back = saved_config.read_config(tmp_path / "a" / "b")
    assert back.to_dict() == c.to_dict() == complete(back).to_dict()
    assert back.attacks.flow.radius == 0.25 and back.schedule.boundaries == (1.0, 2.0)


def test_a_perturbation_of_ones_own_is_written_by_its_name(tmp_path):
    c = config()
    mine = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: x + d[:, :, None, None], name="brightness")
    c.terms.gain = dict(kind="first_order_gain", perturbation=mine, radius=0.1)
    c = complete(c)
    assert c.terms.gain.perturbation is mine
    runs.claim(c, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["terms"]["gain"]["perturbation"] == "brightness"


def test_another_config_is_refused_once_there_is_a_checkpoint_and_the_keys_are_named(tmp_path):
    runs.claim(config(), tmp_path)
    runs.claim(config(seed=1), tmp_path)  # nothing was trained yet, say after a mistake
    runs.claim(config(), tmp_path)
    save(tmp_path, "latest", 3)
    runs.claim(config(), tmp_path)
    with pytest.raises(ValueError) as error:
        runs.claim(config(seed=1, optimizer__momentum=0.5), tmp_path)
    for text in ("optimizer.momentum: 0.9 there, 0.5 now", "seed: 0 there, 1 now", "another workdir"):
        assert text in str(error.value)
    assert saved_config.read_config(tmp_path).seed == 0  # the refused one left no trace
    more = config()
    more.terms.fgr = dict(kind="gradient_norm", perturbation="flow")
    with pytest.raises(ValueError, match="terms.fgr.weight: None there, 1.0 now"):
        runs.claim(complete(more), tmp_path)


def test_what_changes_no_weight_may_change(tmp_path):
    runs.claim(config(), tmp_path)
    save(tmp_path, "latest", 3)
    free = config(
        attacks__flow__steps=100, log_every_steps=7, checkpoint_every_steps=3, evaluation__limit=5, data__data_dir="/x"
    )
    runs.claim(free, tmp_path)
    assert saved_config.read_config(tmp_path).attacks.flow.steps == 100


def test_the_config_of_a_finished_run_stays(tmp_path, caplog):
    runs.claim(config(), tmp_path, 9)
    save(tmp_path, "latest", 3)
    other = config(attacks__flow__steps=100, evaluation__limit=5)
    runs.claim(other, tmp_path, 9)  # a run that goes on has the newest attacks
    assert saved_config.read_config(tmp_path).attacks.flow.steps == 100 and not caplog.text
    runs.claim(config(), tmp_path, 9)
    save(tmp_path, "latest", 9)
    before = (tmp_path / "config.json").stat()
    runs.claim(config(), tmp_path, 9)
    assert not caplog.text
    runs.claim(other, tmp_path, 9)
    assert "its config.json stays, which has other values of attacks.flow.steps, evaluation.limit" in caplog.text
    after = (tmp_path / "config.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert saved_config.read_config(tmp_path).attacks.flow.steps == 40
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        runs.claim(config(seed=1), tmp_path, 9)


def test_the_attack_that_selects_checkpoints_may_not_change(tmp_path):
    runs.claim(config(select_by="flow"), tmp_path)
    save(tmp_path, "latest", 3)
    with pytest.raises(ValueError, match="attacks.flow.steps: 40 there, 100 now"):
        runs.claim(config(select_by="flow", attacks__flow__steps=100), tmp_path)


def test_restore(tmp_path):
    runs.claim(config(), tmp_path)
    with pytest.raises(ValueError, match="holds no best checkpoint"):
        runs.load(tmp_path)
    expected = {kind: save(tmp_path, kind, step) for kind, step in (("best", 3), ("latest", 9))}
    for kind, step in (("best", 3), ("latest", 9)):
        found = runs.load(tmp_path, kind)
        assert (found.step, found.dataset.name, found.config.attacks.flow.radius) == (step, "digits", 0.25)
        assert jax.tree.structure(found.variables) == jax.tree.structure(expected[kind])
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected[kind])
        logits = jax.eval_shape(lambda v, m=found.model: m.apply(v, jnp.zeros((2, 8, 8, 1))), found.variables)
        assert logits.shape == (2, 10) and found.logits_fn(jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
        assert repr(found) == f"Trained(digits_cnn on digits, step {step})"
    with pytest.raises(ValueError, match="'newest'.*latest.*best"):
        runs.load(tmp_path, "newest")
    with pytest.raises(
        ValueError, match="there is no folder .*nowhere; a workdir is a folder that robust-jax train wrote.$"
    ):
        runs.load(tmp_path / "nowhere")


def test_examples_are_those_of_an_evaluation_resized_as_the_config_says(tmp_path):
    runs.claim(config(data__eval_resize=12), tmp_path)
    save(tmp_path, "best", 3)
    found = runs.load(tmp_path)
    for split in ("train", "validation", "test"):
        images, labels = found.examples(9, split)
        source = getattr(found.dataset, split)
        (evaluated,) = data.Batches(source, 9, 16, resize=12)
        np.testing.assert_array_equal(images, evaluated["image"][:9])
        np.testing.assert_array_equal(labels, evaluated["label"][:9])
        assert images.shape == (9, 8, 8, 1) and (images != data.first_examples(source, 9)[0]).any()
    assert (found.examples(9)[1] == labels).all()  # of the test split
    with pytest.raises(ValueError, match="split='val' is unknown"):
        found.examples(9, "val")
    with pytest.raises(ValueError, match="361 examples are asked for"):
        found.examples(361)


def test_a_config_that_is_a_folder_or_was_changed_is_named(tmp_path):
    runs.claim(config(), tmp_path)
    save(tmp_path, "best", 3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    with pytest.raises(ValueError, match=f"{path} is of another config .seed: 7 there, 0 now.*restore config.json"):
        runs.claim(config(), tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=f"{path} is a folder.*move it away"):
        runs.claim(config(), tmp_path)


def test_without_a_best_checkpoint_the_message_says_how_to_take_the_latest(tmp_path):
    runs.claim(config(), tmp_path)
    save(tmp_path, "latest", 9)
    with pytest.raises(
        ValueError, match="checkpoint='latest', --checkpoint=latest of.*--config.evaluation.checkpoint=latest"
    ):
        runs.load(tmp_path)


def test_variables_of_another_model_are_refused(tmp_path):
    runs.claim(config(), tmp_path / "one")
    save(tmp_path / "one", "best", 3)
    runs.claim(config(model__name="mlp"), tmp_path / "other")
    shutil.move(tmp_path / "one" / "checkpoints", tmp_path / "other" / "checkpoints")
    with pytest.raises(ValueError, match="best/3 is not of the model that config.json describes: params/.* has shape"):
        runs.load(tmp_path / "other")


def test_with_the_best_damaged_the_latest_is_evaluated_with_a_warning(tmp_path, caplog):
    runs.claim(config(), tmp_path)
    save(tmp_path, "best", 3)
    expected = save(tmp_path, "latest", 9)
    best = tmp_path / "checkpoints" / "best" / "3"
    (best / "_CHECKPOINT_METADATA").write_bytes(b"")
    found = runs.load(tmp_path)
    assert (found.step, found.checkpoint) == (9, "latest")
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
    assert f"{best} is damaged" in caplog.text and "latest/9 instead" in caplog.text and best.is_dir()
    (tmp_path / "checkpoints" / "latest" / "9" / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match="no checkpoint in .* is intact: .*best/3 is damaged.*latest/9 is damaged"):
        runs.load(tmp_path)


def test_a_missing_config_is_that_of_the_checkpoints(tmp_path):
    with checkpoints.opened(tmp_path, saved_config.plain(config())) as saved:
        saved.save("latest", 3, {"a": np.zeros(2)})
    assert saved_config.read_config(tmp_path).to_dict() == config().to_dict()
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        runs.claim(config(seed=1), tmp_path)
    assert not (tmp_path / "config.json").exists()
    runs.claim(config(), tmp_path)
    assert saved_config.read_config(tmp_path).to_dict() == config().to_dict()


def test_averaged_weights_are_the_ones_to_evaluate():
    average = {"params": {"w": 2}, "batch_stats": {"m": 4}}
    state = dict(params={"w": 1}, ema=average, batch_stats={"m": 3})
    assert runs.evaluation_variables(state) == average
    assert runs.evaluation_variables(state | {"ema": {}})["batch_stats"] == {"m": 3}
    assert runs.evaluation_variables(state | {"ema": {}, "batch_stats": {}}) == {"params": {"w": 1}}


def test_a_workdir_of_an_earlier_version_has_the_defaults_of_newer_keys(tmp_path):
    runs.claim(config(), tmp_path)
    save(tmp_path, "latest", 3)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["optimizer"]["ema"], old["select_limit"]
    path.write_text(json.dumps(old))
    assert saved_config.read_config(tmp_path).to_dict() == config().to_dict()
    runs.claim(config(), tmp_path)  # the same run, not another one


def test_a_run_of_an_earlier_version_resumes_with_what_every_term_has_by_default(tmp_path):
    now = complete(config())
    old = saved_config.plain(now)
    assert old["terms"]["ce"].pop("batch_norm") == "train"
    saved_config.check_same(tmp_path, old, saved_config.plain(now))
    other = saved_config.plain(now)
    other["terms"]["ce"]["batch_norm"] = "eval"
    with pytest.raises(ValueError, match="terms.ce.batch_norm: 'train' there, 'eval' now"):
        saved_config.check_same(tmp_path, old, other)


def test_a_sweep_is_configs_that_differ_in_one_key():
    a, b = config(), config(seed=3, attacks__flow__steps=7, optimizer__momentum=0.5)
    assert saved_config.swept([a, b, b]) == ("optimizer.momentum", [0.9, 0.5, 0.5])
    for others in ([], [config(seed=1)], [b, config(epochs=3.0)]):
        assert saved_config.swept([a, *others]) is None


def changed(**values):
    """The text of a config.json with other values."""
    content = json.loads(json.dumps(config().to_dict()))
    for path, value in values.items():
        *groups, key = path.split("__")
        group = content
        for name in groups:
            group = group[name]
        group[key] = value
    return json.dumps(content)


DAMAGED = [
    ("", "is empty"),
    ('{"seed": 0', "is no JSON"),
    ("[" * 100_000, "nested too deep"),
    ("[1, 2]", "holds a list, not an object"),
    (changed(model=3), "model='3' must be a group of keys"),
    (changed(data__augment=None), "data.augment='None' must be a group of keys"),
    (changed(attacks__flow="pgd"), "attacks.flow='pgd' must be a group of keys"),
    (changed(model__name=3), "model.name=3 is of type int, not str"),
    (changed(sync_batch_norm=1), "sync_batch_norm=1 is of type int, not bool"),
    (changed(evaluation__checkpoint="lates"), "evaluation.checkpoint='lates' is unknown.*Did you mean 'latest'"),
    (changed(model__std="x"), "model.std='x': give a finite number"),
    (changed(seed=2**32), "seed=4294967296 must be at most 4294967295"),
    (changed(epochs=10**400), "epochs=1000.*: give a finite number"),
    (changed(**{"attacks__\x1b[31m": {}}), r"attacks: the name '\\x1b\[31m' cannot be used"),
]


@pytest.mark.parametrize("content, message", DAMAGED)
def test_a_config_that_cannot_be_read_is_one_message_that_names_the_file(tmp_path, content, message):
    save(tmp_path, "latest", 3)
    (tmp_path / "config.json").write_text(content)
    for call in (saved_config.read_config, runs.load, lambda folder: runs.claim(config(), folder)):
        with pytest.raises(ValueError, match=f"(?s){message}.*Restore it from a copy") as error:
            call(tmp_path)
        assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints", "checkpoints/latest"])
def test_a_run_does_not_write_through_links_in_its_workdir(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(
        ValueError, match=f"{name} is a symbolic link to .*elsewhere: .* make the workdir itself the link"
    ):
        runs.claim(config(), tmp_path / "run")
    assert not list(elsewhere.iterdir())
    (tmp_path / "linked").symlink_to(elsewhere)
    runs.claim(config(), tmp_path / "linked")  # which the user named
    assert (elsewhere / "config.json").is_file()


def test_a_log_whose_checkpoints_were_removed_is_not_replaced_by_that_of_another_config(tmp_path):
    runs.claim(config(), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    runs.claim(config(), tmp_path)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        runs.claim(config(seed=1), tmp_path)


def test_a_workdir_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    runs.claim(config(seed=3), tmp_path / "mine")
    assert saved_config.read_config("~/mine").seed == 3


def test_options_that_are_newer_than_a_run_have_their_defaults(tmp_path):
    c = config()
    c.points.rough = dict(kind="roughest", perturbation="additive", radius=0.1)
    c.terms.own = dict(kind="nowhere:term", at="rough")  # never imported for it
    old = saved_config.plain(c)
    del old["attacks"]["flow"]["restarts"]
    new = saved_config.plain(config())
    assert saved_config.differing(old, old) == {}
    found = saved_config.differing(old, new)
    assert "attacks.flow.restarts" not in found and found["points.rough.scale"] == (1.0, None)
