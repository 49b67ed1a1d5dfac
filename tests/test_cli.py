"""Config files and programs: mistakes are refused in one message, exit status 2."""

from __future__ import annotations

import pytest
from absl import flags

from config_files import written
from robust_jax import cli
from robust_jax.config.command_line import overridden


@pytest.mark.parametrize(
    "line, message",
    [
        ("c.epochs = 'ten'", r"mine.py, line 10: .*epochs"),
        ("c.optimizer.clip_norm = 10**400", r"mine.py, line 10: int too large"),
        ("c.optimiser.name = 'adam'", r"mine.py, line 10: .*optimiser"),
        ("c.bach_size = 64", r"bach_size is unknown: .*'batch_size'"),
        ("c.terms.fgr.method = 'backprop'", r"terms.fgr.method='backprop'.*'double_backprop'"),
    ],
)
def test_mistakes_in_a_config_file(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cli.load_config(written(tmp_path, line))


def test_files_that_are_not_there_or_no_config(tmp_path):
    written(tmp_path, name="a.py"), written(tmp_path, name="b.py")
    with pytest.raises(ValueError, match=r"no such file. There are: .*a.py.*b.py"):
        cli.load_config(str(tmp_path / "c.py"))
    with pytest.raises(ValueError, match="no such file"):
        cli.load_config(str(tmp_path / "nowhere" / "c.py"))
    with pytest.raises(ValueError, match="defines no get_config"):
        cli.load_config(written(tmp_path, text="x = 1\n"))


def test_config_files_import_each_other(tmp_path):
    written(tmp_path / "configs_of_mine", name="first.py")
    text = "from configs_of_mine.first import get_config as first\n\ndef get_config():\n    return first()\n"
    assert cli.load_config(written(tmp_path / "configs_of_mine", name="second.py", text=text)).epochs == 10


@pytest.fixture
def program(tmp_path):
    """Runs `cli.run` as a program with one flag of its own: (status, stderr, what main got)."""
    fresh = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "A folder.", flag_values=fresh, module_name="prog.py")
    path, seen = written(tmp_path), []

    def main(options, overrides):
        seen.append((options.workdir, overrides))
        overridden(cli.load_config(path), overrides)

    def run(*arguments):
        try:
            cli.run(main, ["prog.py", *arguments], options=fresh)
        except SystemExit as end:
            return end.code, seen
        return 0, seen

    return run


def test_run_hands_flags_and_overrides_on(program):
    assert program("--workdir=/x", "--config.epochs=3", "-config.seed=4") == (
        0, [("/x", ["--config.epochs=3", "-config.seed=4"])]
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--wrkdir=/x"], "wrkdir.*--workdir.*--config.KEY=VALUE"),
        (["--config.epoch=3"], "no key 'epoch'.*'epochs'"),
        (["--config.epochs", "3"], "unexpected .*'3'.*--config.KEY=VALUE"),
        (["spare"], "unexpected .*'spare'"),
    ],
)
def test_run_exits_with_2_and_one_message(program, arguments, message, capsys):
    status, _ = program(*arguments)
    stderr = capsys.readouterr().err
    assert status == 2 and stderr.startswith("prog.py: ") and stderr.count("\n") == 1
    assert "Traceback" not in stderr
    import re

    assert re.search(message, stderr)


def test_default_workdir():
    assert cli.default_workdir("configs/digits_fgr.py") == "runs/digits_fgr"


def test_a_wrong_type_in_a_file_names_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "bad.py").write_text(
        "from robust_jax.config import base\n\n\ndef get_config():\n    c = base()\n    c.epochs = 'abc'\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="bad.py, line 6"):
        cli.load_config("configs/bad.py")


def test_a_config_with_an_argument_has_a_workdir_of_its_own():
    assert cli.default_workdir("configs/digits_methods.py:trades") == "runs/digits_methods_trades"
    assert cli.default_workdir("configs/digits_fgr.py") == "runs/digits_fgr"


def parsed(positional, *arguments):
    """The flags of a program that takes arguments without a name."""
    fresh = flags.FlagValues()
    flags.DEFINE_list("workdir", ["none"], "Folders.", flag_values=fresh, module_name="prog.py")
    flags.DEFINE_string("table", "", "A name.", flag_values=fresh, module_name="prog.py")
    cli._parse(fresh, ["prog.py", *arguments], positional)
    return fresh


def test_arguments_without_a_name_add_to_a_list_and_contradict_another_flag():
    assert parsed(("workdir",)).workdir == ["none"] and parsed(("workdir",), "a", "b", "c").workdir == ["a", "b", "c"]
    assert parsed(("workdir",), "--workdir=a", "b", "c").workdir == ["a", "b", "c"]
    with pytest.raises(ValueError, match="table is given twice, 'x' and 'y'"):
        parsed(("table",), "--table=x", "y")
