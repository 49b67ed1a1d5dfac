"""From a folder that is no checkout: images of one's own, a model of one's own, the commands of the page."""

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


@pytest.mark.slow
def test_a_folder_of_images_and_an_nnx_module_are_trained_and_evaluated_by_the_commands_of_the_page(tmp_path):
    pets(tmp_path / "pets")
    (tmp_path / "my_models.py").write_text("\n".join(blocks_of(PAGE, "file")))
    text = (ROOT / PAGE).read_text().split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines()]
    assert [command[:2] for command in commands] == [["robust-jax", "train"], ["robust-jax", "evaluate"]]
    short = ["--config.epochs=3", "--config.batch_size=16", "--config.schedule.name=constant"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "JAX_PLATFORMS": "cpu"}
    for command, more in zip(commands, (short, ["--config.evaluation.limit=24"]), strict=True):
        done = subprocess.run(
            [sys.executable, "-m", "robust_jax", *command[1:], *more],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs/pets/config.json").read_text())
    assert config["model"]["name"] == "my_models:PetNet"
    (file,) = (tmp_path / "runs/pets").rglob("evaluation.json")
    report = json.loads(file.read_text())
    assert report["class_names"] == ["cat", "dog", "eel"] and report["batch_norm"] == "eval"
    assert report["clean"]["accuracy"] > 0.5 and report["attacks"]
