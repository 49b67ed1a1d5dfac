"""Norms per example: value, dual, projection, steepest direction, random point of the unit ball.

Arrays are ``[B, ...]``: the first axis counts examples, and every function treats each example independently.

A norm is named ``"l1"``, ``"l2"``, ``"linf"``, a float p >= 1 (``1.5``, ``float("inf")``), or, for arrays whose
last axis holds a vector (flows), ``"l2inf"``, the largest vector length, and ``"l21"``, the sum of vector lengths.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from robust_jax.options import Convert, Positive
from robust_jax.options.signatures import checks_arguments
from robust_jax.options.values import is_number
from robust_jax.spaces import capped, per_example

_NAMED = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
_BY_EXPONENT = {p: name for name, p in _NAMED.items()}
_VECTOR = {"l2inf": "l21", "l21": "l2inf"}


def exponent(norm: Any) -> float | None:
    """The p of an l_p norm, or None for the vector norms l2inf and l21.

    Raises:
      ValueError: not the name of a norm.
    """
    if isinstance(norm, str):
        if norm in _VECTOR:
            return None
        if norm in _NAMED:
            return _NAMED[norm]
    elif is_number(norm) and norm >= 1:
        return float(norm)
    raise ValueError(f"norm={norm!r} is not a norm: choose one of {sorted([*_NAMED, *_VECTOR])} or a number p >= 1.")


def checked(norm: Any) -> Any:
    """The norm by its only name: "l1", "l2" and "linf" for 1, 2 and infinity, another p as a float.

    Raises:
      ValueError: not the name of a norm.
    """
    p = exponent(norm)
    return norm if p is None else _BY_EXPONENT.get(p, p)


Norm = Annotated[Any, Convert(checked)]
"""A norm: "l1", "l2", "linf", a number p >= 1, or for flows "l2inf" and "l21"."""


def dual(norm: Norm) -> Norm:
    """The dual norm: l1 <-> linf, l2 <-> l2, p <-> p / (p - 1), l2inf <-> l21."""
    p = exponent(norm)
    if p is None:
        return _VECTOR[str(norm)]
    return checked(math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _p_norm(x: Array, p: float) -> Array:
    """The l_p norm over the last axis; value and gradient 0 at 0."""
    x = per_example.widened(x)  # float16 has no squares of small numbers, and no quotients by them
    # Not jnp.abs, whose derivative at 0 is 1.
    size = x * jax.lax.stop_gradient(jnp.sign(x))
    if p == 1:
        return size.sum(-1)
    if p == math.inf:
        return size.max(-1)
    # Scaling by the largest entry keeps tiny and huge vectors exact, and 0 away from the root's pole.
    scale = jax.lax.stop_gradient(size.max(-1, keepdims=True))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    unit = size / scale
    total = (jnp.square(unit) if p == 2 else unit**p).sum(-1)
    # Compared with 0, not by >: what is not a number is no vector of length 0.
    root = jnp.where(total == 0, 1, total) ** (1 / p)
    return jnp.where(total == 0, 0, root * scale[..., 0])


@checks_arguments
def norm(x: Float[Array, "b ..."], norm: Norm, power: Positive = 1) -> Float[Array, " b"]:
    """``‖x_i‖^power`` per example, not finite where x_i is not; value and gradient are 0, never NaN, at ``x_i = 0``.

    Half precision is widened: the result is float32.
    """
    p = exponent(norm)
    if p is None:
        lengths = _p_norm(x.reshape(x.shape[0], -1, x.shape[-1]), 2.0)
        value = lengths.max(-1) if norm == "l2inf" else lengths.sum(-1)
    elif p == power == 2:
        return jnp.square(per_example.widened(_flat(x))).sum(-1)
    else:
        value = _p_norm(_flat(x), p)
    # Powers 1 and 2 are exact. A power below 1 has no gradient at 0, where it is taken to be 0.
    if power == 1:
        return value
    if power == 2:
        return jnp.square(value)
    return jnp.where(value == 0, 0, jnp.where(value == 0, 1, value) ** power)


def _lengthen(lengths: Array, x: Array) -> Array:
    """Scales the vectors in the last axis of x (as [B, N, V]) to the given lengths [B, N]; 0 stays 0."""
    old = _p_norm(x, 2.0)
    return (x * (lengths / jnp.where(old > 0, old, 1))[..., None]).astype(x.dtype)


def _project_l1(x: Array) -> Array:
    # In JAX's default float: under jax_enable_x64 optax cannot project float32.
    wide = x.astype(jax.dtypes.canonicalize_dtype(float))
    return jax.vmap(optax.projections.projection_l1_ball)(wide).astype(x.dtype)


@checks_arguments
def project(x: Float[Array, "b ..."], norm: Norm) -> Float[Array, "b ..."]:
    """The nearest point of the unit ball, for l1, l2, linf, l2inf, l21.

    For any other p the point is scaled back along its ray, ``x / max(1, ‖x‖_p)``: in the ball, but not the nearest.
    """
    p = exponent(norm)
    if p is None:
        vectors = x.reshape(x.shape[0], -1, x.shape[-1])
        lengths = _p_norm(vectors, 2.0)
        if norm == "l2inf":
            return _lengthen(jnp.minimum(lengths, 1), vectors).reshape(x.shape)
        return _lengthen(_project_l1(lengths), vectors).reshape(x.shape)
    if p == math.inf:
        return jnp.clip(x, -1, 1)
    if p == 1:
        return _project_l1(x)
    return (_flat(x) / jnp.maximum(_p_norm(_flat(x), p), 1)[:, None]).astype(x.dtype).reshape(x.shape)


def _fill(gradient: Array, headroom: Array) -> Array:
    """The l1 ball's steepest direction subject to ``|δ| <= headroom``: the largest coordinates, each to its limit."""
    one = jnp.ones_like(gradient[:, :1])
    return jnp.sign(gradient) * capped.fill(jnp.abs(gradient), jnp.minimum(headroom, 1), one)


