"""Parts of the user's own: one file that adds one of each kind, named `module:name`, used by train.py and eval.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robust_jax import commands, extensions
from robust_jax.evaluation.stored import evaluations

ROOT = Path(__file__).resolve().parents[1]
PARTS = '''
"""One part of each kind. No `from __future__ import annotations`: hints are read alike with and without it."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_jax.attacks.define import Cost, attack
from robust_jax.attacks.result import found_or_clean
from robust_jax.data import Source
from robust_jax.evaluation.masking import sign
from robust_jax.losses import misclassified
from robust_jax.objectives.points import Point
from robust_jax.objectives.terms import PointOutput
from robust_jax.options import Count
from robust_jax.spaces import Perturbation
from robust_jax.spaces.threat_models import Threat, project

lighting = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 2)),
    apply=lambda images, delta: images * (1 + delta[:, 0, None, None, None]) + delta[:, 1, None, None, None],
    name="lighting",
)


def brighter(model, images, labels, keys, *, threat: Threat, towards: Literal["white", "black"] = "white"):
    sign = 1.0 if towards == "white" else -1.0
    delta = project(threat, jnp.full((len(images), 2), sign * 1e3))
    return Point(threat.perturbation.apply(images, delta), delta)


def entropy(point: PointOutput, *, power: float = 1.0):
    log_p = point.logits - jnp.log(jnp.exp(point.logits).sum(-1, keepdims=True))
    return -(jnp.exp(log_p) * log_p).sum(-1) ** power


def squared_difference(point: PointOutput, *, other: PointOutput):
    return ((point.logits - other.logits) ** 2).sum(-1)


@attack(family="black_box", cost=lambda options, problem: Cost(forwards=1 + options.tries, gradients=0))
def corners(logits_fn, images, labels, threat, *, key, tries: Count = 2):
    best = threat.perturbation.zeros(images)
    broken = misclassified(logits_fn(images), labels)
    for sign in (1.0, -1.0)[:tries]:
        delta = project(threat, best + jnp.where(broken[:, None], 0.0, sign * 1e3))
        broken = broken | misclassified(logits_fn(jnp.clip(threat.perturbation.apply(images, delta), 0, 1)), labels)
        best = jnp.where(broken[:, None], delta, 0.0)
    return found_or_clean(threat, images, best, broken)


class Tiny(nn.Module):
    num_classes: int
    hidden: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(self.hidden)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(x)


def stripes():
    """Horizontal or vertical stripes, of two colours: 2 classes, 6 x 8 x 3."""
    random, labels = np.random.RandomState(0), np.arange(240) % 2
    rows = np.arange(6)[:, None] % 2 * np.ones((1, 8))
    columns = np.arange(8)[None] % 2 * np.ones((6, 1))
    pattern = np.where(labels[:, None, None] == 0, rows, columns)[..., None] * np.array([200, 120, 60])
    images = np.clip(pattern + random.normal(0, 20, (240, 6, 8, 3)), 0, 255).astype(np.uint8)
    source = Source.from_arrays(images, labels.astype(np.int64), 2, "stripes")
    return source.subset(np.arange(200)), source.subset(np.arange(200, 240))


@sign("outcomes")
def always(look):
    return ["always: a sign of my own"]
'''
CONFIG = """
from robust_jax.config import base, complete

def get_config():
    c = base("my_parts:stripes", "my_parts:Tiny")
    c.model.options = dict(hidden=12)
    c.epochs, c.batch_size = 2.0, 20
    c.optimizer.name, c.schedule.learning_rate = "adam", 0.01
    lit = dict(perturbation="my_parts:lighting", norm="linf", radius=(0.2, 0.1))
    c.points.lit = dict(kind="my_parts:brighter", towards="black", **lit)
    c.terms.ce = dict(kind="cross_entropy", at="lit", weight=1.0)
    c.terms.entropy = dict(kind="my_parts:entropy", at="lit", weight=0.01)
    c.terms.same = dict(kind="my_parts:squared_difference", other="lit", weight=0.001)
    c.attacks.corners = dict(kind="my_parts:corners", **lit)
    c.attacks.pgd = dict(kind="pgd", steps=3, **lit)
    c.evaluation.signs, c.evaluation.checks, c.evaluation.pictures = ("my_parts:always",), 0, 0
    return complete(c)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no checkout")
    (folder / "my_parts.py").write_text(PARTS)
    (folder / "mine.py").write_text(CONFIG)
    return folder


def run(folder, program, *arguments):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    command = [sys.executable, str(ROOT / program), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_one_file_adds_one_of_each_kind_of_part(folder):
    trained = run(folder, "train.py", "--config=mine.py", "--workdir=run", "--config.points.lit.radius=(0.1, 1/20)")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.endswith("Trained. Now: python eval.py --workdir=run --trust=my_parts\n")
    evaluated = run(folder, "eval.py", "--workdir=run", "--trust=my_parts", "--config.attacks.corners.tries=1")
    assert evaluated.returncode == 0, evaluated.stderr
    saved = json.loads((folder / "run" / "config.json").read_text())
    assert saved["points"]["lit"]["kind"] == "my_parts:brighter" and saved["points"]["lit"]["radius"] == [0.1, 0.05]
    (report,) = evaluations(folder / "run").values()
    assert report["clean"]["n"] == 40 and report["clean"]["accuracy"] > 0.9
    assert report["attacks"]["corners"]["cost"] == {"forwards": 2, "gradients": 0}
    assert report["attacks"]["pgd"]["threat"]["perturbation"] == "my_parts:lighting"
    assert "always: a sign of my own" in report["warnings"]


@pytest.mark.parametrize(
    "override, message",
    [
        ("points.lit.towards=grey", "points.lit.towards='grey' is unknown: choose one of ['black', 'white']"),
        ("attacks.corners.tries=0", "attacks.corners.tries=0 must be at least 1"),
        (
            "terms.same.other=lot",
            "terms.same.other='lot' is unknown: choose one of ['clean', 'lit']. Did you mean 'lit'?",
        ),
        ("terms.entropy.kind=my_parts:entrop", "cannot be imported"),
        ("data.name=my_parts:dots", "data.name='my_parts:dots' cannot be imported"),
        ("model.name=my_parts:Tinier", "model.name='my_parts:Tinier' cannot be imported"),
    ],
)
def test_mistakes_in_parts_of_ones_own_are_one_message(folder, override, message, monkeypatch, capsys, quick_compile):
    # What train.py calls, in this process, which has imported everything.
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    with pytest.raises(SystemExit) as end:
        commands.run("train", ["--config=mine.py", "--workdir=wrong", f"--config.{override}"], "train.py")
    sys.modules.pop("my_parts", None)
    stderr = capsys.readouterr().err
    assert end.value.code == 2 and stderr.startswith("train.py: ") and "Traceback" not in stderr
    assert message in stderr.strip().splitlines()[-1]
    assert not (folder / "wrong").exists()


def test_unknown_names_list_all_and_the_likeliest():
    with pytest.raises(
        ValueError, match=r"kind='pdg' is unknown: choose one of \['apgd', 'pgd'\], or .*Did you mean 'pgd'"
    ):
        extensions.find("kind", "pdg", {"pgd": 1, "apgd": 2})
    with pytest.raises(ValueError, match=r"'nowhere:x' cannot be imported: No module named 'nowhere'.*PYTHONPATH"):
        extensions.find("kind", "nowhere:x", {})
    assert extensions.find("kind", "os:path.join", {}) is os.path.join
