"""Perturbations ``T(x, δ)`` with ``T(x, 0) = x``: the spaces that the library penalises, attacks and trains at.

A perturbation of your own is two functions::

    brightness = Perturbation(
        zeros=lambda images: jnp.zeros((len(images), 1)),
        apply=lambda images, delta: images + delta[:, :, None, None],
        name="brightness",
    )

``T`` never clips intensities (clipping halves gradients at exact 0s and 1s); attacks clip.
A tuple of perturbations is their composition: they are applied in order, δ is a tuple, and each part has its own ball.
The built-in ones are in `robust_jax.spaces.additive`, `flow` and `affine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from robust_jax.options import Positive, Range
from robust_jax.options.hints import described, is_float_array
from robust_jax.options.signatures import check_arguments, checks_arguments

Images = Float[Array, "b h w c"]
Sigma = Annotated[Any, Range(least=0, tuples=True)]
Delta = Any  # an array [B, ...], or for a composition a tuple of these


class Stride(NamedTuple):
    """The reach of a coordinate that shares its budget with few others, see `Perturbation.slope`: this way from δ."""

    way: Any


@dataclass(frozen=True)
class Perturbation:
    """A differentiable family of image changes.

    Attributes:
      zeros: ``images -> δ``, the δ that changes nothing: 0 everywhere, ``[B, ...]``.
      apply: ``(images, δ) -> images``, with ``apply(x, zeros(x)) = x``; must not mix examples.
      name: its name in tables and JSON.
      pullback_at_zero: ``(images, g) -> J'g``, the gradient in δ at δ = 0 given the gradient g in the image; by
        default ``jax.vjp`` of ``apply``.
      confine: ``(images, δ) -> δ``, shrinks δ so that ``apply`` stays in [0, 1]; by default δ is left alone and
        attacks clip the image.
      slope: ``(images, δ, g, reach) -> δ-shaped``, the direction that attacks follow instead of the derivative ``J'g``,
        with g the gradient in ``T(images, δ)`` of what is maximised: for a T with kinks, where the derivative describes
        one side only. It is not linear in g: what is to be minimised is differentiated as its negative.
        ``reach``, which broadcasts to δ's last axis, is how far each coordinate may go independently of the others;
        None if they share a budget. In l1 and l21 balls of a perturbation with a stride it is a `Stride`.
      stride: how far one step of PGD takes a coordinate, in l21 a vector, in l1 and l21 balls, whose steepest direction
        is otherwise a single one of them: for a T that is linear over short ways only. The rest of the step goes to
        the next best. None for no limit.
      parts: the perturbations that this one is composed of.
      unit: the unit of δ in tables and pictures, such as "px".
      moves_pixels: whether T moves contents over rows and columns, so that it matters which axes these are: attacks and
        penalties then refuse images whose channels seem to come first, see `robust_jax.spaces.checks.check_layout`.
    """

    zeros: Callable[[Images], Delta]
    apply: Callable[[Images, Delta], Images]
    name: str = "custom"
    pullback_at_zero: Callable[[Images, Images], Delta] | None = None
    confine: Callable[[Images, Delta], Delta] | None = None
    slope: Callable[[Images, Delta, Images, Any], Delta] | None = None
    stride: Positive | None = None
    parts: tuple[Perturbation, ...] = ()
    unit: str = ""
    moves_pixels: bool = False

    def __post_init__(self) -> None:
        check_arguments(type(self), (), vars(self))

    def __repr__(self) -> str:
        return f"Perturbation({self.name!r}{f', unit={self.unit!r}' if self.unit else ''})"


@checks_arguments
def pullback(perturbation: Perturbation, images: Images, gradient: Images) -> Delta:
    """``∂/∂δ <gradient, T(images, δ)>`` at δ = 0: turns an image gradient into a gradient in δ; linear in it."""
    if perturbation.pullback_at_zero is not None:
        return perturbation.pullback_at_zero(images, gradient)
    moved, pull = jax.vjp(partial(perturbation.apply, images), perturbation.zeros(images))
    return pull(gradient.astype(moved.dtype))[0]


@checks_arguments
def apply_with_slope(perturbation: Perturbation, images: Images, delta: Delta, reach: Any = None) -> Images:
    """``T(images, δ)``, whose derivative in δ is replaced by `Perturbation.slope`, which attacks follow.

    Only for what is maximised: the slope of -f is not minus that of f.
    ``reach`` is the argument of `slope`; for a composition it is a tuple with one entry per part.
    """
    check_delta(perturbation, images, delta=delta)
    if perturbation.parts:
        for i, (part, d) in enumerate(zip(perturbation.parts, delta, strict=True)):
            images = apply_with_slope(part, images, d, None if reach is None else reach[i])
        return images
    if perturbation.slope is None:
        return perturbation.apply(images, delta)
    reach = jax.tree.map(lambda way: jnp.asarray(way, delta.dtype), reach)
    return _apply_with_slope(perturbation, images, delta, reach)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply_with_slope(perturbation: Perturbation, images: Images, delta: Delta, reach: Array | Stride | None) -> Images:
    return perturbation.apply(images, delta)


def _forward(perturbation: Perturbation, images: Images, delta: Delta, reach: Any) -> tuple[Images, Any]:
    return perturbation.apply(images, delta), (images, delta, reach)


def _backward(perturbation: Perturbation, kept: Any, gradient: Images) -> tuple[Images, Delta, Any]:
    images, delta, reach = kept
    in_images = jax.vjp(lambda x: perturbation.apply(x, delta), images)[1](gradient)[0]
    assert perturbation.slope is not None
    return in_images, perturbation.slope(images, delta, gradient, reach), jax.tree.map(jnp.zeros_like, reach)


_apply_with_slope.defvjp(_forward, _backward)


@cache
def compose(*parts: Perturbation) -> Perturbation:
    """The parts applied in order; δ is a tuple with one entry per part. A part that is a composition is flattened.

    Equal parts give the identical object, so that a jitted attack compiles once for all of them.
    """
    for part in parts:
        if not isinstance(part, Perturbation):
            raise ValueError(
                f"compose: a part is {described(part)}, no robust_jax.Perturbation: see perturbations.get."
            )
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


def broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether the one shape broadcasts to the other."""
    return len(small) <= len(large) and all(a in (1, b) for a, b in zip(small[::-1], large[::-1], strict=False))


