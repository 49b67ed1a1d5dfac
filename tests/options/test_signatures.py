"""Type hints as checks: every kind of hint takes what it should, and refuses the rest in one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax.options import Count, Fraction
from robust_jax.options.signatures import checks_arguments


@checks_arguments
def function(
    x: Float[Array, "b ... c"] | None = None,
    labels: Int[Array, " b"] | None = None,
    seen: Bool[Array, " b"] | None = None,
    *,
    key: Key[Array, ""] | None = None,
    steps: Count = 1,
    share: Fraction | None = None,
    mode: Literal["eval", "train"] = "eval",
    size: tuple[Count, Count] | int = 1,
    names: Sequence[str] = (),
    several: Iterable[Any] = (),
    by_name: Mapping[str, Callable[..., Any]] = {},
    flip: bool = False,
    anything: Any = None,
):
    """Does nothing."""
    return True


GOOD: list[dict[str, Any]] = [
    dict(x=np.ones((2, 3)), labels=np.array([0, 1], np.uint8)), dict(x=jnp.ones((2, 4, 3), jnp.bfloat16)),
    dict(key=jax.random.key(0)), dict(steps=np.int64(3), share=1), dict(mode="train", size=(1, 2)), dict(size=[1, 2]),
    dict(names=["a"], several=iter("ab"), by_name={"a": len}), dict(flip=np.bool_(True), anything=object()),
]  # fmt: skip
BAD = [
    (dict(x=[1.0]), r"function: x must be floats \[B, ..., C\] or None, got a list"),
    (dict(x=np.ones(2)), r"x must be floats.*float64 \(2,\)"),
    (dict(x=np.ones((2, 3), int)), "x must be floats.*int64"),
    (dict(x=np.ones((2, 3)), labels=np.ones(3, int)), r"labels must be integers \[B\], B=2 as in x; got int64 \(3,\)"),
    (dict(seen=np.ones(2)), "seen must be bools"),
    (dict(key=jax.random.PRNGKey(0)), "key must be one typed key, jax.random.key.0.,"),
    (dict(key=jax.random.split(jax.random.key(0))), "key must be one typed key"),
    (dict(steps=0), "steps=0 must be at least 1"),
    (dict(share=float("nan")), "share=nan"),
    (dict(mode="evl"), "mode='evl' is unknown.*Did you mean 'eval'"),
    (dict(size=(1, 0)), "size must be a tuple .*at least 1.* or a whole number"),
    (dict(size=(1, 2, 3)), "size must be a tuple"),
    (dict(names="abc"), "names must be a tuple or list, each text, got 'abc'"),
    (dict(names=[3]), "names must be"),
    (dict(several=3), "several must be"),
    (dict(by_name={"a": 3}), "by_name must be a dict, each a function"),
    (dict(flip="yes"), "flip must be True or False, got 'yes'"),
]


@pytest.mark.parametrize("given", GOOD)
def test_what_fits_passes(given):
    assert function(**given)


@pytest.mark.parametrize("given, message", BAD)
def test_what_does_not_fit_is_one_message(given, message):
    with pytest.raises(ValueError, match=message) as error:
        function(**given)
    assert str(error.value).startswith("function: ") and str(error.value).isprintable()


def test_traced_values_pass_and_their_shapes_are_checked():
    assert jax.jit(lambda x, s: function(x, steps=s) * 1).lower(np.ones((2, 3)), 3)
    with pytest.raises(ValueError, match="x must be floats"):
        jax.jit(lambda x: function(x)).lower(np.ones(2))


def test_arguments_that_are_missing_or_unknown_are_told_by_the_call():
    with pytest.raises(TypeError, match="nonsense"):
        function(nonsense=1)
    assert function.__name__ == "function" and "steps" in str(__import__("inspect").signature(function))
