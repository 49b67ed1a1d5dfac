"""Tables of results: the page is that of the files, weights are chosen as the rule says, every row has its config."""

import copy
import functools
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from test_readme import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A program of the benchmarks by its name; its flags, and what it imports from beside it, are forgotten later."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    known = set(flags.FLAGS)
    yield importlib.import_module
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
    beside = {path.stem for path in BENCHMARKS.glob("*.py")}
    for name in [name for name in sys.modules if name in beside]:
        del sys.modules[name]


def test_the_tables_of_the_pages_are_those_of_the_files(script):
    tables = script("result_tables")
    # What is between such comments is filled in, the rest of a page stays.
    filled = {page.name: re.findall(r"<!-- (\w+\.json) -->\n", page.read_text()) for page in tables.PAGES}
    assert "mnist_smooth_short.json" in filled["results.md"] and "parity.json" in filled["attacks.md"]
    for page in tables.PAGES:
        assert tables.filled(page.read_text()) == page.read_text(), page


# Tables that are older than this rule, until they are measured again. None may be added.
WITHOUT_A_FILE = {"methods.md": 2}
OF_ONE_FILE = ("flow_slope.md", "optimality.md", "reliability.md")  # written by programs, whole


def test_measured_numbers_in_tables_have_a_file():
    number = re.compile(r"\*{0,2}-?\d+\.\d+(?: ± [\d.]+)? ?%?\*{0,2}")

    def is_measured(table):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        return sum(sum(bool(number.fullmatch(cell)) for cell in row) > 1 for row in rows) > 1

    found = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "papers").glob("*.md")):
        outside = re.sub(r"<!-- (\w+\.json)[^>]*-->\n.*?<!-- end of \1 -->", "", page.read_text(), flags=re.DOTALL)
        found[page.name] = sum(map(is_measured, re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE)))
    assert {page: n for page, n in found.items() if n and page not in OF_ONE_FILE} == WITHOUT_A_FILE


def test_every_file_of_a_table_is_on_a_page_and_says_where_its_numbers_come_from():
    names = ("results.md", "methods.md", "attacks.md", "speed.md", "optimality.md", "flow_slope.md", "masking.md")
    pages = "".join((ROOT / "docs" / name).read_text() for name in names)
    files = list((ROOT / "docs" / "results").glob("*.json"))
    assert len(files) > 10
    for path in files:
        if path.name.startswith("reliability_"):  # which has a page of its own
            continue
        found = json.loads(path.read_text())
        assert path.name in pages, path.name
        runs = [run for row in found.get("rows", {}).values() for run in row["seeds"].values()]
        runs = runs or list((found.get("parity") or found.get("peers") or {}).values()) or [found]
        if "command" not in found and "cases" in found:  # each has its own
            runs = list(found["cases"].values())
        for one in runs:
            assert {"command", "hardware", "revision"} <= one.keys(), path.name
            assert "+" not in one["revision"], path.name  # the code was committed


