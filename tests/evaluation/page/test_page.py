"""The page: every number that of evaluation.json, nothing loaded, nothing run, whatever is missing said."""

from __future__ import annotations

import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import CLASSES, EVIL, N, trained

import robust_jax as rj
from robust_jax.evaluation.page.advice import advise

SECTIONS = ["accuracy", "warnings", "radius", "trade-off", "training", "classes", "examples", "worst", "reproduce"]


class Parsed(HTMLParser):
    """Tags with their attributes, the texts of table rows, the ids of sections, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.text, self._cell = [], [], "", None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = None if tag in ("td", "th") else self._cell

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def sections(self):
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def html(folders):
    return rj.report(folders).text()


def test_the_table_has_the_numbers_of_every_evaluation(html, reports):
    rows = {row[0].split("\n")[0].strip(): row for row in Parsed(html).rows if len(row) == 1 + len(reports)}
    assert len(reports) == 3
    for column, report in enumerate(reports, 1):
        entries = {"clean": report["clean"], "worst case": report["worst_case"]}
        for name, entry in entries.items():
            low, high = (f"{100 * end:.1f}" for end in entry["interval"])
            row = next(row for first, row in rows.items() if first.startswith(name))
            assert row[column].split() == [f"{100 * entry['accuracy']:.1f}%", f"{low}–{high}"]
        for name, entry in report["attacks"].items():
            row = next(row for first, row in rows.items() if first.startswith(name))
            assert row[column].split()[0] == f"{100 * entry['accuracy']:.1f}%"
    assert any(first.startswith("flow <b>flow linf 0.155") for first in rows)


def test_all_sections_are_there_and_nothing_is_loaded_or_run(html, folders):
    parsed = Parsed(html)
    assert parsed.sections() == SECTIONS
    loaded = [value for _, attributes in parsed.tags for key, value in attributes.items()
              if key in ("src", "href", "srcset", "action", "data")]  # fmt: skip
    assert loaded and all(value.startswith(("data:", "#")) for value in loaded)
    assert "url(" not in html and "@import" not in html
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "b", "i"} - {"b", "i"}
    assert not [a for tag, a in parsed.tags if tag in ("b", "i") and not ({"style"} <= a.keys())]  # those of the bars
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert EVIL in parsed.text  # a class, as text
    assert len(html) < 2**20 and rj.report(folders).text() == html


def test_classes_confusions_and_examples_have_their_names(html, reports):
    text = Parsed(html).text
    report = reports[0]
    accuracy = report["attacks"]["flow <b>"]["per_class"]["2"]["accuracy"]
    row = next(row for row in Parsed(html).rows if row and row[0] == "owl")
    assert row[1] == str(sum(np.arange(N) % 3 == 2)) and f"{100 * accuracy:.0f}%" in row
    assert "cat & dog → owl" in text and "no. 101" in text
    assert "already at 0.5 × the radius: number 10" in text


def test_warnings_say_what_to_do(html):
    text = Parsed(html).text
    assert "What to do: Use more steps." in text and f"more steps: {EVIL} breaks 7 of 64" in text
    assert "No warning for one <i> / test-seed_1, two." in text


@pytest.mark.parametrize(
    "warning, name, seen, advice",
    [
        ("black_box: a breaks 9 images more than b: gradients are masked. Use c, d", "black box",
         "a breaks 9 images more than b: gradients are masked", "Use c, d"),
        ("random_logits: two calls differ at 1 of 8 images: average them", "random logits",
         "two calls differ at 1 of 8 images", "Average them"),
        ("one_step: a breaks 9 images more than b: gradients are masked, or its steps are too large", "one step",
         "a breaks 9 images more than b: gradients are masked, or its steps are too large", "Use auto_attack, "),
        ("pgd: left its ball, the largest perturbation has 2 x the radius", "pgd",
         "left its ball, the largest perturbation has 2 x the radius", "The attack used more"),
        ("checkpoint: the best one is damaged; this is the latest one, of step 40", "checkpoint",
         "the best one is damaged; this is the latest one, of step 40", "These are numbers of another checkpoint"),
        ("a sign of my own", "", "a sign of my own", "Use auto_attack, "),
    ],
)  # fmt: skip
def test_advice(warning, name, seen, advice):
    found = advise(warning)
    assert (found["name"], found["seen"]) == (name, seen) and found["advice"].startswith(advice)


def test_reproducing_names_the_same_attacks(folders, reports):
    from robust_jax.evaluation.measure import chosen_attacks

    python = rj.report(folders[1]).page["reproduce"][0]["value"]["python"]
    names = {}
    exec(python.rpartition("\n")[0].replace("import robust_jax as rj", ""), {}, names)
    built = chosen_attacks(names["attacks"])
    for name, entry in reports[2]["attacks"].items():
        settings = {k: getattr(v, "__name__", v) for k, v in built[name].all_settings().items()}
        assert settings == entry["settings"]
        assert built[name].described_threat() == entry["threat"]
    assert "limit=40, seed=2" in python and "curve=(0, 0.5, 1, 2)" in python


def test_a_notebook_shows_the_table(folders):
    report = rj.report(folders)
    assert repr(report) == "Report(one <i> / test, one <i> / test-seed_1, two)"
    parsed = Parsed(report._repr_html_())
    assert len(parsed.rows) == 5 and not [tag for tag, _ in parsed.tags if tag == "script"]


def test_what_is_missing_or_damaged_is_said(folders, tmp_path):
    bare = trained(tmp_path / "bare")
    (bare / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n[1]\n')
    page = rj.report(bare).page
    assert page["columns"] == [] and not page["training"]
    assert page["notes"] == [
        "bare has no evaluation yet: robust-jax evaluate " + str(bare),
        "bare: 3 of 3 lines of metrics.jsonl cannot be read.",
    ]
    assert Parsed(rj.report(bare).text()).sections() == ["reproduce"]

    worn = tmp_path / "worn"
    shutil.copytree(folders[0], worn)
    for damaged in ("per_example.npz", "examples.npz"):
        (worn / "evaluations" / "test" / damaged).write_bytes(b"half")
    (worn / "evaluations" / "test-seed_1" / "evaluation.json").write_text('{"clean": {}}')
    (worn / "config.json").write_text("{")
    (worn / "metrics.jsonl").unlink()
    (worn / "evaluations" / "test" / "loss_surface_a.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    report = rj.report(worn)
    notes = "\n".join(report.page["notes"])
    for piece in ("its examples cannot", "its pictures cannot", "is no evaluation", "its config cannot"):
        assert piece in notes
    parsed = Parsed(report.text())
    left = ["accuracy", "warnings", "radius", "classes", "examples", "surface", "reproduce"]
    assert parsed.sections() == left  # the examples by their picture
    plates = [a["src"] for tag, a in parsed.tags if tag == "img" and a.get("class") == "plate"]
    assert base64.b64decode(plates[-1].partition(",")[2]) == b"\x89PNG\r\n\x1a\n..."
    assert len(plates) == 3


@pytest.mark.parametrize("norm", [None, {"a": 1}, [["linf"]], "<script>"])
def test_no_threat_model_ends_in_an_exception(folders, tmp_path, norm):
    workdir = tmp_path / "odd"
    shutil.copytree(folders[1], workdir)
    path = workdir / "evaluations" / "test" / "evaluation.json"
    content = json.loads(path.read_text())
    content["attacks"]["flow <b>"]["threat"]["norm"] = norm
    path.write_text(json.dumps(content))
    for format in ("html", "csv", "latex", "markdown"):
        assert rj.report(workdir).text(format)


@pytest.mark.parametrize("key", ["attacks", "class_names", "versions", "warnings", "split", "seed"])
@pytest.mark.parametrize("value", [None, 7, "x", [1], {"a": [None]}])
def test_no_content_of_a_report_ends_in_an_exception(folders, tmp_path, key, value):
    workdir = tmp_path / "odd"
    shutil.copytree(folders[1], workdir)
    path = workdir / "evaluations" / "test" / "evaluation.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    for format in ("html", "csv", "latex", "markdown"):
        assert rj.report(workdir).text(format)


def test_what_is_no_workdir_is_told(tmp_path):
    with pytest.raises(ValueError, match="no workdir"):
        rj.report([])
    with pytest.raises(ValueError, match="is no folder"):
        rj.report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither a config.json nor an evaluation"):
        rj.report(tmp_path)


def test_workdirs_of_one_name_are_told_apart(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "two")
    labels = [column["label"] for column in rj.report([folders[1], tmp_path / "two"]).page["columns"]]
    assert labels == [str(folders[1]), str(tmp_path / "two")]


def test_charts_join_what_is_of_the_same_attack_and_images(folders, tmp_path):
    """What the pictures refuse to join."""
    joined = rj.report(folders).page
    changes = {
        "split": lambda report: report.update(split="train"),
        "settings": lambda report: [a["settings"].update(unseen=1) for a in report["attacks"].values()],
    }
    for kind, change in changes.items():
        other = shutil.copytree(folders[1], tmp_path / kind)
        for path in other.rglob("evaluation.json"):
            report = json.loads(path.read_text())
            change(report)
            path.write_text(json.dumps(report))
        page = rj.report([folders[0], other]).page
        for chart in ("curves", "trade_off"):
            before, after = ([len(one["series"]) for one in found[chart]] for found in (joined, page))
            assert before and max(before) > max(after, default=0), (kind, chart, before, after)
    assert all("n = " in chart["about"] for chart in joined["curves"] + joined["trade_off"])


def test_a_saved_page_is_the_text(folders, tmp_path):
    report = rj.report(folders[1])
    assert report.save(tmp_path / "r.html").read_text() == report.text()
    with pytest.raises(ValueError, match="does not exist"):
        report.save(tmp_path / "nothing" / "r.html")
    with pytest.raises(ValueError, match="is a folder"):
        report.save(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'latex'"):
        report.text("latx")


def test_classes_beyond_twenty_become_the_worst_and_the_most_frequent_confusions(folders):
    from robust_jax.evaluation.page import details, sources

    label = np.arange(300) % 100
    wrong = np.where(label == 7, 9, label)
    entry = {"per_class": {str(k): {"accuracy": float(k != 7), "n": 3} for k in range(100)}}
    report = {"clean": entry, "worst_case": entry, "attacks": {}, "class_names": CLASSES}
    evaluation = sources.Evaluation("", folders[0], report, {"label": label, "clean/prediction": wrong}, {}, {})
    (matrix,) = details.confusions(evaluation)
    assert matrix["counts"] is None and matrix["frequent"] == ["7 → 9: 3"]
    table = details.per_class(evaluation)
    assert len(table["rows"]) == 20 and table["left_out"] == 80 and table["rows"][0]["name"] == "7"


def test_a_class_that_is_predicted_but_not_in_the_split_has_a_column(folders):
    from robust_jax.evaluation.page import details, sources

    entry = {"per_class": {}}
    report = {"clean": entry, "worst_case": entry, "attacks": {}, "class_names": []}
    arrays = {"label": np.array([0, 0, 1, 1]), "clean/prediction": np.array([0, 3, 1, -1])}
    (matrix,) = details.confusions(sources.Evaluation("", folders[0], report, arrays, {}, {}))
    assert np.sum(matrix["counts"]) == 4 and matrix["counts"][0] == [1, 0, 0, 1, 0]
    assert matrix["frequent"] == ["1 → ?: 1", "0 → 3: 1"]


def test_the_matrix_of_an_attack_that_came_after_others_is_of_what_these_left(folders):
    from robust_jax.evaluation.page import details, sources

    entry = {"per_class": {}}
    report = {"clean": entry, "worst_case": entry, "attacks": {"z": entry}, "class_names": []}
    arrays = {"label": np.array([0, 0, 1, 1]), "z/prediction": np.array([0, 1, 1, 0]),
              "z/seen": np.array([False, True, True, True])}  # fmt: skip
    (matrix,) = details.confusions(sources.Evaluation("", folders[0], report, arrays, {}, {}))
    assert matrix["counts"] == [[0, 1], [1, 1]] and matrix["title"] == "z, the 3 images that were left"
    with pytest.raises(ValueError, match="numbers up to 10,000,000"):
        details.confusions(
            sources.Evaluation("", folders[0], report, arrays | {"label": np.array([10**7, 0, 1, 1])}, {}, {})
        )


def test_what_a_stranger_wrote_becomes_no_code_and_no_link_is_followed(tmp_path):
    from robust_jax.evaluation.page import reproduce, sources

    evil = "x=__import__('os').system('id'), y"
    entry = {"threat": {"perturbation": "flow", "norm": "linf", "radius": 1}, "settings": {"attack": "pgd", evil: 1}}
    report = {"clean": {"n": 3}, "attacks": {"a": entry}}
    assert "import" not in reproduce.evaluation(tmp_path, report).replace("import robust_jax as rj", "")
    own = report | {"attacks": {"a": {"settings": {"attack": "mine", "strength": 9}}},
                    "identity": {"attacks": {"a": {"function": "own:mine"}}}}  # fmt: skip
    assert "kind='own:mine'" in reproduce.evaluation(tmp_path, own)
    python = reproduce.training(tmp_path, {"seed": "0\n__import__('os').system('id')"})
    assert python.splitlines()[-1].startswith("rj.train(")
    real = tmp_path / "real.png"
    real.write_bytes(sources.PNG)
    (tmp_path / "link.png").symlink_to(real)
    assert sources.png(real) and sources.png(tmp_path / "link.png") is None


def test_an_evaluation_that_is_a_link_is_not_read(folders, tmp_path):
    from robust_jax.evaluation.page import sources

    elsewhere, run = next(iter(folders)), tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "evaluations" / "test").symlink_to(next((elsewhere / "evaluations").iterdir()))
    (found,), notes = sources.read([run])
    assert found.evaluations == [] and "is a symbolic link" in " ".join(notes)
