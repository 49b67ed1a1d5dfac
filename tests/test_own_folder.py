"""From a folder that is no checkout: images of one's own, a model of one's own, the commands of the page.

`make wheel` runs this with the program of an environment that holds nothing but the built wheel.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from test_docs import blocks_of
from test_readme import ROOT

PAGE = "docs/training_your_own.md"


def pets(folder):
    """Three classes of noise over stripes, of sizes that differ and are not square."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "eel")):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            height, width = draw.integers(18, 40, 2)
            image = draw.integers(0, 100, (height, width, 3), np.uint8)
            image[:: 2 + 2 * (label == 1), :: 3 if label == 2 else 1] += 120
            Image.fromarray(image).save(folder / name / f"{i}.png")


PROGRAM = shlex.split(os.environ.get("ROBUST_JAX_PROGRAM", f"{sys.executable} -m robust_jax"))
SHORT = {
    "train": ["--config.epochs=3", "--config.batch_size=16", "--config.schedule.name=constant"],
    "evaluate": ["--config.evaluation.limit=24"],
}


@pytest.mark.slow
def test_the_commands_of_the_page_train_attack_and_report_an_nnx_module_on_a_folder_of_images(tmp_path):
    pets(tmp_path / "pets")
    (tmp_path / "my_models.py").write_text("\n".join(blocks_of(PAGE, "file")))
    text = (ROOT / PAGE).read_text().split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines()]
    assert [name for _, name, *_ in commands] == ["train", "evaluate", "attack", "report"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if "ROBUST_JAX_PROGRAM" not in os.environ:
        environment["PYTHONPATH"] = str(ROOT / "src")
    for program, name, *flags in commands:
        done = subprocess.run(
            [*PROGRAM, name, *flags, *SHORT.get(name, [])],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert program == "robust-jax" and done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs/pets/config.json").read_text())
    assert config["model"]["name"] == "my_models:PetNet"
    reports = [json.loads(file.read_text()) for file in (tmp_path / "runs/pets/evaluations").glob("*/evaluation.json")]
    assert len(reports) == 2 and ["auto_attack"] in [list(report["attacks"]) for report in reports]
    page = (tmp_path / "pets.html").read_text()
    assert "auto_attack" in page and "eel" in page and "flow" in page
    report = max(reports, key=lambda report: report["clean"]["n"])
    assert report["class_names"] == ["cat", "dog", "eel"] and report["batch_norm"] == "eval"
    assert report["clean"]["accuracy"] > 0.5 and report["attacks"]
