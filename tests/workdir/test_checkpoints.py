"""What is saved comes back bit for bit; the newest two are kept; what is damaged is told and moved aside."""

from __future__ import annotations

import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
import tensorstore as ts

from robust_jax.training.step import init_state
from robust_jax.workdir import checkpoints, integrity


def state(seed=0):
    import jax.numpy as jnp
    import optax

    rng = np.random.default_rng(seed)
    variables = {
        "params": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}},
        "batch_stats": {"BatchNorm_0": {"mean": jnp.asarray(rng.normal(size=2), jnp.float32)}},
    }
    return jax.device_get(init_state(variables, optax.adam(0.1), 0.9))


def same(one, other):
    leaves, tree = jax.tree.flatten(one)
    others, other_tree = jax.tree.flatten(other)
    assert tree == other_tree
    for a, b in zip(leaves, others, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_for_bit_with_and_without_its_structure(tmp_path):
    saved_state = state().replace(step=np.int32(12), best=np.float32(0.1))
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") is None and saved.step("best") is None
        saved.save("latest", 12, saved_state)
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") == 12 and saved.step("best") is None
        same(saved.restore("latest", state(1)), saved_state)
        plain = saved.restore("latest")
    np.testing.assert_array_equal(plain["params"]["Dense_0"]["kernel"], saved_state.params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(
        plain["ema"]["params"]["Dense_0"]["kernel"], saved_state.ema["params"]["Dense_0"]["kernel"]
    )
    assert plain["step"] == 12


def test_hosts_agree_on_steps_that_float32_does_not_have(tmp_path, monkeypatch):
    step = 2**24 + 1
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", step, state().replace(step=np.int32(step)))
    monkeypatch.setattr(checkpoints.parallel, "agreed", lambda tree: jax.tree.map(lambda x: float(np.float32(x)), tree))
    with checkpoints.opened(tmp_path) as saved:
        assert saved.resume(state()).step == step


def test_the_newest_two_are_kept_and_a_step_is_replaced(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        for step in (1, 2, 3):
            saved.save("latest", step, state(step))
        saved.save("best", 2, state(2))
        saved.save("latest", 3, state(4))  # again, other contents
        saved.wait("latest")
        assert (saved.step("latest"), saved.step("best")) == (3, 2)
        same(saved.restore("latest", state()), state(4))
        assert saved.steps("latest") == [3, 2] and saved.steps("best") == [2]
    with checkpoints.opened(tmp_path, keep=1) as saved:
        saved.save("latest", 4, state(4))
    assert [p.name for p in (tmp_path / "checkpoints" / "latest").iterdir()] == ["4"]


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state(5))
    half = tmp_path / "checkpoints" / "latest" / "9.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") == 5
        saved.save("latest", 9, state(9))
        saved.wait("latest")
        same(saved.restore("latest", state()), state(9))


def test_restoring_into_another_structure_is_an_error(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state())
        saved.wait("latest")
        with pytest.raises(checkpoints.CheckpointError, match="latest/5 is the state of another model.*batch_stats.*"):
            saved.restore("latest", {"params": np.zeros(3)})


def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch):
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state())
    metadata = tmp_path / "checkpoints" / "latest" / "5" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(b"")  # root may read everything
    monkeypatch.setattr(checkpoints.os, "access", lambda path, _: path != metadata)
    with checkpoints.opened(tmp_path) as saved, pytest.raises(checkpoints.CheckpointError, match="may not be read"):
        saved.resume(state())
    assert metadata.parent.is_dir() and not (tmp_path / "checkpoints" / "damaged").exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A workdir with latest checkpoints of steps 35 and 40, and a best one of step 30."""
    workdir = tmp_path_factory.mktemp("good")
    with checkpoints.opened(workdir, {"seed": 3}) as saved:
        saved.save("best", 30, numbered(30))
        for step in (35, 40):
            saved.save("latest", step, numbered(step), {"loss": [0.5]})
    return workdir


def numbered(step):
    return state(step).replace(step=np.int32(step))


def largest(folder):
    """The file that holds most of the numbers."""
    return max((folder / "default" / "d").iterdir(), key=lambda path: path.stat().st_size)


def each(folder, change):
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        change(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def piped(path):
    path.unlink()
    os.mkfifo(path)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def flip(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replaced_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("40")


def of_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("35"), folder)


def with_metadata(change):
    def damage(folder):
        path = folder / "_CHECKPOINT_METADATA"
        content = json.loads(path.read_text())
        change(content["custom_metadata"]["robust_jax"])
        path.write_text(json.dumps(content))

    return damage


def declared(shape, forget=False):
    """Plants a shape in what says how the largest array is stored; without notes, as an earlier version wrote none."""

    def damage(folder):
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/default/"}).result()
        key = next(key for key in store.list().result() if key.endswith(b"kernel/.zarray") and b"params" in key)
        content = json.loads(store.read(key).result().value)
        store.write(key, json.dumps(content | {"shape": shape, "chunks": shape}).encode()).result()
        if forget:
            path = folder / "_CHECKPOINT_METADATA"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))

    return damage


# What may happen to latest/40.
DAMAGE = {
    "all files cut": lambda f: each(f, cut),
    "all files zeroed": lambda f: each(f, zero),
    "all files empty": lambda f: each(f, empty),
    "data cut": lambda f: cut(largest(f)),
    "data zeroed": lambda f: zero(largest(f)),
    "data empty": lambda f: empty(largest(f)),
    "data missing": lambda f: largest(f).unlink(),
    "data a pipe": lambda f: piped(largest(f)),
    "metadata a pipe": lambda f: piped(f / "_CHECKPOINT_METADATA"),
    "data flipped": lambda f: flip(largest(f)),
    "data folder missing": lambda f: shutil.rmtree(f / "default" / "d"),
    "manifest cut": lambda f: cut(f / "default" / "manifest.ocdbt"),
    "manifest zeroed": lambda f: zero(f / "default" / "manifest.ocdbt"),
    "manifest missing": lambda f: (f / "default" / "manifest.ocdbt").unlink(),
    "tree cut": lambda f: cut(f / "default" / "_METADATA"),
    "tree empty": lambda f: empty(f / "default" / "_METADATA"),
    "tree binary": lambda f: (f / "default" / "_METADATA").write_bytes(bytes(range(256))),
    "tree missing": lambda f: (f / "default" / "_METADATA").unlink(),
    "metadata cut": lambda f: cut(f / "_CHECKPOINT_METADATA"),
    "metadata zeroed": lambda f: zero(f / "_CHECKPOINT_METADATA"),
    "metadata empty": lambda f: empty(f / "_CHECKPOINT_METADATA"),
    "metadata missing": lambda f: (f / "_CHECKPOINT_METADATA").unlink(),
    "metadata a list": lambda f: (f / "_CHECKPOINT_METADATA").write_text("[]"),
    "metadata nested": lambda f: (f / "_CHECKPOINT_METADATA").write_text("[" * 100_000),
    "metadata a folder": lambda f: ((f / "_CHECKPOINT_METADATA").unlink(), (f / "_CHECKPOINT_METADATA").mkdir()),
    "notes of another step": with_metadata(lambda notes: notes.update(step=35)),
    "notes of another config": with_metadata(lambda notes: notes["config"].update(seed=4)),
    "notes without leaves": with_metadata(lambda notes: notes.pop("leaves")),
    "another shape": declared([2, 3]),
    "an absurd shape": declared([10**7, 10**7]),
    "an absurd shape without notes": declared([10**7, 10**7], forget=True),
    "state missing": lambda f: shutil.rmtree(f / "default"),
    "state empty": lambda f: emptied(f / "default"),
    "state a file": lambda f: replaced_by_a_file(f / "default"),
    "step empty": emptied,
    "step a file": replaced_by_a_file,
    "step another": of_another_step,
    "a later step empty": lambda f: (f.with_name("999").mkdir(), emptied(f)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_told_moved_aside_and_the_one_before_it_restored(kind, good, tmp_path, caplog):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "latest" / "40"
    DAMAGE[kind](folder)
    left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    with checkpoints.opened(tmp_path) as saved:
        same(saved.newest(("latest",), state()).state, numbered(35))  # reading changes nothing
        assert saved.step("latest") in (40, 999) and not (tmp_path / "checkpoints" / "damaged").exists()
        found = saved.resume(state())
        assert (found.kind, found.step, found.notes["pending"]) == ("latest", 35, {"loss": [0.5]})
        same(found.state, numbered(35))
        saved.save("latest", 40, numbered(40))
        saved.wait("latest")
        assert saved.steps("latest") == [40, 35]
    moved = tmp_path / "checkpoints" / "damaged" / "latest_40"
    assert sorted(str(p.relative_to(moved)) for p in moved.rglob("*")) == left
    assert all(f"{folder} is damaged" in text and str(folder.with_name("35")) in text for text in caplog.messages)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/latest"])
def test_a_file_in_the_place_of_a_folder_is_told(name, good, tmp_path):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).write_text("x")
    with checkpoints.opened(tmp_path) as saved:
        for call in (lambda: saved.resume(state()), lambda: saved.step("latest")):
            with pytest.raises(checkpoints.CheckpointError, match=f"{name} is a file"):
                call()


def test_a_damaged_best_is_moved_aside_before_the_next_best_would_replace_it(good, tmp_path, caplog):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    best = tmp_path / "checkpoints" / "best" / "30"
    emptied(best)
    with checkpoints.opened(tmp_path) as saved:
        assert saved.resume(state()).step == 40
        saved.save("best", 45, numbered(45))
    assert (tmp_path / "checkpoints" / "damaged" / "best_30").is_dir()
    assert f"{best} is damaged" in caplog.text and "going on from" in caplog.text


def test_an_empty_later_step_does_not_hide_a_good_one(good, tmp_path):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "latest" / "999").mkdir()
    with checkpoints.opened(tmp_path) as saved:
        assert saved.newest(("latest",)).step == saved.resume(state()).step == saved.step("latest") == 40


def test_without_latest_the_best_goes_on_and_without_either_nothing_does(good, tmp_path, caplog):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "latest")
    with checkpoints.opened(tmp_path) as saved:
        found = saved.resume(state())
        assert (found.kind, found.step) == ("best", 30) and "latest holds no checkpoint" in caplog.text
    emptied(tmp_path / "checkpoints" / "best" / "30")
    with checkpoints.opened(tmp_path) as saved:
        for call in (lambda: saved.resume(state()), lambda: saved.restore("best")):
            with pytest.raises(checkpoints.CheckpointError, match="best/30 is damaged.*Nothing was changed"):
                call()
        assert saved.step("best") == 30
        with pytest.raises(checkpoints.CheckpointError, match="holds no latest checkpoint"):
            saved.restore("latest")


@pytest.mark.parametrize("count", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_restored(count, tmp_path):
    """A sample of the bits of all files that hold numbers or say how they are stored."""
    draw, silent, refused = np.random.default_rng(0), [], 0
    expected = draw.normal(size=(64, 64)).astype(np.float32)
    with checkpoints.opened(tmp_path / "good") as saved:
        saved.save("latest", 40, {"w": expected})
    source = tmp_path / "good" / "checkpoints" / "latest" / "40"
    names = [p.relative_to(source) for p in sorted(source.rglob("*")) if p.is_file() and p.stat().st_size]
    names += [largest(source).relative_to(source)] * len(names)
    for i in range(count):
        name = names[draw.integers(len(names))]
        folder = tmp_path / str(i) / "checkpoints" / "latest" / "40"
        shutil.copytree(source, folder)
        flip(folder / name, int(draw.integers(8 * (folder / name).stat().st_size)))
        with checkpoints.opened(tmp_path / str(i)) as saved:
            try:
                if saved.restore("latest")["w"].tobytes() != expected.tobytes():
                    silent.append(name)
            except checkpoints.CheckpointError:
                refused += 1
    assert silent == [] and refused > count / 2


def test_a_checkpoint_of_an_earlier_version_is_restored_with_a_note(good, tmp_path, caplog):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "latest" / "40" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    with checkpoints.opened(tmp_path) as saved:
        found = saved.resume(state())
    same(found.state, numbered(40))
    assert found.notes is None and "earlier version, without checksums" in caplog.text


def test_a_checkpoint_with_the_checksums_of_an_earlier_version_is_verified(good, tmp_path):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "latest" / "40"
    path = folder / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    notes = content["custom_metadata"]["robust_jax"]
    del notes["hash"], notes["checksum"]
    notes["leaves"] = integrity.checksums(numbered(40), "crc32")
    notes["checksum"] = integrity._of_json(notes)
    path.write_text(json.dumps(content))
    with checkpoints.opened(tmp_path) as saved:
        assert saved.newest(("latest",)).step == 40
    flip(largest(folder))
    with checkpoints.opened(tmp_path) as saved:
        assert saved.newest(("latest",)).step == 35


def test_a_step_that_training_replaces_while_it_is_read_is_no_damage(good, tmp_path, monkeypatch, caplog):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    latest = tmp_path / "checkpoints" / "latest"
    read = checkpoints.Checkpoints._read

    def replaced(self, kind, step, template=None):
        if step == 40:
            shutil.move(latest / "40", tmp_path / "away")
            shutil.copytree(good / "checkpoints" / "latest" / "40", latest / "45")
            with_metadata(lambda notes: None)(latest / "45")
            monkeypatch.setattr(checkpoints.integrity, "verify", lambda *_: None)
        return read(self, kind, step, template)

    monkeypatch.setattr(checkpoints.Checkpoints, "_read", replaced)
    with checkpoints.opened(tmp_path) as saved:
        assert saved.newest(("latest",)).step == 45 and caplog.messages == []


def test_a_failed_save_is_one_message_and_the_one_before_stays(tmp_path, monkeypatch, capfd):
    import orbax.checkpoint as ocp

    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state(5))
        saved.wait("latest")

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", full)
        began = time.monotonic()
        with pytest.raises(checkpoints.CheckpointError, match="step 9.*No space left on device.*intact: latest/5"):
            saved.save("latest", 9, state(9))
    assert "Traceback" not in capfd.readouterr().err and time.monotonic() - began < 10
