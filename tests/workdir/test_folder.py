"""A run's folder: every name either holds checkpoints that can be restored or is refused; its lock; room to write."""

from __future__ import annotations

import errno
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robust_jax.workdir import checkpoints, folder

# Characters that any path may contain, and some names whole.
NAMES = [
    *(f"a{c}b" for c in string.punctuation if c not in "/"),
    *(f"a{c}" for c in ":~ .*"),
    *("-x", " a", "~", "~nobody", "$HOME", "fgr[weight=3]", "a\nb", "a\tb", "gs:", "a:b", "%41", "x" * 200),
    *("ü", "名前", "e\u0301", "🙂"),
]  # fmt: skip


def test_a_name_works_or_is_refused(tmp_path, monkeypatch):
    refused = []
    for name in NAMES:
        try:
            workdir = folder.named(tmp_path / name)
        except folder.WorkdirError as error:
            assert repr(str(tmp_path / name)) in str(error) and "Take another name" in str(error)
            refused.append(name)
            continue
        with folder.claimed(workdir, 0), checkpoints.opened(workdir) as saved:
            saved.save("latest", 3, {"a": np.arange(3)})
        with checkpoints.opened(workdir) as saved:
            np.testing.assert_array_equal(saved.restore("latest")["a"], np.arange(3), err_msg=name)
        assert (tmp_path / name / "checkpoints" / "latest" / "3").is_dir()
    assert refused == ["a[b", "a\\b", "a]b", "a:", "fgr[weight=3]", "gs:"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.named("~/runs") == tmp_path / "runs"
    assert folder.named("~") == tmp_path and folder.named("a/~") == Path("a/~")


HOLDER = """
import sys, time
from pathlib import Path
from robust_jax.workdir import folder
with folder.claimed(Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_and_ends_with_its_process(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(folder.WorkdirError, match="another process trains in it"), folder.claimed(tmp_path, 0):
            pass
    finally:
        holder.kill()
        holder.wait()
    with folder.claimed(tmp_path, 0):
        assert sorted(p.name for p in tmp_path.iterdir()) == [folder.LOCK]


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("what", ["mkdir", "open", "fsync"])
def test_what_cannot_be_written_is_told_before_training(number, what, tmp_path, monkeypatch):
    target = (folder.os, "fsync") if what == "fsync" else (Path, what)
    monkeypatch.setattr(*target, failing(number))
    with (
        pytest.raises(folder.WorkdirError, match=f"cannot be written: {os.strerror(number)}"),
        folder.claimed(tmp_path / "run", 0),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fcntl.flock", failing(number))
    with folder.claimed(tmp_path, 0):
        pass
    assert "is on a file system without locks" in caplog.text
    with folder.claimed(tmp_path, 0):  # nothing that is left behind locks
        pass


def test_what_a_killed_process_left_is_removed_and_no_link_is_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "latest").mkdir(parents=True)
    (workdir / ".probe").symlink_to(outside)
    (workdir / "checkpoints" / "latest" / ".probe").write_text("left")
    for name in (".config.json.12.ab.tmp", ".metrics.jsonl.12.ab.tmp"):
        (workdir / name).write_text("left")
    with folder.claimed(workdir, 0):
        assert sorted(str(p.relative_to(workdir)) for p in workdir.rglob("*")) == [
            folder.LOCK, "checkpoints", "checkpoints/latest",
        ]  # fmt: skip
    assert outside.read_text() == "mine"


def test_the_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("a file")
    with (
        pytest.raises(folder.WorkdirError, match="checkpoints/latest.* cannot be written"),
        folder.claimed(tmp_path, 0),
    ):
        pass


def test_a_checkpoint_must_have_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 2**20))
    with (
        pytest.raises(folder.WorkdirError, match="1 MiB free, and one checkpoint takes 3"),
        folder.claimed(tmp_path, 3 * 2**20),
    ):
        pass


def test_only_the_disks_errors_are_explained(tmp_path):
    with pytest.raises(folder.WorkdirError, match="No space left"), folder.explained(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), folder.explained(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such data")
