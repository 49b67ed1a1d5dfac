"""A workdir may come from anyone: what its files name runs only if the user trusts it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import reduce
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import robust_jax as rj
from robust_jax import cli, data, extensions
from robust_jax.config import base, build, complete
from robust_jax.config.validation import check
from robust_jax.evaluation.from_config import attack_from
from robust_jax.training.step import init_state
from robust_jax.workdir import checkpoints, runs, saved_config

ROOT = Path(__file__).resolve().parents[1]
EVIL = "from pathlib import Path\n(Path(__file__).parent / 'ran').touch()\npart = None\n"


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Plants a module in the current folder; whether its code has run."""
    (tmp_path / "evil_parts.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield (tmp_path / "ran").exists
    sys.modules.pop("evil_parts", None)


def workdir(folder, path=None, value="evil_parts:part"):
    c = base()
    c.points.p = dict(kind="random", perturbation="additive", sigma=0.1)
    c.terms.ce = dict(kind="cross_entropy", at="p")
    c.terms.fgr = dict(kind="gradient_norm", perturbation="flow")
    c.attacks.a = dict(kind="pgd", perturbation="additive", radius=0.1, steps=1)
    config = json.loads(json.dumps(complete(c).to_dict()))
    if path:
        *groups, key = path.split(".")
        reduce(dict.__getitem__, groups, config)[key] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


PLACES = [
    ("data.name", "evil_parts:part"),
    ("model.name", "evil_parts:part"),
    ("model.options", {"inner": "evil_parts:part"}),
    ("optimizer.name", "evil_parts:part"),
    ("points.p.kind", "evil_parts:part"),
    ("points.p.perturbation", "evil_parts:part"),
    ("terms.ce.kind", "evil_parts:part.deep"),
    ("terms.fgr.perturbation", ["flow", ["additive", "evil_parts:part"]]),
    ("attacks.a.kind", "evil_parts:part"),
    ("attacks.a.perturbation", "evil_parts:part"),
    ("evaluation.signs", ["evil_parts:part"]),
    ("writers", ["evil_parts:part"]),
    ("attacks.new", {"kind": "evil_parts:part", "source": "x"}),
]


@pytest.mark.parametrize("path, value", PLACES)
def test_evaluating_a_workdir_runs_no_code_of_its_choice(ran, tmp_path, path, value):
    folder = workdir(tmp_path / "run", path, value)
    for call in (saved_config.read_config, runs.load, rj.evaluate):
        with pytest.raises(ValueError) as error:
            call(folder)
        message = str(error.value)
        assert message.startswith(f"{folder / 'config.json'} names parts") and path.split(".")[0] in message
        assert "'evil_parts:part" in message and "--trust=evil_parts, in Python trust=('evil_parts',)" in message
    with pytest.raises(ValueError, match="names parts"):
        rj.evaluate([workdir(tmp_path / "good"), folder])  # before the first is measured
    with pytest.raises(ValueError, match="names parts"):
        attack_from("mine", dict(kind="pgd", perturbation="additive", radius=0.1, source=str(folder)))
    assert not ran() and "evil_parts" not in sys.modules
    assert saved_config.read_config(folder, ("evil_parts",)).data  # which imports nothing either


def test_what_the_user_trusts_is_imported(ran, tmp_path):
    folder = workdir(tmp_path / "run", "model.name")
    with pytest.raises(ValueError, match="model 'evil_parts:part' is None"):
        rj.evaluate(folder, trust=("evil_parts",))
    assert ran()


def test_what_the_user_writes_is_imported(ran, tmp_path):
    with pytest.raises(ValueError, match="attacks.mine.kind='evil_parts:part' is of type NoneType"):
        attack_from("mine", dict(kind="evil_parts:part", perturbation="additive", radius=0.1))
    assert ran()


def test_the_source_of_an_attack_that_selects_checkpoints_is_not_trusted(ran, tmp_path):
    source = workdir(tmp_path / "source", "model.name")
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.a = dict(kind="pgd", perturbation="additive", radius=0.1, source=str(source))
    c.select_by = "a"
    with pytest.raises(ValueError, match="names parts.*--trust=evil_parts"):
        rj.train(complete(c), tmp_path / "run")
    assert not ran() and not (tmp_path / "run").exists()


class Planted:
    """What makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_a_checkpoint_runs_no_code(ran, tmp_path, caplog):
    folder = workdir(tmp_path / "run")
    config = saved_config.read_config(folder)
    variables = build.init_variables(build.create_model(config, 10), (8, 8, 1), seed=0)
    state = jax.device_get(init_state(variables, optax.sgd(0.1), 0.0))
    planted = saved_config.plain(config) | {"model": saved_config.plain(config)["model"] | {"name": "evil_parts:part"}}
    with checkpoints.opened(folder, planted) as saved:
        saved.save("best", 0, state)
    best = folder / "checkpoints" / "best" / "0"
    metadata = json.loads((best / "_CHECKPOINT_METADATA").read_text())
    handlers = {name: "evil_parts.part" for name in metadata["item_handlers"]}
    (best / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata | {"item_handlers": handlers}))
    for name in ("checkpoint", "default/array_metadatas", "default/d/00.pkl"):  # names that Flax and Orbax know
        (best / name).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="best/0 is of another config .model.name: 'evil_parts:part' there"):
        runs.load(folder)
    (folder / "config.json").unlink()  # then the copy in the checkpoint stands for it
    with pytest.raises(ValueError, match="names parts.*model.name='evil_parts:part'"):
        runs.load(folder)
    assert not ran() and not Path("unpickled").exists()


def test_images_of_ones_own_run_no_code(ran, tmp_path):
    pets = tmp_path / "pets"
    for name in ("cats", "dogs"):
        (pets / name).mkdir(parents=True)
        (pets / name / "__init__.py").write_text(EVIL)
    with pytest.raises(ValueError, match="__init__.py is no image"):
        data.load(f"folder:{pets}")
    for name in ("cats", "dogs"):
        (pets / name / "__init__.py").rename(pets / name / "a.png").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="a.png cannot be read as an image"):
        data.load(f"folder:{pets}")
    np.savez("pets.npz", images=np.array([Planted()] * 20), labels=np.arange(20) % 2)
    with pytest.raises(ValueError, match="pets.npz cannot be read as .npz: Object arrays"):
        data.load("npz:pets.npz")
    Path("pets.npz").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="pets.npz cannot be read as .npz"):
        data.load("npz:pets.npz")
    assert not ran() and not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Planted()))
    assert Path("unpickled").exists()  # it would have


def test_the_programs_run_no_code_of_the_current_folder(tmp_path):
    for module in ("evil_parts", "tensorflow", "torch"):
        (tmp_path / f"{module}.py").write_text(EVIL)
    workdir(tmp_path / "run", "model.name")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT / "src")}

    def evaluate(*flags):
        command = [sys.executable, str(ROOT / "eval.py"), "--workdir=run", *flags]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = evaluate()
    assert done.returncode == 2 and "--trust=evil_parts" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
    done = evaluate("--trust", "evil_parts.py")
    assert done.returncode == 2 and "model 'evil_parts:part' is None" in done.stderr
    assert (tmp_path / "ran").exists()


def test_the_current_folder_is_searched_only_for_what_the_user_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    cli.run(lambda *_: None, ["prog.py", "--config.evaluation.limit=5"])
    assert cli.trusted([]) == () and str(tmp_path) not in sys.path
    assert cli.trusted([" my_parts.py", "other"]) == ("my_parts", "other") and sys.path[-1] == str(tmp_path)
    sys.path.pop()
    cli.run(lambda *_: None, ["prog.py", "--config.model.name=my_parts:Tiny"])
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(ValueError, match="'../x' is no module"):
        cli.trusted(["../x"])


def test_trusting_one_module_trusts_no_other():
    config = {"terms": {"a": {"kind": "mine.parts:x"}, "b": {"kind": "mine_too:x"}}}
    extensions.check_trust("c", config, ("mine", "mine_too"))
    with pytest.raises(ValueError, match="c names .*: terms.b.kind='mine_too:x'. .*--trust=mine,mine_too"):
        extensions.check_trust("c", config, ("mine",))
    with pytest.raises(ValueError, match="terms.a.kind='mine.parts:x'"):
        extensions.check_trust("c", config, ("", "mine.par", "mine_too"))
    with pytest.raises(ValueError, match=r"trust='mine': give a tuple"):
        extensions.check_trust("c", config, "mine")
    assert extensions.modules_of(config) == ["mine.parts", "mine_too"]


def test_an_optimiser_of_optax_needs_no_trust_but_what_its_modules_import_does():
    extensions.check_trust("x", {"optimizer": {"name": "optax.contrib:muon"}}, ())
    names = ("name", "optax.contrib:jax.os.system"), ("options", "optax.contrib:muon"), ("name", "optax:os")
    for path, name in names:
        with pytest.raises(ValueError, match=f"optimizer.{path}='{name}'"):
            extensions.check_trust("x", {"optimizer": {path: name}}, ())


def test_paths_versions_and_names_of_attacks_are_no_modules():
    texts = ("mnist:3.0.1", "C:\\runs", "runs/a:b", "gs://bucket", "a b:c", ":x", "x:", ".x:y", "x;$(y):z", "x\x1b[:y")
    for name in (*texts, 3, None):
        assert extensions.module_of(name) is None
    assert extensions.module_of("my-parts.inner:deep.name") == "my-parts.inner"
    free = {"data": {"data_dir": "disk:data"}, "attacks": {"a:b": {"source": "disk:runs"}}, "select_by": "a:b"}
    extensions.check_trust("c", free, ())


@pytest.mark.parametrize("name", ["a/b", "a\\b", "\x1b[31mred", "a\nb", "\u202eb", "", " ", "x" * 101, 7])
def test_names_that_cannot_stand_in_files_and_on_screens(name):
    with pytest.raises(ValueError, match="attacks: the name .* cannot be used: give 1 to 100 printable") as error:
        extensions.check_name("attacks", name)
    assert str(error.value).isprintable() and len(str(error.value)) < 400
    for section in ("points", "terms", "attacks"):
        config = base().to_dict() | {section: {name: {"kind": "pgd"}}}
        with pytest.raises(ValueError, match=f"{section}: the name"):
            check(config)
    extensions.check_name("attacks", "[bold] größer: ‖δ‖ $")
