"""The Python of the README, run in order in one namespace as a reader would."""

import re
from pathlib import Path

import jax.numpy as jnp

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readme_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    namespace = {"workdir": tmp_path / "run"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)  # noqa: S102
    result, penalty, state = (namespace[name] for name in ("result", "penalty", "state"))
    assert result.delta.shape == (32, 2)
    assert jnp.all(jnp.abs(result.delta) <= jnp.array([0.3, 0.2]) * 1.0001)
    assert penalty.shape == (32,) and jnp.all(penalty > 0)
    assert state.step == 2 and (tmp_path / "run" / "checkpoints" / "best").is_dir()