def test_a_table_has_columns_for_worst_cases_and_universal_perturbations_and_a_line_per_pair(tmp_path, script):
    tables, packed = script("result_tables"), script("origin").packed

    def seed(broken):
        measured = {"accuracy": 0.5, "interval": [0.4, 0.6], "n": 10}
        attack = {"threat": {"perturbation": "flow", "norm": "linf", "radius": 0.5, "unit": "px"},
                  "settings": {"attack": "pgd", "steps": 20}}  # fmt: skip
        evaluation = {"clean": measured, "warnings": ["steep"], "versions": {"jax": "1"}}
        evaluation["attacks"] = {name: measured | attack for name in broken}
        rates = {"one": {"targeted universal success": 0.25, "untargeted universal": 0.75}}
        bits = {name: packed(np.isin(np.arange(10), images)) for name, images in broken.items()}
        training = {"seconds": 90, "validation": [[0.5, 0.25], [0.999, 0.5]]}
        return {"evaluation": evaluation, "broken": bits, "universal": rates, "training": training,
                "hardware": "cpu", "revision": "abc", "choice": None,
                "settings": {"select_by": "a", "evaluation": {"checkpoint": "best", "checks": 64}}}  # fmt: skip

    rows = {"ours": {"label": "ours", "seeds": {"0": seed({"a": [0, 1], "b": [1, 2]})}},
            "theirs": {"label": "theirs", "seeds": {"0": seed({"a": [0, 1, 2, 3, 4, 5, 6, 7], "b": [1]})}}}  # fmt: skip
    ball = {"perturbation": "flow", "radius": 1.5, "examples": 100}
    table = {"title": "T", "pairs": [["ours", "theirs"]], "columns": ["a", "b"], "worst": {"worst of both": ["a", "b"]},
             "universal": {"one": ball}, "rows": rows}  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(table))
    page = tables.rendered(tmp_path / "t.json")
    assert "| training | clean | worst of both | one, targeted ↓ | one, untargeted | minutes |" in page
    assert "| ours | 50.0 [40.0, 60.0] |" in page and "| 25.0 | 75.0 | 1.5 |" in page
    assert "| training | clean | `a` | `b` |\n" in page  # each, folded
    assert "70.0 [39.7, 89.2]" in page  # 3 of 10 broken by either
    assert "| first (+) against second (−) | seed | worst of both |" in page
    assert "| ours against theirs | 0 | +5 −0, p = 0.062 |" in page
    assert page.count("<details>") == page.count("</details>") == 4  # no weight is chosen
    assert "| training | 0.5 | 1 |\n|---|---|---|\n| ours | 25.0 | 50.0 |" in page
    assert "the best on attacked (`a`) validation images" in page
    assert "- ours, seed 0: steep" in page and "flow linf 1.5, made in 20 passes over 100 training" in page
    some = tables.rendered(tmp_path / "t.json", "theirs").splitlines()
    assert some[0] == "| training | clean | worst of both |" and some[-1] == "Accuracy in per cent; rows of t.json."
    assert [line.split(" |")[0] for line in some[2:-2]] == ["| theirs"]


def test_what_is_timed_is_written_with_three_digits_and_a_row_may_lack_some_of_it(tmp_path, script, capsys):
    rows = [{"step": "plain", "ms": 1234.5678, "of it": 0.98765}, {"step": "theirs", "ms": 0.012, "runs": 12345}]
    source = {"command": "python a.py", "hardware": "cpu", "revision": "abc", "versions": {"jax": "1"}}
    script("measurements").report({"Steps": rows}, str(tmp_path / "t.json"), source)
    table = (
        "| step | ms | of it | runs |\n|---|---|---|---|\n| plain | 1230 | 0.988 |  |\n| theirs | 0.012 |  | 12345 |\n"
    )
    assert capsys.readouterr().out == f"\nSteps\n\n{table}"
    page = script("result_tables").rendered(tmp_path / "t.json")
    assert page == f"{table}\njax 1. On cpu, revision abc; t.json, from `python a.py`."


def test_the_optimality_is_the_share_of_the_area_below_the_best_of_all(script):
    o = script("optimality")
    one = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)  # radii x images
    other = np.array(
        [[0, 0, 1, 0], [0, 0, 0, 1]], bool
    )  # what it broke at the smaller radius it leaves at the larger one
    found = o.figures({"one": one, "other": other}, [1.0, 2.0])
    assert found["best"] == [50.0, 0.0]
    area = 0.5 * 0.5 + 0.5 * (0.5 + 1)  # of the best: none at 0, half at 1, all at 2
    seen = found["attacks"]["one"]
    assert seen["left"] == [75.0, 50.0] and seen["alone"] == 2, seen
    assert seen["optimality"] == round(100 * (0.5 * 0.25 + 0.5 * (0.25 + 0.5)) / area, 1), seen
    assert found["attacks"]["other"]["alone"] == 2
    assert [script("origin").packed(row) for row in one] == ["80", "c0"]
    assert (o.unpacked("c0", 4) == one[1]).all()
    nothing = o.figures({"one": one & False}, [1.0, 2.0])
    assert nothing["best"] == [100.0, 100.0] and nothing["attacks"]["one"]["optimality"] == 100.0


def test_a_command_is_written_without_what_is_of_one_machine(script):
    command = "python a.py --workdirs=/home/me/runs/one,/home/me/runs/two --data_dir=/data/tfds --out=docs/x.json"
    expected = "python a.py --workdirs=runs/one,runs/two --out=docs/x.json"
    assert script("origin").portable(command) == expected
    command = "python /home/me/benchmarks/a.py --workdirs=/home/me/runs/table/one --out=/home/me/docs/results/x.json"
    expected = "python benchmarks/a.py --workdirs=runs/table/one --out=docs/results/x.json"
    assert script("origin").portable(command) == expected
    assert script("origin").portable("python a.py --out=/tmp/one/two/x.json") == "python a.py --out=two/x.json"


