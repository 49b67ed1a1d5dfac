"""Perturbations ``T(x, δ)`` with ``T(x, 0) = x``: the spaces that the library penalises, attacks and trains at.

A perturbation of one's own is two functions::

    brightness = Perturbation(
        zeros=lambda images: jnp.zeros((len(images), 1)),
        apply=lambda images, delta: images + delta[:, :, None, None],
        name="brightness",
    )

``T`` never clips intensities (clipping halves gradients at exact 0s and 1s); attacks clip.
A tuple of perturbations is their composition: applied in order, δ a tuple, each part in its own ball.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax.warping import differences, warp

Images = Float[Array, "b h w c"]
Delta = Any  # an array [B, ...], or for a composition a tuple of such


@dataclass(frozen=True)
class Perturbation:
    """A differentiable family of image changes.

    Attributes:
      zeros: ``images -> δ``, the δ of no change: 0 everywhere, ``[B, ...]``.
      apply: ``(images, δ) -> images``, with ``apply(x, zeros(x)) = x``; must not mix examples.
      name: what tables and JSON call it.
      pullback_at_zero: ``(images, g) -> J'g``, the gradient in δ at δ = 0 given the gradient g in the image; by
        default ``jax.vjp`` of ``apply``.
      confine: ``(images, δ) -> δ``, shrinks δ so that ``apply`` stays in [0, 1]; by default nothing is shrunk and
        attacks clip the image.
      slope: ``(images, δ, g, reach) -> `` what attacks follow in δ in place of the derivative ``J'g``, g the gradient
        in ``T(images, δ)``: for a T whose derivative sees one side of a kink alone. ``reach``, which broadcasts to δ's
        last axis, is how far each coordinate may go whatever the others do; None where they share a budget.
      parts: the perturbations that this one is composed of.
    """

    zeros: Callable[[Images], Delta]
    apply: Callable[[Images, Delta], Images]
    name: str = "custom"
    pullback_at_zero: Callable[[Images, Images], Delta] | None = None
    confine: Callable[[Images, Delta], Delta] | None = None
    slope: Callable[[Images, Delta, Images, Any], Delta] | None = None
    parts: tuple[Perturbation, ...] = ()


def pullback(perturbation: Perturbation, images: Images, gradient: Images) -> Delta:
    """``∂/∂δ <gradient, T(images, δ)>`` at δ = 0: turns an image gradient into a gradient in δ; linear in it."""
    if perturbation.pullback_at_zero is not None:
        return perturbation.pullback_at_zero(images, gradient)
    return jax.vjp(partial(perturbation.apply, images), perturbation.zeros(images))[1](gradient)[0]


def followed(perturbation: Perturbation, images: Images, delta: Delta, reach: Any = None) -> Images:
    """``T(images, δ)`` with the derivative in δ that attacks follow, see `Perturbation.slope`.

    ``reach`` is that of `slope`, for a composition a tuple with one a part.
    """
    if perturbation.parts:
        for i, (part, d) in enumerate(zip(perturbation.parts, delta, strict=True)):
            images = followed(part, images, d, None if reach is None else reach[i])
        return images
    if perturbation.slope is None:
        return perturbation.apply(images, delta)
    return _followed(perturbation, images, delta, None if reach is None else jnp.asarray(reach, delta.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _followed(perturbation: Perturbation, images: Images, delta: Delta, reach: Array | None) -> Images:
    return perturbation.apply(images, delta)


def _forward(perturbation: Perturbation, images: Images, delta: Delta, reach: Array | None) -> tuple[Images, Any]:
    return perturbation.apply(images, delta), (images, delta, reach)


def _backward(perturbation: Perturbation, kept: Any, gradient: Images) -> tuple[Images, Delta, Array | None]:
    images, delta, reach = kept
    in_images = jax.vjp(lambda x: perturbation.apply(x, delta), images)[1](gradient)[0]
    assert perturbation.slope is not None
    return in_images, perturbation.slope(images, delta, gradient, reach), jax.tree.map(jnp.zeros_like, reach)


_followed.defvjp(_forward, _backward)


def inner(one: Delta, other: Delta) -> Float[Array, " b"]:
    """``<one, other>`` of two δ, or of a δ and a gradient in δ, per example; over all parts of a composition."""
    products = jax.tree.map(lambda a, b: (a * b).reshape(len(a), -1).sum(-1), one, other)
    return jnp.stack(jax.tree.leaves(products)).sum(0)


def _flow_pullback(images: Images, gradient: Images, difference: str) -> Array:
    down, across = differences(images, difference)
    return jnp.stack([(gradient * down).sum(-1), (gradient * across).sum(-1)], -1)


def _flow_slope(images: Images, delta: Array, gradient: Images, reach: Any) -> Array:
    """What attacks follow over flows: on each axis T is linear between grid lines, with a kink on them.

    A pixel on a thin stroke changes for the better both ways, and the derivative keeps it on the side where it is.
    With a reach: the slope of <gradient, T> along the chord to the most rewarding of the two next grid lines either
    way, no farther than the reach, 0 where all are worse. Without: the slope from the nearest grid line to its better
    side, the derivative where both are worse.
    """

    def rewards(*positions: Array) -> Array:
        """``<gradient, T>`` of each pixel with one axis of δ moved there, ``[len(positions), B, H, W, axis]``."""
        alone = jnp.eye(2, dtype=bool).reshape(2, 1, 1, 1, 1, 2)
        moved = jnp.where(alone, jnp.stack(positions), delta)
        at_once = jax.vmap(jax.vmap(lambda flow: (gradient * warp(images, flow)).sum(-1)))
        return jnp.moveaxis(at_once(moved), 0, -1)

    if reach is None:
        line = jnp.round(delta)
        on_line, up, down = rewards(line, line + 1, line - 1)
        up, down = up - on_line, down - on_line
        derivative = jnp.where(delta > line, up, jnp.where(delta < line, -down, 0))
        return jnp.where(jnp.maximum(up, down) > 0, jnp.where(up >= down, up, -down), derivative)
    above, below = jnp.floor(delta) + 1, jnp.ceil(delta) - 1
    targets = [jnp.clip(line, -reach, reach) for line in (above, below, above + 1, below - 1)]
    here, *there = rewards(delta, *targets)
    gains, ways = jnp.stack(there) - here, jnp.stack(targets) - delta
    rates = gains / jnp.where(jnp.abs(ways) > 1e-6, ways, jnp.inf)
    best = gains.argmax(0, keepdims=True)
    return jnp.where(gains.max(0) > 0, jnp.take_along_axis(rates, best, 0)[0], 0)


def _flow_zeros(images: Images) -> Array:
    return jnp.zeros((*images.shape[:3], 2), images.dtype)


def _affine_flow(delta: Float[Array, "b 3"], shape: tuple[int, ...]) -> Float[Array, "b h w 2"]:
    """The flow of a rotation about the image centre by delta[:, 0] degrees, then a shift (dy, dx) in pixels."""
    h, w = shape[1:3]
    y = jnp.arange(h, dtype=delta.dtype)[:, None] - (h - 1) / 2
    x = jnp.arange(w, dtype=delta.dtype) - (w - 1) / 2
    angle, dy, dx = (d[:, None, None] for d in jnp.moveaxis(delta, -1, 0))
    angle = angle * (math.pi / 180)
    # 1 - cos as 2 sin², so that no digits are lost (and the flow is exactly 0) at small angles.
    sine, versine = jnp.sin(angle), 2 * jnp.sin(angle / 2) ** 2
    return jnp.stack([-versine * y + sine * x + dy, -versine * x - sine * y + dx], -1)


def _affine_pullback(images: Images, gradient: Images) -> Array:
    zeros = jnp.zeros((len(images), 3), images.dtype)
    flow_vjp = jax.vjp(lambda delta: _affine_flow(delta, images.shape), zeros)[1]
    return flow_vjp(_flow_pullback(images, gradient, "forward"))[0]


additive = Perturbation(
    zeros=jnp.zeros_like,
    apply=lambda images, delta: images + delta,
    name="additive",
    pullback_at_zero=lambda images, gradient: gradient,
    # Clipping δ itself keeps it exact, and an image already outside [0, 1] never pushes it out of its ball.
    confine=lambda images, delta: jnp.clip(delta, jnp.minimum(-images, 0), jnp.maximum(1 - images, 0)),
)
"""``T(x, δ) = x + δ``, δ image-shaped, in units of image intensity."""

flow = Perturbation(_flow_zeros, warp, "flow", partial(_flow_pullback, difference="forward"), slope=_flow_slope)
"""``T(x, δ) = warp(x, δ)``, δ ``[B, H, W, 2]`` (dy, dx) in pixels; penalties take forward differences at 0, attacks
look to both sides of the grid lines, see `Perturbation.slope`."""

flow_symmetric = replace(flow, name="flow_symmetric", pullback_at_zero=partial(_flow_pullback, difference="symmetric"))
"""`flow`, whose gradient at 0 is the mean of both one-sided derivatives."""

affine = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 3), images.dtype),
    apply=lambda images, delta: warp(images, _affine_flow(delta, images.shape)),
    name="affine",
    pullback_at_zero=_affine_pullback,
)
"""Samples at the grid rotated about its centre and shifted: δ ``[B, 3]`` (degrees, dy, dx in pixels)."""

PERTURBATIONS = {p.name: p for p in (additive, flow, flow_symmetric, affine)}


@cache
def compose(*parts: Perturbation) -> Perturbation:
    """The parts applied in order; δ is a tuple with one entry a part, those of a part itself composed in its place.

    Equal parts make the same composition, so that a jitted attack compiles once for all of them.
    """
    if any(part.parts for part in parts):
        return compose(*(leaf for part in parts for leaf in part.parts or (part,)))

    def apply(images: Images, delta: Delta) -> Images:
        for part, d in zip(parts, delta, strict=True):
            images = part.apply(images, d)
        return images

    def confine(images: Images, delta: Delta) -> Delta:
        within: list[Delta] = []
        for part, d in zip(parts, delta, strict=True):
            within.append(confined(part, images, d))
            images = part.apply(images, within[-1])
        return tuple(within)

    return Perturbation(
        zeros=lambda images: tuple(part.zeros(images) for part in parts),
        apply=apply,
        name="+".join(part.name for part in parts),
        # At δ = 0 every part sees the same image, so each pulls back the same gradient.
        pullback_at_zero=lambda images, g: tuple(pullback(part, images, g) for part in parts),
        confine=confine,
        parts=parts,
    )


def get(perturbation: str | Perturbation | Sequence[Any]) -> Perturbation:
    """A perturbation from its name, from itself, or, for a sequence, the composition of its entries."""
    if isinstance(perturbation, Perturbation):
        return perturbation
    if isinstance(perturbation, str) and perturbation in PERTURBATIONS:
        return PERTURBATIONS[perturbation]
    if isinstance(perturbation, str) and ":" in perturbation:
        return _imported(perturbation)
    if isinstance(perturbation, tuple | list) and len(perturbation) > 0:
        return compose(*map(get, perturbation))
    raise ValueError(
        f"perturbation={perturbation!r} is unknown: choose one of {sorted(PERTURBATIONS)}, a tuple of them (their "
        f"composition), a robust_jax.Perturbation of your own, or in a config 'module:name' of one."
    )


def _imported(path: str) -> Perturbation:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"perturbation={path!r} cannot be imported: {error}.") from error
    if not isinstance(found, Perturbation):
        raise ValueError(f"perturbation={path!r} is a {type(found).__name__}, not a robust_jax.Perturbation.")
    return found


def confined(perturbation: Perturbation, images: Images, delta: Delta) -> Delta:
    """δ where `Perturbation.confine` puts it, so that no image leaves [0, 1]; as it is where there is none."""
    return delta if perturbation.confine is None else perturbation.confine(images, delta)


def room(perturbation: Perturbation, images: Images, delta: Delta, direction: Delta) -> Delta:
    """How far each coordinate of δ can go towards ``sign(direction)`` before `confine` holds it back, up to 1.

    Infinite for a perturbation that confines nothing.
    """
    if perturbation.parts:
        rooms = []
        for part, d, v in zip(perturbation.parts, delta, direction, strict=True):
            rooms.append(room(part, images, d, v))
            images = part.apply(images, d)
        return tuple(rooms)
    if perturbation.confine is None:
        return jnp.full_like(delta, jnp.inf)
    sign = jnp.sign(direction)
    return jnp.maximum((perturbation.confine(images, delta + sign) - delta) * sign, 0)


def example_keys(key: Key[Array, "..."], count: int) -> Key[Array, " b"]:
    """One key an example: keys ``[B]`` as they are, one key folded with each example's index."""
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be made by jax.random.key(seed), or split from one; got {key!r}.")
    if key.ndim == 1:
        if len(key) != count:
            raise ValueError(f"key holds {len(key)} keys for {count} images: pass one key, or one an image.")
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def fold_keys(keys: Key[Array, " b"], data: int | Int[Array, "..."]) -> Key[Array, " b"]:
    """Every example's key, folded with a number: the same one, or its own ``[B]``."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(data, keys.shape))


def gaussian_delta(perturbation: Perturbation, keys: Key[Array, " b"], images: Images, sigma: Any) -> Delta:
    """δ with independent N(0, sigma²) coordinates, sigma in units of δ, broadcast to its last axis."""
    leaves, tree = jax.tree.flatten(perturbation.zeros(images))
    sigmas = sigma if perturbation.parts and isinstance(sigma, tuple | list) else [sigma] * len(leaves)
    part_keys = jax.vmap(partial(jax.random.split, num=len(leaves)), out_axes=1)(keys)
    noise = [
        jax.vmap(lambda k, z: jax.random.normal(k, z.shape, z.dtype))(k, leaf) * jnp.asarray(s, leaf.dtype)
        for k, leaf, s in zip(part_keys, leaves, sigmas, strict=True)
    ]
    return jax.tree.unflatten(tree, noise)
