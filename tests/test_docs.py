"""The documents: what they name exists, every public name has its place, the table of attacks is that of the code."""

import importlib
import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import robust_jax as rj
from benchmarks import flow_slope_page, optimality_page
from robust_jax import attacks
from robust_jax.objectives import points, terms
from test_readme import ROOT, run_python

pytestmark = pytest.mark.usefixtures("quick_compile")
PAGE = "docs/attacks.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in DOCS)]
NOTEBOOKS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"\b(?:src|benchmarks|tests|docs)/[\w/]+\.(?:py|md|png|svg)\b", text)
    linked = [(ROOT / page).parent / link for link in re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", text)]
    assert [path for path in [*(ROOT / name for name in named), *linked] if not path.exists()] == []


def test_the_headings_that_pages_link_to_exist():
    found = 0
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", (ROOT / page).read_text()):
            target = (ROOT / page).parent / link if link else ROOT / page
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], (page, anchor)
            found += 1
    assert found > 10


def test_the_functions_of_the_walk_exist():
    text = (ROOT / "docs/architecture.md").read_text().split("\n## The walk of one δ\n")[1].split("\n## ")[0]
    rooms = "cli|options|spaces|penalties|attacks|objectives|config|workdir|training|evaluation|parallel"
    names = re.findall(rf"`((?:{rooms})\.[\w.]+)`", text)
    assert len(names) > 20
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"robust_jax.{module}"), attribute), name


