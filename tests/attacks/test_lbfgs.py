from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.attacks.lbfgs import TRIALS, minimise

pytestmark = pytest.mark.usefixtures("quick_compile")


def lowest(objective, start, steps):
    """The least value of each example, and where it was; and how many points were looked at."""

    def visit(point, value, carry):
        best, at, count = carry
        lower = value < best
        return jnp.where(lower, value, best), jnp.where(lower[:, None], point, at), count + 1

    carry = jnp.full(len(start), jnp.inf), start, 0
    return jax.jit(lambda x: minimise(objective, x, steps, visit, carry))(start)


def rosenbrock(x):
    return (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2


def test_minima_that_are_known():
    rng = np.random.default_rng(0)
    a = jnp.asarray(np.linalg.qr(rng.normal(size=(3, 6, 6)))[0], jnp.float32)
    scale = jnp.logspace(0, 2, 6)  # a condition number of 100
    least = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    quadratic = lambda x: (scale * jnp.einsum("bij,bj->bi", a, x - least) ** 2).sum(-1)  # noqa: E731
    value, point, count = lowest(quadratic, jnp.zeros((3, 6)), 60)
    # The last bits of a float32 near the minimum: values to 1e-9 of those at the start, points to its root.
    np.testing.assert_allclose(point, least, atol=1e-3)
    assert (value < 1e-6 * quadratic(jnp.zeros((3, 6)))).all()
    assert count == 61

    starts = jnp.array([[-1.2, 1.0], [0.0, 0.0], [2.0, -1.0], [1.0, 1.0]])
    value, point, _ = lowest(rosenbrock, starts, 120)
    np.testing.assert_allclose(point, 1.0, atol=1e-2)


def test_objectives_with_kinks():
    # Where the gradient never vanishes: a line search for smooth functions would not end.
    weights = jnp.array([1.0, 5.0, 0.2])
    value, *_ = lowest(lambda x: (weights * jnp.abs(x)).sum(-1), jnp.array([[3.0, -2.0, 1.5], [0.1, 0.1, 0.1]]), 100)
    assert (value < 1e-2).all()


def test_each_example_alone():
    starts = jnp.array([[-1.2, 1.0], [5.0, 5.0], [0.3, 0.2]])
    together = lowest(rosenbrock, starts, 8)
    for i in range(len(starts)):
        alone = lowest(rosenbrock, starts[i : i + 1], 8)
        # Eight steps have not amplified the rounding of another program yet.
        np.testing.assert_allclose(together[0][i], alone[0][0], rtol=1e-3)


def test_values_that_are_not_finite_are_stepped_back_from():
    root = lambda x: (jnp.sqrt(x) - 1).sum(-1) ** 2  # noqa: E731  # NaN below 0
    value, point, _ = lowest(root, jnp.array([[4.0], [1e-3]]), 60)
    np.testing.assert_allclose(point, 1.0, atol=1e-3)
    # Nothing to find: it ends all the same, and moves nowhere.
    value, point, count = lowest(lambda x: jnp.nan * x[:, 0], jnp.ones((1, 1)), 2 * TRIALS)
    assert count == 2 * TRIALS + 1 and (point == 1).all()
