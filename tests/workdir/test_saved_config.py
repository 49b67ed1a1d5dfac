"""config.json: read, or, if it is damaged, taken from a checkpoint; never a traceback."""

from __future__ import annotations

import json
import operator
from dataclasses import replace
from functools import reduce

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from robust_jax.configs import digits_standard
from robust_jax.perturbations import additive, compose, flow
from robust_jax.workdir import checkpoints, saved_config

CONFIG = {"seed": 3, "terms": {"ce": {"weight": 1.0}}}


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "cut": (lambda p: p.write_text(p.read_text()[:20]), "it is no JSON"),
    "binary": (lambda p: p.write_bytes(bytes(range(256))), "it is no JSON"),
    "a list": (lambda p: p.write_text("[1]"), "it holds a list"),
    "a number": (lambda p: p.write_text("3"), "it holds a int"),
    "deep": (lambda p: p.write_text("[" * 200_000), "nested too deep"),
    "a folder": (make_folder, "is a folder"),
    "missing": (lambda p: p.unlink(), "No such file"),
}


def test_a_config_is_kept_as_what_it_is():
    numbers = {"steps": np.int64(3), "keep": np.bool_(True), "radius": np.float64(0.5), "names": jnp.arange(2)}
    spaces = {"space": compose(flow, additive), "own": replace(flow, name="mine")}
    kept = saved_config.plain(ConfigDict(numbers | spaces))
    assert {name: kept[name] for name in numbers} == {"steps": 3, "keep": True, "radius": 0.5, "names": [0, 1]}
    assert {name: kept[name] for name in spaces} == {"space": ["flow", "additive"], "own": "mine"}
    assert type(kept["steps"]) is int and kept["keep"] is True
    with pytest.raises(ValueError, match="'flow' is the name of a built-in perturbation"):
        saved_config.plain(ConfigDict({"own": replace(flow, unit="")}))
    with pytest.raises(ValueError, match="cannot keep a function.*module:name"):
        saved_config.plain(ConfigDict({"loss": replace}))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_config_is_taken_from_a_checkpoint_or_named(kind, tmp_path, caplog):
    damage, why = DAMAGE[kind]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    assert saved_config.read(tmp_path) == CONFIG
    damage(path)
    with pytest.raises(ValueError, match=f"{path} .*" + ("does not exist" if kind == "missing" else why)):
        saved_config.read(tmp_path)
    with checkpoints.opened(tmp_path, CONFIG) as saved:
        saved.save("best", 2, {"a": np.zeros(2)})
    assert saved_config.read(tmp_path) == CONFIG
    assert f"{path} is damaged" in caplog.text and why in caplog.text and "best/2" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 128.5), ("seed", 1.5), ("evaluation.limit", 2.5), ("seed", -1), ("precision", "int8")],
)
def test_a_saved_value_that_cannot_be_right_is_refused_as_in_a_new_config(tmp_path, key, value):
    path, group = key.split("."), digits_standard.get_config().to_dict()
    reduce(operator.getitem, path[:-1], group)[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(saved_config.plain(ConfigDict(group))))
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        saved_config.read_config(tmp_path)
