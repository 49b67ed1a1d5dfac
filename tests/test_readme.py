"""The Python of the README, run in order in one namespace as a reader would."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(name, namespace):
    """Runs the python blocks of a page in one namespace; returns how many there are."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)  # noqa: S102
    return len(blocks)


@pytest.mark.slow
def test_the_readme_runs(tmp_path):
    namespace = {"workdir": tmp_path / "run"}
    assert run_python("README.md", namespace) == 4
    result, penalty, state = (namespace[name] for name in ("result", "penalty", "state"))
    assert result.delta.shape == (32, 2)
    assert jnp.all(jnp.abs(result.delta) <= jnp.array([0.3, 0.2]) * 1.0001)
    assert penalty.shape == (32,) and jnp.all(penalty > 0)
    assert state.step == 2 and (tmp_path / "run" / "checkpoints" / "best").is_dir()
