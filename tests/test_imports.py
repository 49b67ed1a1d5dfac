"""The package's floors: no import runs up, none goes in a circle, and the face loads what it needs alone."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "robust_jax"
FLOORS = [
    {"extensions", "files", "options", "parallel", "progress"},
    {"checks", "losses", "norms", "perturbations", "spaces", "threat_models"},
    {"attacks", "penalties"},
    {"objectives"},
    {"config", "data", "models"},
    {"configs", "workdir"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"__main__", "commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def name_of(path):
    parts = ["robust_jax", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path):
    """The package's modules that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not getattr(node, "level", 0), f"{path}: an import from dots, which is not followed here"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robust_jax":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "robust_jax"}
    return found


def room(module):
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES if module != "robust_jax"} == set(FLOOR)


def test_no_import_runs_up_a_floor():
    up = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module != "robust_jax"
        for other in imports_of(path)
        if other == "robust_jax" or FLOOR[room(other)] > FLOOR[room(module)]
    ]
    assert not up


def test_no_import_goes_in_a_circle():
    # A package's own face imports its modules, which may name the package only by its modules.
    graph = {module: imports_of(path) - {module} for module, path in MODULES.items() if module != "robust_jax"}
    assert sum(map(len, graph.values())) > len(graph)  # imports were found
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_what_the_benchmarks_import_exists():
    # They run for minutes to hours, and most are in no test.
    found = 0
    for path in (PACKAGE.parents[1] / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "robust_jax":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert f"{node.module}.{alias.name}" in MODULES or hasattr(module, alias.name), (path, alias.name)
                    found += 1
    assert found > 50


HEAVY = ["absl", "flax", "grain", "matplotlib", "ml_collections", "orbax", "rich", "scipy.stats", "sklearn",
         "tensorboardX", "tensorflow_datasets", "tqdm"]  # fmt: skip
ATTACK = """
import sys, jax, jax.numpy as jnp, optax
loaded = set(sys.modules)  # what jax and optax load is not ours
import robust_jax as rj
images, weights = jnp.full((2, 4, 4, 1), 0.5), jnp.ones((16, 3))
threat = rj.ThreatModel("additive", norm="linf", radius=0.1)
logits_fn = lambda x: x.reshape(2, 16) @ weights
jax.jit(lambda x, y: rj.attacks.pgd(logits_fn, x, y, threat, key=jax.random.key(0), steps=2))(images, jnp.array([0, 1]))
rj.gradient_norm(lambda x: x.sum((1, 2, 3)), images, "flow")
print([name for name in {names} if name in set(sys.modules) - loaded])
"""


def test_attacking_a_function_loads_nothing_for_models_data_checkpoints_or_drawing():
    code = ATTACK.replace("{names}", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["train", "evaluate", "load", "model", "robustness", "models", "warp"])
def test_the_face_has_every_public_name(name):
    import robust_jax

    assert getattr(robust_jax, name) is not None and name in dir(robust_jax)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        robust_jax.nothing  # noqa: B018
