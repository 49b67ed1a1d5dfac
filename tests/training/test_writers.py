"""Writers of metrics: one protocol, found by name, whose failures cost no training."""

from __future__ import annotations

import json
import sys
import types

import pytest
from ml_collections import ConfigDict

from robust_jax.training import writers
from robust_jax.training.log import TrainingLog

CONFIG = ConfigDict({"seed": 3, "writers": ("wandb",)})


def logged(tmp_path, *names, start=0, steps=(10, 20)):
    with TrainingLog(tmp_path, start, 20, 10.0, writers=writers.find(names), config=CONFIG) as log:
        for step in steps:
            log.write(step, {"loss": 1 / step})
    return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


class Recorder:
    told: list = []

    def __init__(self, workdir, config, step):
        self.told.append(("open", workdir.name, config.seed, step))

    def write(self, step, metrics):
        self.told.append((step, metrics["loss"]))

    def close(self):
        self.told.append("close")


def test_a_writer_of_ones_own_gets_every_number_and_the_step_to_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "told", [])
    calls = []
    logged(tmp_path, Recorder, lambda workdir, config: lambda step, metrics: calls.append(step), start=5)
    opened, *rest = Recorder.told
    assert opened[2:] == (3, 5) and rest == [(10, 0.1), (20, 0.05), "close"] and calls == [10, 20]


def test_writers_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "own_writers.py").write_text("def nothing(workdir, config): return print\nnumber = 3")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    found = writers.find(("tensorboard", "wandb", "own_writers:nothing", Recorder))
    assert [writer.__name__ for writer in found] == ["tensorboard", "wandb", "nothing", "Recorder"]
    for given, message in (
        (("tensorbord",), "writers='tensorbord' is unknown.*Did you mean 'tensorboard'"),
        (("own_writers:none",), "writers='own_writers:none' cannot be imported"),
        (("own_writers:number",), "3 is no function"),
        ("wandb", r"writers='wandb': give a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            writers.find(given)
    with pytest.raises(ValueError, match="the writer <lambda> returned 3: return write"):
        logged(tmp_path, lambda workdir, config: 3)
    with pytest.raises(ValueError, match="the writer <lambda> returned None: return write"):
        logged(tmp_path, lambda workdir, config: None)


@pytest.mark.parametrize("broken", ["open", "write", "close"])
def test_a_writer_that_fails_is_told_once_and_costs_nothing(broken, tmp_path, caplog):
    class Broken:
        def __init__(self, workdir, config):
            self.fail("open")

        def fail(self, at):
            if at == broken:
                raise ConnectionError("no route")

        def write(self, step, metrics):
            self.fail("write")

        def close(self):
            self.fail("close")

    assert logged(tmp_path, Broken, "tensorboard") == [10, 20]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    (record,) = caplog.records
    assert "The writer Broken failed" in record.getMessage() and "ConnectionError: no route" in record.getMessage()
    assert {"open": "at step 0", "write": "at step 10", "close": "when it was closed"}[broken] in record.getMessage()


class FakeRun:
    def __init__(self, told, **options):
        self.told, self.options = told, options

    def define_metric(self, *given, **options):
        self.told.append(("define", *given, *options.values()))

    def log(self, values):
        self.told.append(values)

    def finish(self):
        self.told.append("finish")


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    fake, runs = types.ModuleType("wandb"), []
    fake.init = lambda **options: runs.append(FakeRun([], **options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    workdir = tmp_path / "my run"
    workdir.mkdir()
    logged(workdir, "wandb", steps=(10,))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    logged(workdir, "wandb", start=10, steps=(20,))
    first, second = runs
    assert first.options["id"] == second.options["id"] and first.options["id"].startswith("my_run-")
    assert (first.options["project"], second.options["project"]) == ("robust_jax", "mine")
    assert first.options["resume"] == "allow" and first.options["name"] == "my run"
    assert first.options["config"]["seed"] == 3
    assert first.told[:2] == [("define", "step"), ("define", "*", "step")]
    assert first.told[2]["step"] == 10 and first.told[2]["loss"] == 0.1 and first.told[-1] == "finish"
    other = tmp_path / "other" / "my run"
    other.mkdir(parents=True)
    logged(other, "wandb", steps=(10,))
    assert runs[-1].options["id"] != first.options["id"]


def test_a_package_that_is_missing_is_told_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"writers: wandb cannot be imported.*pip install 'robust_jax\[wandb\]'"):
        writers.find(("wandb",))
