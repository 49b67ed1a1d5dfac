"""The Python of the README and of the pages, run in order in one namespace as a reader would."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.configs import digits_fgr

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_python(name, namespace):
    """Runs the python blocks of a page in one namespace; returns how many there are."""
    blocks = BLOCKS.findall((ROOT / name).read_text())
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)  # noqa: S102
    return len(blocks)


@pytest.mark.slow
def test_the_readme_runs_after_its_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = digits_fgr.get_config()
    config.epochs = 1.0
    rj.train(config, "runs/digits_fgr")
    namespace = {}
    assert run_python("README.md", namespace) == 3
    assert namespace["result"].images.shape == (100, 8, 8, 1)
    assert namespace["penalty"].shape == (100,) and jnp.all(namespace["penalty"] > 0)
    assert (tmp_path / "my_network" / "evaluation.json").exists()
    assert (tmp_path / "my_network" / "adversarial_flows.png").exists()


@pytest.mark.slow
def test_the_page_about_python_runs(tmp_path):
    namespace = {"workdir": tmp_path / "run"}
    assert run_python("docs/library.md", namespace) == 5
    result, penalty, state = (namespace[name] for name in ("result", "penalty", "state"))
    assert result.delta.shape == (32, 2)
    assert jnp.all(jnp.abs(result.delta) <= jnp.array([0.3, 0.2]) * 1.0001)
    assert penalty.shape == (32,) and jnp.all(penalty > 0)
    assert state.step == 2 and (tmp_path / "run" / "checkpoints" / "best").is_dir()


@pytest.mark.slow
def test_the_page_about_attacks_runs():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 10)), jnp.float32)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))

    def logits_fn(x):
        return x.reshape(len(x), -1) @ weights

    def predict(x):
        return np.asarray(x).reshape(len(x), -1) @ np.asarray(weights)

    labels = logits_fn(images).argmax(-1)
    namespace = {"logits_fn": logits_fn, "predict": predict, "images": images, "labels": labels}
    assert run_python("docs/attacks.md", namespace) == 4
    assert np.isfinite(namespace["distance"]).all() and (namespace["distance"] > 0).all()
    assert namespace["result"].success.any() and namespace["fooled"].shape == (4,)


def test_the_page_about_images_runs():
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (40, 64, 64, 3), np.uint8), np.arange(40) % 2
    pairs = list(zip(images, labels.tolist(), strict=True))

    class Split(list):
        features = {"image": None, "labels": SimpleNamespace(names=["cat", "dog"])}

    rows = Split({"image": image, "labels": label} for image, label in pairs)
    namespace = {
        "images": images, "labels": labels, "torchvision_dataset": pairs, "pairs": pairs, "test": None,
        "load_dataset": lambda name: {"train": rows},
    }  # fmt: skip
    assert run_python("docs/data.md", namespace) == 1
    assert namespace["dataset"].name == "pets" and namespace["train"].class_names == ("cat", "dog")


def test_all_python_of_the_pages_is_run_here_or_marked():
    ran = {"README.md", "docs/library.md", "docs/attacks.md", "docs/data.md", "CONTRIBUTING.md"}
    ran |= {"docs/flow_slope.md", "docs/training.md", "docs/training_your_own.md"}  # by test_docs.py
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert {str(page.relative_to(ROOT)) for page in pages if BLOCKS.search(page.read_text())} == ran