@checks_arguments
def steepest(
    gradient: Float[Array, "b ..."], norm: Norm, headroom: Float[Array, "b ..."] | None = None,
    stride: Float[Array, "b ..."] | None = None,
) -> Float[Array, "b ..."]:  # fmt: skip
    """``argmax_{‖δ‖ <= 1} <gradient, δ>`` per example; 0 where the gradient is 0.

    With ``headroom``, coordinates that cannot move are left out, and for l1 the maximum is also subject to
    ``|δ| <= headroom``. With ``stride``, no coordinate for l1, and no vector for l21, is longer than its (smallest)
    stride; other norms ignore it.

    l_p: ``sign(g) (|g| / ‖g‖_q)^(q - 1)`` with 1/p + 1/q = 1 (Lyu et al. 2015, eq. 9); linf: ``sign(g)``; l1: the
    largest coordinate (the first of equals); l2inf: every vector scaled to length 1; l21: the longest vector.
    """
    p = exponent(norm)
    if p == 1 and stride is not None:
        headroom = stride if headroom is None else jnp.minimum(headroom, stride)
    if headroom is not None:
        if p == 1:
            return _fill(_flat(gradient), _flat(headroom)).reshape(gradient.shape)
        gradient = jnp.where(headroom > 0, gradient, 0)
    if p is None:
        vectors = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])
        lengths = _p_norm(vectors, 2.0)
        if norm == "l2inf":
            return _lengthen(jnp.ones_like(lengths), vectors).reshape(gradient.shape)
        if stride is not None:
            return _lengthen(_fill(lengths, stride.reshape(vectors.shape).min(-1)), vectors).reshape(gradient.shape)
        longest = jax.nn.one_hot(lengths.argmax(-1), lengths.shape[-1], dtype=gradient.dtype)
        return _lengthen(longest, vectors).reshape(gradient.shape)
    flat = _flat(gradient)
    if p == math.inf:
        return jnp.sign(gradient)
    if p == 1:
        largest = jax.nn.one_hot(jnp.abs(flat).argmax(-1), flat.shape[-1], dtype=gradient.dtype)
        return (largest * jnp.sign(flat)).reshape(gradient.shape)
    q = p / (p - 1)
    length = _p_norm(flat, q)[:, None]
    unit = jnp.abs(flat) / jnp.where(length > 0, length, 1)
    return (jnp.sign(flat) * unit ** (q - 1)).astype(gradient.dtype).reshape(gradient.shape)


def _ball(key: Key[Array, ""], shape: tuple[int, ...], p: float) -> Array:
    """Uniform in the unit l_p ball over the last axis (Barthe et al. 2005): x / (Σ |x_i|^p + p E)^(1/p).

    The density of x is exp(-|x|^p / p), that of E exp(-E). For p = 1 and 2 without gamma variates, whose rejection
    loops are 70 times slower on a CPU; for others in logarithms, since |x|^p underflows for large p, as it does in
    `jax.random.ball`.
    """
    if p not in (1, 2):
        power_key, sign_key, rest_key = jax.random.split(key, 3)
        powers = jax.random.loggamma(power_key, 1 / p, shape)  # log of |x|^p / p
        rest = jnp.log(jax.random.exponential(rest_key, (*shape[:-1], 1)))
        total = jax.nn.logsumexp(jnp.concatenate([powers, rest], -1), -1, keepdims=True)
        return jax.random.rademacher(sign_key, shape, powers.dtype) * jnp.exp((powers - total) / p)
    direction_key, radius_key = jax.random.split(key)
    draw = jax.random.laplace if p == 1 else jax.random.normal
    direction = draw(direction_key, shape)  # density exp(-|x|^p / p)
    total = (jnp.abs(direction) ** p).sum(-1) + p * jax.random.exponential(radius_key, shape[:-1])
    return direction / (total ** (1 / p))[..., None]


@checks_arguments
def random_point(key: Key[Array, ""], shape: tuple[int, ...], norm: Norm) -> Float[Array, "..."]:
    """A random point of the unit ball with the shape of one example, uniform in volume.

    For l21 the lengths of the vectors are uniform in the l1 ball, and their directions independent of them, which is
    not uniform in volume.

    Raises:
      ValueError: an unknown norm, or a negative length in the shape.
    """
    p = exponent(norm)
    if min(shape, default=1) < 0:
        raise ValueError(f"random_point: shape={shape} has a negative length.")
    if p == math.inf:
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    if norm == "l2inf":
        return _ball(key, shape, 2)
    if p is None:
        radius_key, direction_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, (1, math.prod(shape[:-1]), shape[-1]))
        lengths = _ball(radius_key, (math.prod(shape[:-1]),), 1)
        return _lengthen(jnp.abs(lengths)[None], direction).reshape(shape)
    return _ball(key, (math.prod(shape),), p).reshape(shape)