def check_delta(perturbation: Perturbation, images: Images, **deltas: Delta) -> None:
    """Raises ValueError for a δ, by its name here, that is not one of these images'."""
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(perturbation.zeros, images))
    for name, delta in deltas.items():
        if not all(map(is_float_array, jax.tree.leaves(delta))) or jax.tree.map(jnp.shape, delta) != shapes:
            raise ValueError(
                f"{name} is no δ of {perturbation.name} for images {images.shape}: it must be an array of shape "
                f"{shapes}, got {described(delta)}."
            )


@checks_arguments
def confined(perturbation: Perturbation, images: Images, delta: Delta) -> Delta:
    """δ after `Perturbation.confine`, so that no image leaves [0, 1]; unchanged if the perturbation has none."""
    check_delta(perturbation, images, delta=delta)
    return delta if perturbation.confine is None else perturbation.confine(images, delta)


@checks_arguments
def headroom(perturbation: Perturbation, images: Images, delta: Delta, direction: Delta) -> Delta:
    """How far each coordinate of δ can move along ``sign(direction)`` before `confine` stops it, at most 1.

    Infinite for a perturbation without `confine`.
    """
    check_delta(perturbation, images, delta=delta, direction=direction)
    if perturbation.parts:
        headrooms = []
        for part, d, v in zip(perturbation.parts, delta, direction, strict=True):
            headrooms.append(headroom(part, images, d, v))
            images = part.apply(images, d)
        return tuple(headrooms)
    if perturbation.confine is None:
        return jnp.full_like(delta, jnp.inf)
    sign = jnp.sign(direction)
    return jnp.maximum((perturbation.confine(images, delta + sign) - delta) * sign, 0)


def free(gradient: Delta, room: Delta) -> Delta:
    """The gradient without the coordinates that the box holds back: they do not lead anywhere."""
    return jax.tree.map(lambda g, r: jnp.where(r > 0, g, 0), gradient, room)


@checks_arguments
def gaussian_delta(perturbation: Perturbation, keys: Key[Array, " b"], images: Images, sigma: Sigma) -> Delta:
    """δ with independent N(0, sigma²) coordinates, sigma in units of δ, broadcast to its last axis."""
    leaves, tree = jax.tree.flatten(perturbation.zeros(images))
    sigmas = sigma if perturbation.parts and isinstance(sigma, tuple | list) else [sigma] * len(leaves)
    for leaf, s in zip(leaves, sigmas, strict=True) if len(sigmas) == len(leaves) else [(jnp.zeros(()), sigma)]:
        if not broadcasts(np.shape(s), leaf.shape):
            raise ValueError(f"sigma={sigma!r} of {perturbation.name} does not fit δ, {leaf.shape}: give one number.")
    part_keys = jax.vmap(partial(jax.random.split, num=len(leaves)), out_axes=1)(keys)
    noise = [
        jax.vmap(lambda k, z: jax.random.normal(k, z.shape, z.dtype))(k, leaf) * jnp.asarray(s, leaf.dtype)
        for k, leaf, s in zip(part_keys, leaves, sigmas, strict=True)
    ]
    return jax.tree.unflatten(tree, noise)