def test_a_table_that_is_measured_in_parts_names_each_command_and_revision_once(script):
    o = script("origin")
    one = {"command": "a", "revision": "1", "hardware": "cpu"}
    assert o.also({}, one) == one and o.also(one, one) == one
    both = o.also(one, one | {"command": "b", "revision": "2"})
    assert both == {"command": "a; b", "revision": "1, 2", "hardware": "cpu"} and o.also(both, one) == both


def test_the_largest_weight_near_standard_accuracy_is_chosen(script):
    cases = [
        {None: 0.975, 3.0: 0.970},
        {None: 0.975, 3.0: 0.969, 1.0: 0.974},
        {None: 0.975, 3.0: 0.9, 1.0: 0.9, 0.3: 0.9},
    ]
    reproduce, types = script("reproduce"), script("table_types")
    mine = types.Row("", "", types.Choice("terms.igr.weight", (3.0, 1.0, 0.3), like="plain"))
    table = types.Table("", {"plain": types.Row("", ""), "mine": mine}, (), {}, {}, 10, (0, 1), ())
    chosen = []
    for accuracies in cases:

        class Plan(reproduce.Plan):
            def config(self, row, seed, value=None):
                return row, seed, value

            def _validated(self, row, config, accuracies=accuracies):
                return accuracies[config[2]]

        config, tried = Plan(table, Path("x"), [], 1.0, Path("x.json")).chosen("mine", 1)
        chosen.append((*config, tried["tried"]))
    assert chosen == [
        ("mine", 1, 3.0, {"3": 0.97}),
        ("mine", 1, 1.0, {"3": 0.969, "1": 0.974}),
        ("mine", 1, 0.3, {"3": 0.9, "1": 0.9, "0.3": 0.9}),
    ]


def test_every_row_of_every_table_has_a_config_and_its_pairs_and_columns_exist(script):
    reproduce, tables = script("reproduce"), script("tables")
    for name, size, table in [(name, size, t) for name, sizes in tables.TABLES.items() for size, t in sizes.items()]:
        plan = reproduce.Plan(table, Path("x"), [], 1.0, Path("x.json"))
        # tests/config has every method
        rows = {"standard": table.rows["standard"]} if name.endswith("_methods") else table.rows
        for row, (_, _, choice) in rows.items():
            config = plan.config(row, table.seeds[0])
            assert config.select_by in ("clean", *table.attacks), (name, size, row)
            assert choice is None or choice.like in table.rows and list(choice.values) == sorted(choice.values)[::-1]
        assert {row for pair in table.pairs for row in pair} <= table.rows.keys(), (name, size)
        for label, columns in table.worst.items():
            assert columns == script("table_types").in_ball_of(columns[0], table.attacks), (name, size, label)


def test_numbers_are_those_of_the_config_today_though_they_are_older_than_a_key_of_it(script):
    reproduce, tables = script("reproduce"), script("tables")
    table = tables.TABLES["mnist_smooth"]["short"]
    stored = json.loads((ROOT / "docs" / "results" / "mnist_smooth_short.json").read_text())["rows"]
    plan = reproduce.Plan(table, Path("x"), ["data.data_dir=elsewhere"], 1.0, Path("x.json"))
    for row, found in stored.items():
        assert plan.is_todays(found["seeds"]["0"], row, 0), row
    one = stored["silu_igr_l2"]["seeds"]["0"]
    todays = functools.partial(plan.is_todays, row="silu_igr_l2", seed=0)
    assert not plan.has("silu_igr_l2", 0) and not plan.is_todays(one, "gelu_igr_l2", 0)
    assert not plan._replace(keys=["epochs=2"]).is_todays(one, "silu_igr_l2", 0)
    assert plan._replace(keys=["evaluation.batch_size=9", "writers=()"]).is_todays(one, "silu_igr_l2", 0)
    new = table._replace(universal={"new": script("table_types").Universal("flow", 1.0)})
    assert not plan._replace(table=new).is_todays(one, "silu_igr_l2", 0)
    tried = one["choice"] | {"tried": {"30": 0.1} | one["choice"]["tried"]}
    assert not todays(one | {"choice": tried})

    def with_attacks(change):
        evaluation = one["evaluation"] | {"attacks": change(copy.deepcopy(one["evaluation"]["attacks"]))}
        return one | {"evaluation": evaluation}

    def other_default(attacks):
        attacks["flow_apgd"]["settings"]["rho"] = 0.7
        return attacks

    assert todays(with_attacks(lambda attacks: attacks))
    assert not todays(with_attacks(other_default))
    assert not todays(with_attacks(lambda attacks: {"flow_pgd": attacks["flow_pgd"]}))


