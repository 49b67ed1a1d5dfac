"""What is saved comes back bit for bit; the newest alone is kept; what was half written is no checkpoint."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from robust_jax.training.step import init_state
from robust_jax.workdir import checkpoints


def state(seed=0):
    import jax.numpy as jnp
    import optax

    rng = np.random.default_rng(seed)
    variables = {
        "params": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}},
        "batch_stats": {"BatchNorm_0": {"mean": jnp.asarray(rng.normal(size=2), jnp.float32)}},
    }
    return jax.device_get(init_state(variables, optax.adam(0.1), 0.9))


def same(one, other):
    leaves, tree = jax.tree.flatten(one)
    others, other_tree = jax.tree.flatten(other)
    assert tree == other_tree
    for a, b in zip(leaves, others, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_for_bit_with_and_without_its_structure(tmp_path):
    saved_state = state().replace(step=np.int32(12), best=np.float32(0.1))
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") is None and saved.step("best") is None
        saved.save("latest", 12, saved_state)
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") == 12 and saved.step("best") is None
        same(saved.restore("latest", state(1)), saved_state)
        plain = saved.restore("latest")
    np.testing.assert_array_equal(plain["params"]["Dense_0"]["kernel"], saved_state.params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(
        plain["ema"]["params"]["Dense_0"]["kernel"], saved_state.ema["params"]["Dense_0"]["kernel"]
    )
    assert plain["step"] == 12


def test_the_newest_alone_is_kept_and_a_step_is_replaced(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        for step in (1, 2, 3):
            saved.save("latest", step, state(step))
        saved.save("best", 2, state(2))
        saved.save("latest", 3, state(4))  # again, other contents
        saved.wait("latest")
        assert (saved.step("latest"), saved.step("best")) == (3, 2)
        same(saved.restore("latest", state()), state(4))
    for kind, step in (("latest", "3"), ("best", "2")):
        assert [p.name for p in (tmp_path / "checkpoints" / kind).iterdir()] == [step]


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state(5))
    half = tmp_path / "checkpoints" / "latest" / "9.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    with checkpoints.opened(tmp_path) as saved:
        assert saved.step("latest") == 5
        saved.save("latest", 9, state(9))
        saved.wait("latest")
        same(saved.restore("latest", state()), state(9))


def test_restoring_into_another_structure_is_an_error(tmp_path):
    with checkpoints.opened(tmp_path) as saved:
        saved.save("latest", 5, state())
        saved.wait("latest")
        with pytest.raises(ValueError):
            saved.restore("latest", {"params": np.zeros(3)})