def test_the_table_of_attacks_is_that_of_the_code():
    section = (ROOT / PAGE).read_text().split("\n## All attacks\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE))
    universal = {name: getattr(attacks, name) for name in attacks.__all__ if name.startswith("universal")}
    assert len(universal) == 3
    functions = attacks.ATTACKS | universal
    assert list(rows) == sorted(functions)
    found = 0
    for name, function in functions.items():
        *_, defaults, cost, gradients, targeted = (cell.strip() for cell in rows[name].split("|"))
        parameters = inspect.signature(function).parameters
        shown = {n: getattr(p.default, "__name__", repr(p.default).replace("'", '"')) for n, p in parameters.items()}
        for option, value in re.findall(r"`(\w+)=(.*?)`", defaults):
            assert shown[option] == value, (name, option)
            found += 1
        assert (targeted == "yes") == ("targeted" in parameters), name
        assert (gradients == "no") == cost.removeprefix("≤ ").startswith("0 /"), name
    assert found > 20


def code_of(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs_and_installs_in_colab_only(name):
    cells = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    first, *others = code_of(NOTEBOOKS[name])
    assert 'if "google.colab" in sys.modules:\n    %pip install' in first
    assert not any(line.startswith(("%", "!")) for cell in others for line in cell.splitlines())
    links = re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", json.dumps(NOTEBOOKS[name]["cells"]))
    assert links and all((ROOT / "docs" / "notebooks" / link).exists() for link in links)


def test_every_page_and_notebook_is_in_the_contents():
    start = (ROOT / "docs" / "index.md").read_text()
    api = (ROOT / "docs" / "api" / "index.md").read_text()
    listed = set(re.findall(r"^([\w/]+)$", start, re.MULTILINE))
    listed |= {f"api/{name}" for name in re.findall(r"^(\w+)$", api, re.MULTILINE)}
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in DOCS}
    assert pages | {f"notebooks/{name}" for name in NOTEBOOKS} == listed | {"index"}


def test_the_reference_has_every_public_name():
    described = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        module = ""
        for directive, name in re.findall(r"^\.\. (currentmodule|auto\w+|py:data):: ([\w.]+)$", page.read_text(), re.M):
            module = name if directive == "currentmodule" else module
            described |= {f"{module}.{name}"} if directive not in ("currentmodule", "autosummary") else set()
    for module in ("robust_jax.attacks", "robust_jax.data", "robust_jax.models", "robust_jax.threat_models"):
        names = {n for n in importlib.import_module(module).__all__ if not n.isupper()} - {"ThreatModel"}
        shared = {n for n in names if f"robust_jax.{n}" in described}
        assert names - shared <= {n.removeprefix(f"{module}.") for n in described}, module
    functions = {n for n in rj.__all__ if not inspect.ismodule(getattr(rj, n))}
    assert {f"robust_jax.{name}" for name in functions} <= described
    for module in set(rj.__all__) - functions:
        assert any(name.startswith(f"robust_jax.{module}.") for name in described), module
    assert {f"robust_jax.attacks.{name}" for name in attacks.__all__} <= described
    parts = {"points": points.POINTS, "terms": terms.TERMS}
    assert {f"robust_jax.objectives.{kind}.{name}" for kind, table in parts.items() for name in table} <= described


def blocks_of(page, kind):
    """The Python of a page whose blocks are marked with a word, or with none."""
    return re.findall(
        rf"^```python{kind and f' {kind}'}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize(
    "library", ["optax", "nnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("equinox", "haiku"))]
)
def test_the_training_loops_lower_the_loss(library):
    page = "docs/training_your_own.md"
    (loop,) = blocks_of(page, library)
    if library in ("equinox", "haiku"):
        pytest.importorskip(library)
    namespace = {}
    for block in [*blocks_of(page, ""), loop]:
        exec(compile(block, page, "exec"), namespace)  # noqa: S102
    losses, terms = namespace["losses"], namespace["terms"]
    assert losses[-1] < 0.6 * losses[0] and set(terms) == {"adversarial", "fgr"} and min(terms.values()) > 0
    assert len([line for line in loop.split("trained =")[0].splitlines() if line.strip()]) <= 35


@pytest.mark.slow
def test_the_objects_of_training_your_own_train(tmp_path):
    page, namespace = "docs/training_your_own.md", {"workdir": tmp_path / "run"}
    for block in [*blocks_of(page, ""), *blocks_of(page, "trainer")]:
        exec(compile(block, page, "exec"), namespace)  # noqa: S102
    logits = namespace["trained"](namespace["images"])
    np.testing.assert_allclose(logits, namespace["run"].logits_fn(namespace["images"]), atol=1e-5)


@pytest.mark.slow
def test_the_parts_of_contributing_train_and_evaluate(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    parts = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(parts) == 7
    (tmp_path / "my_parts.py").write_text("\n\n".join(parts))
    (tmp_path / "my_config.py").write_text(
        re.findall(r"^```python config\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    )
    for program, flags in (
        ("train.py", ["--config=my_config.py", "--config.epochs=2"]),
        ("eval.py", ["--trust=my_parts"]),
    ):
        command = [sys.executable, ROOT / program, "--workdir=run", *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "evaluations" / "test" / "evaluation.json").read_text())
    assert report["attacks"]["step"]["accuracy"] <= report["clean"]["accuracy"]
    assert report["attacks"]["step"]["cost"] == {"forwards": 2, "gradients": 1}  # as short_step states it


def test_the_tables_of_reliability_are_those_of_the_scripts():
    command = "import page; text = (page.DOCS / 'reliability.md').read_text(); assert page.filled(text) == text; "
    command += "marks = [f'<!-- {file.name} -->' in text for file in page.files()]; assert marks and all(marks), marks"
    folder = ROOT / "benchmarks" / "reliability"
    done = subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_python_of_the_page_on_training_runs(tmp_path):
    namespace = {"workdir": tmp_path / "run"}
    assert run_python("docs/training.md", namespace) == 6
    rows = [line.split(",") for line in (tmp_path / "run" / "table.csv").read_text().splitlines()]
    assert {name for _, name, _ in rows} >= {"loss", "terms/ce", "validation/clean"}
    assert sorted({int(step) for step, _, _ in rows}) == sorted(set(namespace["seen"])) and namespace["state"].step == 2


def test_the_tables_of_the_flow_slope_are_those_of_the_results():
    text = (flow_slope_page.DOCS / "flow_slope.md").read_text()
    assert flow_slope_page.filled(text) == text
    found = json.loads((flow_slope_page.DOCS / "results" / "flow_slope.json").read_text())
    for mark in ("summary", *(run for run, *_ in flow_slope_page.cases(found))):
        assert flow_slope_page.START.format(mark) in text, mark


def test_the_tables_of_the_optimality_are_those_of_the_results():
    text = (optimality_page.DOCS / "optimality.md").read_text()
    assert optimality_page.filled(text) == text
    for mark in ("summary", "settings", "models"):
        assert optimality_page.START.format(mark) in text, mark


def test_the_derivative_along_which_a_page_says_to_attack_too():
    namespace = {}
    assert run_python("docs/flow_slope.md", namespace) == 1
    assert namespace["threat"].perturbation.slope is None and namespace["threat"].norm == "l21"