def test_columns_that_are_new_are_joined_to_those_of_the_same_network(script):
    files, tables = script("table_files"), script("tables")
    table = tables.TABLES["mnist_smooth"]["short"]
    rows = json.loads((ROOT / "docs" / "results" / "mnist_smooth_short.json").read_text())["rows"]
    whole = rows["silu_igr_l2"]["seeds"]["0"]
    assert files.slim(whole) == whole  # twice is once
    assert files.todays(whole, whole["settings"], table) == set(table.attacks)
    assert files.todays(whole, whole["settings"] | {"epochs": 9}, table) == set()
    stronger = dict(table.attacks) | {"flow_pgd": table.attacks["flow_pgd"] | {"steps": 99}}
    columns = files.todays(whole, whole["settings"], table._replace(attacks=stronger))
    assert columns == set(table.attacks) - {"flow_pgd"}
    old = whole | {"weights": "abc", "balls": {}, "evaluation": whole["evaluation"] | {
        "warnings": ["flow_pgd is weak", "flow_apgd is weak"]}}  # fmt: skip
    table, today = table._replace(attacks=stronger), {"settings": whole["settings"], "weights": "abc"}
    assert files.unchanged(old, today | {"weights": "abd"}, table) == {} == files.unchanged(None, today, table)
    assert files.unchanged(whole, today, table) == {}  # it does not say which network it is of
    found = files.unchanged(old, today, table)
    assert set(found["broken"]) == set(found["evaluation"]["attacks"]) == columns
    assert found["evaluation"]["warnings"] == ["flow_apgd is weak"]  # the weak attack is no more

    entry = whole["evaluation"]["attacks"]["flow_pgd"] | {"accuracy": 0.25}
    report = {"attacks": {"flow_pgd": entry}, "warnings": ["new"]}
    later = {"command": "later", "revision": "2", "hardware": "cpu"}
    joined = files.with_attacks(found, report, {"flow_pgd": "ff"}, table, later)
    assert list(joined["evaluation"]["attacks"]) == list(table.attacks) == list(joined["broken"])
    assert joined["evaluation"]["attacks"]["flow_pgd"]["accuracy"] == 0.25 and joined["broken"]["flow_pgd"] == "ff"
    assert joined["evaluation"]["attacks"]["flow_apgd"] == whole["evaluation"]["attacks"]["flow_apgd"]
    assert joined["evaluation"]["warnings"] == ["flow_apgd is weak", "new"]
    assert joined["revision"] == whole["revision"] and joined["later"]["flow_pgd"]["revision"] == "2"
    assert joined["later"]["flow_pgd"]["versions"]["jax"] and list(joined["later"]) == ["flow_pgd"]

    ball = script("table_types").Universal("flow", 1.0)
    table = table._replace(universal={"new": ball})
    with_ball = files.with_universal(joined, "new", {"untargeted universal": 0.5}, table, later)
    assert with_ball["balls"] == {"new": ball._asdict()} and with_ball["later"].keys() == {"flow_pgd", "new"}
    assert files.unchanged(with_ball, today, table)["universal"] == {"new": {"untargeted universal": 0.5}}
    bigger = table._replace(universal={"new": ball._replace(radius=2.0)})
    assert files.unchanged(with_ball, today, bigger)["universal"] == {}
    # What is measured at once has one source.
    first = later | {key: with_ball[key] for key in ("settings", "weights")}
    report = with_ball["evaluation"] | {"versions": with_ball["later"]["new"]["versions"]}
    assert "later" not in files.with_attacks(first, report, with_ball["broken"], table, later)


def test_an_option_that_old_numbers_lack_was_at_its_default(script):
    files, tables = script("table_files"), script("tables")
    table = tables.TABLES["mnist_smooth"]["short"]
    rows = json.loads((ROOT / "docs" / "results" / "mnist_smooth_short.json").read_text())["rows"]
    old = copy.deepcopy(rows["silu_igr_l2"]["seeds"]["0"])
    del old["evaluation"]["attacks"]["flow_apgd"]["settings"]["rho"]
    assert files.todays(old, old["settings"], table) == set(table.attacks)
    given = dict(table.attacks) | {"flow_apgd": table.attacks["flow_apgd"] | {"rho": 0.3}}
    assert files.todays(old, old["settings"], table._replace(attacks=given)) == set(table.attacks) - {"flow_apgd"}


