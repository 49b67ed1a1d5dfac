"""The tables: plain numbers in CSV, escaped names in LaTeX and Markdown; the command that prints them."""

from __future__ import annotations

import csv
import io
import re
import shutil

import pytest

import robust_jax as rj
from robust_jax import commands
from robust_jax.commands import evaluate


def test_csv_has_a_row_per_evaluation_and_attack_with_plain_numbers(folders, reports):
    rows = list(csv.DictReader(io.StringIO(rj.report(folders).text("csv"))))
    assert len(rows) == 3 * 4
    for i, report in enumerate(reports):
        mine = rows[4 * i : 4 * i + 4]
        entries = [report["clean"], *report["attacks"].values(), report["worst_case"]]
        assert [row["attack"] for row in mine] == ["clean", *report["attacks"], "worst_case"]
        for row, entry in zip(mine, entries, strict=True):
            assert float(row["accuracy"]) == entry["accuracy"] and int(row["n"]) == entry["n"]
            assert [float(row["low"]), float(row["high"])] == entry["interval"]
            assert row["seed"] == str(report["seed"]) and row["split"] == "test"
    assert rows[0]["workdir"] == str(folders[0]) and rows[4]["evaluation"] == "test-seed_1"
    flow, both = rows[1], rows[2]
    assert [flow[k] for k in ("perturbation", "norm", "radius", "kind", "steps", "restarts")] == [
        "flow", "linf", "0.155", "pgd", "20", "3"
    ]  # fmt: skip
    assert both["radius"] == "[0.25, 0.03137255]" and both["restarts"] == "1"


def test_latex_escapes_names_and_needs_booktabs_alone(folders):
    text = rj.report(folders).text("latex")
    assert r"\begin{tabular}{lllrrr}" in text and r"\toprule" in text and r"\bottomrule" in text
    assert r"one \textless{}i\textgreater{} / test-seed\_1" in text and r"both\_100\%" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {5} and len(lines) == 5


def test_markdown_escapes_names(folders, reports):
    lines = rj.report(folders).text("markdown").splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:6]} == {7}
    assert r"flow \<b\>" in lines[3] and f"{100 * reports[0]['clean']['accuracy']:.1f}" in lines[2]
    assert lines[-1].endswith("n = 40.")


def test_the_command_prints_tables_and_writes_pages(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands.main(["report", *map(str, folders), "--format=csv"])
    assert capsys.readouterr().out == rj.report(folders).text("csv")
    commands.main(["report", str(folders[1])])
    assert capsys.readouterr().out == "Written to report.html\n"
    assert (tmp_path / "report.html").read_text() == rj.report(folders[1]).text()
    commands.main(["report", str(folders[1]), "--format=latex", "--out=table.tex"])
    assert (tmp_path / "table.tex").read_text() == rj.report(folders[1]).text("latex")


@pytest.mark.parametrize(
    "arguments, message",
    [(["report"], "needs workdirs"), (["report", "x", "--format=htm"], "x is no folder"),
     (["report", "{}", "--format=htm"], "Did you mean 'html'")],
)  # fmt: skip
def test_a_mistake_is_one_message(arguments, message, folders, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main([argument.format(folders[1]) for argument in arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_evaluate_also_writes_the_page(folders, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "two"
    shutil.copytree(folders[1], workdir)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: None)
    for flag in ((), ("--report",)):
        assert not (workdir / "report.html").exists()
        commands.main(["evaluate", str(workdir), *flag])
    assert f"Written to {workdir / 'report.html'}" in capsys.readouterr().out
    assert (workdir / "report.html").read_text() == rj.report(workdir).text()


def test_tables_say_what_an_attack_saw_and_print_no_escapes():
    from robust_jax.evaluation.page import tables

    rate = {"accuracy": 0.5, "interval": [0.4, 0.6], "n": 10}
    threat = {"perturbation": "flow", "norm": "linf", "radius": 1, "unit": "px"}
    attack = rate | {"threat": threat, "settings": {"attack": "pgd", "steps": 3}, "after": ["x"]}
    report = {"clean": rate, "attacks": {"*z": attack}, "worst_case": rate, "split": "a\x1b]0;<b>"}
    columns = [{"report": report, "folder": "a", "evaluation": "b", "label": "a"}]
    _, row, *_ = csv.DictReader(io.StringIO(tables.as_csv(columns)))
    assert row["after"] == "x" and row["effort"] == "pgd, 3 steps, on what x left"
    for text in (tables.as_csv(columns), tables.as_markdown(columns), tables.as_latex(columns)):
        assert "\x1b" not in text
    assert r"\<b\>" in tables.as_markdown(columns)
    assert "{}*z &" in tables.as_latex(columns)  # the star would belong to the end of the line before
