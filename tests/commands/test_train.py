"""`robust-jax train`: mistakes of its flags, in this process; tests/test_programs.py starts the program."""

from __future__ import annotations

import pytest

from robust_jax import commands


@pytest.mark.parametrize(
    "workdir, message",
    [
        ("a,b", "--workdir=a,b: robust-jax evaluate takes a comma for the start of another workdir; leave it out."),
        ("fgr[weight=3]", "Take another name."),
    ],
)
def test_a_workdir_that_other_programs_could_not_read_is_refused(workdir, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        commands.run("train", ["--config=digits_standard", f"--workdir={workdir}"], "train.py")
    stderr = capsys.readouterr().err
    assert end.value.code == 2 and stderr.startswith("train.py: ") and stderr.endswith(f"{message}\n")
    assert repr(workdir) in stderr or f"--workdir={workdir}" in stderr
    assert not any(tmp_path.iterdir())