def test_what_the_command_gives_stands_above_what_a_table_sets_but_for_its_attacks_and_seeds(script):
    reproduce, tables = script("reproduce"), script("tables")
    table = tables.TABLES["mnist_lfr"]["short"]
    keys = ["evaluation.limit=7", "select_by=clean", "epochs=3"]
    config = reproduce.config_for(table, "lfr", 0, keys, fraction=0.5)
    assert (config.evaluation.limit, config.select_by, config.epochs) == (7, "clean", 3.0)
    options = dict(table="mnist_lfr", size="short", rows=None, fraction=1.0)
    for key in ("seed=5", "attacks.pgd.steps=1"):
        with pytest.raises(ValueError, match=f"--config.{key}: attacks and seeds are those of"):
            reproduce.main(type("Flags", (), options), [f"--config.{key}"])


def test_a_value_that_diverges_is_not_chosen_and_a_row_that_diverges_is_left_out(script, tmp_path, monkeypatch, capsys):
    reproduce, types = script("reproduce"), script("table_types")

    def train(config, workdir):
        if config.terms.igr.weight > 1:
            raise reproduce.loop.NonFiniteLossError("at step 1 the term 'igr' is NaN or infinite.")
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text(json.dumps({"validation/clean": 0.9, "epoch": 1}) + "\n")

    monkeypatch.setattr(reproduce.loop, "train", train)
    choice = types.Choice("terms.igr.weight", (3.0, 1.0), like="plain")
    rows = {"plain": types.Row("plain", "digits_igr:terms.igr.weight=0.5"), "mine": types.Row("", "digits_igr", choice)}
    table = types.Table("", rows, (), {}, {}, 10, (0,), ())
    started = {"command": "a", "revision": "1"}
    plan = reproduce.Plan(table, tmp_path / "runs", [], 1.0, tmp_path / "mine.json", started)
    config, chosen = plan.chosen("mine", 0)
    assert config.terms.igr.weight == 1.0 and chosen["tried"] == {"3": 0.0, "1": 0.9}
    assert "mine: at step 1" in capsys.readouterr().err

    assert json.loads((plan.folder / "mine_1_0.json").read_text()) == started
    elsewhere = plan._replace(folder=tmp_path / "elsewhere")
    assert elsewhere.chosen("mine", 0)[1] == chosen and not elsewhere.folder.exists()  # the file knows them
    assert [path.name for path in tmp_path.glob("*.json")] == ["mine.json"] and not json.loads(plan.path.read_text())[
        "rows"
    ]
    other = elsewhere._replace(keys=["epochs=3"])
    assert other.chosen("mine", 0)[1] == chosen and (other.folder / "plain_0").exists()  # not with another config
    plan.path.unlink()

    broken = table._replace(rows={"plain": types.Row("plain", "digits_igr:terms.igr.weight=2")})
    monkeypatch.setitem(reproduce.TABLES, "broken", {"short": broken})
    options = dict(table="broken", size="short", rows=None, workdir=str(tmp_path), data_dir="", fraction=1.0)
    options |= dict(out=str(tmp_path), train_only=False)
    reproduce.main(type("Flags", (), options), [])
    told = capsys.readouterr()
    assert "plain, seed 0, is left out: at step 1" in told.err and "Nothing is measured yet." in told.out
    assert "| plain (1 of 1 seeds diverged)" in told.out
    assert json.loads((tmp_path / "broken_short.json").read_text())["rows"]["plain"]["diverged"]["0"]["error"]
    reproduce.main(type("Flags", (), options), [])
    assert "is left out" not in capsys.readouterr().err  # it is not trained again

    worse = broken._replace(rows={"plain": broken.rows["plain"], "mine": rows["mine"], "fine": rows["plain"]})
    monkeypatch.setitem(reproduce.TABLES, "broken", {"short": worse})
    nothing = {"settings": {"attacks": {}, "select_by": "clean"}, "evaluation": {"clean": {}, "attacks": {}}}
    monkeypatch.setattr(reproduce.Plan, "measured", lambda *_: [nothing])
    monkeypatch.setattr(reproduce, "rendered", str)
    with pytest.raises(ValueError, match="1 runs are missing:\nmine, seed 0: its weight is chosen to be like plain"):
        reproduce.main(type("Flags", (), options), [])
    assert "fine" in json.loads((tmp_path / "broken_short.json").read_text())["rows"]  # the others go on
