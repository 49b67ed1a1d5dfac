"""How far each coordinate moves if none may pass its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.spaces import capped

RNG = np.random.default_rng(0)


def filled(scores, limits, total):
    """By sorting, in double precision."""
    lengths = np.zeros(len(scores))
    for i in np.argsort(-scores, kind="stable"):
        lengths[i] = min(limits[i], total - lengths.sum())
    return lengths


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fill_is_what_sorting_gives(dtype):
    scores, limits = (jnp.asarray(RNG.exponential(size=(20, 50)), dtype) for _ in range(2))
    scores = scores.at[:, 7].set(scores[:, 3])  # equals
    total = jnp.linspace(0, 60, 20, dtype=dtype)[:, None]
    found = capped.fill(scores, limits, total)
    # n sums of n numbers of size 1, each rounded: n eps times the sum at most.
    bound = 50 * float(jnp.finfo(dtype).eps) * 60
    rows = zip(*(np.asarray(x, float) for x in (scores, limits, total[:, 0])), strict=True)
    expected = [filled(*row) for row in rows]
    np.testing.assert_allclose(np.asarray(found, float), expected, atol=bound)


def test_fill_of_integers_is_exact():
    scores = jnp.asarray(RNG.integers(0, 5, (30, 40)), float)
    limits = jnp.asarray(RNG.integers(0, 4, (30, 40)), float)
    total = jnp.arange(30.0)[:, None] * 4
    expected = [filled(*map(np.asarray, row)) for row in zip(scores, limits, total[:, 0], strict=True)]
    np.testing.assert_array_equal(capped.fill(scores, limits, total), expected)


def test_fill_takes_nan_for_zero():
    found = capped.fill(jnp.array([[jnp.nan, 1.0, 0.0]]), jnp.ones((1, 3)), jnp.array([[1.5]]))
    np.testing.assert_array_equal(found, [[0.5, 1.0, 0.0]])


@pytest.mark.parametrize("kind", ["equal speeds", "speeds", "few limits", "no speed"])
def test_spread_reaches_the_gain_at_one_time(kind):
    slopes, limits, speeds = jnp.asarray(RNG.exponential(size=(3, 40, 60)), jnp.float32)
    if kind == "equal speeds":
        speeds = jnp.ones_like(speeds)
    if kind == "few limits":
        limits = limits.at[:, 5:].set(jnp.inf)
    if kind == "no speed":
        speeds = speeds.at[:, ::2].set(0)
    most = jnp.where(speeds > 0, slopes * jnp.where(jnp.isinf(limits), 9, limits), 0).sum(-1)
    gain = most * jnp.linspace(0, 0.99, 40)
    found = capped.spread(slopes, limits, speeds, gain[:, None])
    # Sums of 60 numbers, each rounded.
    np.testing.assert_allclose((slopes * found).sum(-1), gain, rtol=60 * jnp.finfo(jnp.float32).eps, atol=1e-5)
    free = (found < limits) & (speeds > 0)
    times = jnp.where(free, found / jnp.where(free, speeds, 1), jnp.nan)
    latest = jnp.nanmax(times, -1, keepdims=True)
    np.testing.assert_allclose(times, jnp.where(free, latest, jnp.nan), rtol=1e-6)
    assert (jnp.where(free | (speeds == 0), 0, limits / speeds) <= latest * (1 + 1e-6)).all()


def test_spread_beyond_what_the_limits_allow_is_the_limits():
    limits = jnp.asarray(RNG.exponential(size=(5, 8)))
    np.testing.assert_array_equal(capped.spread(limits, limits, jnp.ones_like(limits), jnp.full((5, 1), 1e6)), limits)
    found = capped.spread(jnp.zeros((1, 2)), jnp.full((1, 2), jnp.inf), jnp.ones((1, 2)), jnp.ones((1, 1)))
    np.testing.assert_array_equal(found, np.inf)  # no slope and no limit: nothing is reached


def test_both_under_jit_and_vmap():
    args = jnp.asarray(RNG.exponential(size=(2, 4, 9, 6)), jnp.float32)
    totals = jnp.ones((4, 9, 1))
    for function, given in ((capped.fill, (*args, totals)), (capped.spread, (*args, args[0], totals))):
        together = jax.jit(jax.vmap(function))(*given)
        alone = jnp.stack([function(*(x[i] for x in given)) for i in range(4)])
        np.testing.assert_allclose(together, alone, rtol=1e-6)
