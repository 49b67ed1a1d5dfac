"""Threat models: a perturbation, a norm and a radius, and the geometry of their ball.

The ball is ``{δ : ‖δ / radius‖ <= 1}``. Functions here take a δ (or a gradient in δ) of the threat model's
perturbation; for a composition that is a tuple, and every part has a ball of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from robust_jax.options import Range, Spread, shown
from robust_jax.options.hints import described, is_float_array
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces import norms, per_example, perturbations, registry
from robust_jax.spaces.perturbations import Delta, Images, Perturbation

StepSize = Annotated[Any, Range(least=0, tuples=True)]
Factor = Annotated[Any, Range(least=0)]
Radius = Annotated[Any, Range(least=0, tuples=True, schedule=True, required=True)]
"""A radius in a config: a number, or one per axis of δ; for a composition a tuple with one per part."""


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class ThreatModel:
    """What an adversary may do: the ball ``{δ : ‖δ / radius‖ <= 1}`` of a perturbation.

    Attributes:
      perturbation: "additive", "flow", "affine", a `Perturbation`, or a tuple of these (their composition).
      norm: "l1", "l2", "linf", a number p >= 1, or for flows "l2inf" (largest vector length) and "l21";
        for a composition a tuple with one per part (a single one serves all parts).
      radius: in units of δ (intensity in [0, 1], pixels, degrees): a number, or one that broadcasts to δ's last
        axis, such as (30, 3, 3) for affine; for a composition a tuple with one per part. In linf every coordinate is
        bounded: a flow radius of 0.155 px lets a pixel move up to 0.155 px along each axis, 0.219 px in all.

    The radius is a pytree leaf, so that a jitted attack compiles once for all radii.

    Example::

        ThreatModel("additive", norm="linf", radius=8 / 255)
        ThreatModel(("flow", "additive"), norm="linf", radius=(0.25, 4 / 255))

    Raises:
      ValueError: an unknown perturbation or norm, no radius, a negative or non-finite one, tuples of the wrong length.
    """

    perturbation: Any
    norm: Any = "linf"
    radius: Radius = None

    def __post_init__(self) -> None:
        space, norm, radius = registry.get(self.perturbation), self.norm, self.radius
        if space.parts:
            norm = tuple(norm) if isinstance(norm, tuple | list) else (norm,) * len(space.parts)
            if not isinstance(radius, tuple | list) or not len(norm) == len(radius) == len(space.parts):
                raise ValueError(
                    f"a composition of {len(space.parts)} perturbations ({space.name}) takes a tuple of as many "
                    f"norms and radii, one per part; got norm={self.norm!r}, radius={self.radius!r}."
                )
            radius = tuple(map(_checked_radius, radius))
        else:
            radius = _checked_radius(radius)
        norm = tuple(map(norms.checked, norm)) if space.parts else norms.checked(norm)
        for name, value in (("perturbation", space), ("norm", norm), ("radius", radius)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        space = self.perturbation
        names = tuple(part.name for part in space.parts) or space.name
        return f"ThreatModel({names!r}, norm={self.norm!r}, radius={shown.short(self.radius)})"

    def __eq__(self, other: object) -> bool:
        """Whether perturbation, norm and radius are equal, also where a radius is an array."""
        if not isinstance(other, ThreatModel) or (self.perturbation, self.norm) != (other.perturbation, other.norm):
            return False
        return jax.tree.all(jax.tree.map(np.array_equal, self.radius, other.radius))

    def __hash__(self) -> int:
        return hash((self.perturbation, self.norm))

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Perturbation, Any]]:
        """The radius is data, the rest is static."""
        return (self.radius,), (self.perturbation, self.norm)

    @classmethod
    def tree_unflatten(cls, static: tuple[Perturbation, Any], data: tuple[Any]) -> ThreatModel:
        """Rebuilds without checks: JAX puts tracers and placeholders where the radius was."""
        threat = object.__new__(cls)
        for name, value in zip(("perturbation", "norm", "radius"), (*static, *data), strict=True):
            object.__setattr__(threat, name, value)
        return threat


Threat = Annotated[ThreatModel, Spread(ThreatModel)]
"""An option that a config gives by ``perturbation``, ``norm`` and ``radius``."""


def _checked_radius(radius: Any) -> Any:
    if isinstance(radius, jax.core.Tracer):
        return radius
    try:
        values = np.asarray(np.nan if isinstance(radius, str | bool) else radius, np.float32)
    except (TypeError, ValueError):
        values = np.asarray(np.nan)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise ValueError(
            f"radius={radius!r} is not a radius: give a finite number >= 0 in units of δ (intensity in [0, 1], "
            f"pixels, degrees), or one number for each entry of δ's last axis."
        )
    return values if isinstance(radius, tuple | list) else radius


class _Part(NamedTuple):
    space: Perturbation
    norm: norms.Norm
    radius: Any

    @property
    def stride(self) -> float | None:
        """The stride if a single coordinate or vector is the steepest direction of this ball, else None."""
        return self.space.stride if self.norm == "l21" or norms.exponent(self.norm) == 1 else None


def _parts(threat: ThreatModel) -> list[_Part]:
    """The parts of a composition, or the one of a threat model that is none."""
    space = threat.perturbation
    if not space.parts:
        return [_Part(space, threat.norm, threat.radius)]
    return [_Part(*part) for part in zip(space.parts, threat.norm, threat.radius, strict=True)]


def _split(threat: ThreatModel, value: Any) -> Any:
    """The δ of each part."""
    return value if threat.perturbation.parts else (value,)


def _joined(threat: ThreatModel, values: Iterable[Any]) -> Any:
    """A value per part in the form of δ: a tuple for a composition."""
    found = tuple(values)
    return found if threat.perturbation.parts else found[0]


def _map_parts(f: Callable[..., Any], threat: ThreatModel, **given: Any) -> Any:
    """``f(norm, radius, **given)`` for each part of a composition; what is given is δ's, gradients or a step size.

    Raises:
      ValueError: something given, by its name here, that is no array or of another shape than the first; a radius or
        ``step_size`` that does not broadcast to it.
    """
    space = threat.perturbation
    if space.parts:
        for name, value in given.items():
            if not isinstance(value, tuple | list) or len(value) != len(space.parts):
                raise ValueError(
                    f"{name} must be a tuple of one for each part of {space.name}, got {described(value)}."
                )
    found = []
    for i, part in enumerate(_parts(threat)):
        own = {name: _split(threat, value)[i] for name, value in given.items()}
        _check_part(space.name, part.radius, own)
        found.append(f(part.norm, part.radius, **own))
    return _joined(threat, found)


def _check_part(name: str, radius: Any, given: dict[str, Any]) -> None:
    first: Any = None
    for argument, value in given.items():
        if argument == "step_size":
            if not perturbations.broadcasts(np.shape(value), first.shape):
                raise ValueError(f"step_size={value!r} of {name} does not fit δ, {first.shape}: give one number.")
        elif not is_float_array(value) or not value.ndim:
            raise ValueError(f"{argument} of {name} must be an array of floats [b, ...], got {described(value)}.")
        elif first is not None and value.shape != first.shape:
            raise ValueError(
                f"{argument} of {name} has shape {value.shape}, but {next(iter(given))} has {first.shape}."
            )
        first = value if first is None else first
    if first is not None and not perturbations.broadcasts(np.shape(radius), first.shape):
        raise ValueError(
            f"radius={radius!r} of {name} has shape {np.shape(radius)}, but δ has {first.shape}: give one number, or "
            f"one for each entry of δ's last axis."
        )


def _divide(delta: Array, radius: Any) -> Array:
    """δ / radius, and 0 where the radius is 0."""
    radius = jnp.asarray(radius, delta.dtype)
    return per_example.quotient(delta, radius)


def _times(delta: Array, radius: Any) -> Array:
    return delta * jnp.asarray(radius, delta.dtype)


@checks_arguments
def unit(threat: ThreatModel) -> str:
    """The unit of the radius in words: "px", and "px per axis" for flows in linf, which bounds dy and dx each."""
    space = threat.perturbation
    each = space.moves_pixels and not space.parts and norms.exponent(threat.norm) == np.inf
    return f"{space.unit} per axis" if each and space.unit == "px" else space.unit


@checks_arguments
def scaled(threat: ThreatModel, factor: Factor) -> ThreatModel:
    """The same threat model with its radius (every part's) multiplied by a factor."""
    radius = jax.tree.map(lambda r: r * factor, threat.radius)
    return ThreatModel(threat.perturbation, threat.norm, radius)


@checks_arguments
def apply_with_slope(threat: ThreatModel, images: Images, delta: Delta) -> Images:
    """``T(x, δ)`` with the slope that attacks in this ball follow, see `perturbations.apply_with_slope`.

    The reach is the radius for linf and l2inf, where every coordinate or vector has its own budget, and for l1 and l21
    the perturbation's stride, or a sixteenth of the radius, the step of 40 steps, if that is less.
    """

    def reach(part: _Part) -> Any:
        if part.stride is not None:
            return perturbations.Stride(jnp.minimum(part.stride, jnp.asarray(part.radius) / 16))
        return part.radius if part.norm == "l2inf" or norms.exponent(part.norm) == np.inf else None

    reaches = _joined(threat, map(reach, _parts(threat)))
    return perturbations.apply_with_slope(threat.perturbation, images, delta, reaches)


@checks_arguments
def strides(threat: ThreatModel, delta: Delta) -> Delta:
    """How far a step takes each coordinate at most, see `Perturbation.stride`; infinite outside of l1 and l21 balls."""
    ways = (jnp.inf if part.stride is None else part.stride for part in _parts(threat))
    return _joined(threat, map(jnp.full_like, _split(threat, delta), ways))


@checks_arguments
def project(threat: ThreatModel, delta: Delta) -> Delta:
    """δ projected into the ball, see `norms.project`."""
    return _map_parts(_projected, threat, delta=delta)


def _projected(norm: norms.Norm, radius: Any, delta: Array) -> Array:
    return _times(norms.project(_divide(delta, radius), norm), radius)


@checks_arguments
def in_radii(threat: ThreatModel, delta: Delta) -> Delta:
    """``δ / radius`` per part, and 0 where the radius is 0."""
    return _map_parts(lambda _, radius, delta: _divide(delta, radius), threat, delta=delta)


@checks_arguments
def on_sphere(threat: ThreatModel, direction: Delta) -> Delta:
    """``radius * direction / ‖direction‖`` per part: the point of the ball's surface in a direction; 0 stays 0."""

    def one(norm: norms.Norm, radius: Any, direction: Array) -> Array:
        length = per_example.expand(norms.norm(direction, norm), direction)
        return _times(direction / jnp.where(length > 0, length, 1), radius)

    return _map_parts(one, threat, direction=direction)


@checks_arguments
def steepest(threat: ThreatModel, gradient: Delta) -> Delta:
    """``argmax_{δ in ball} <gradient, δ>``, see `norms.steepest`."""

    def one(norm: norms.Norm, radius: Any, gradient: Array) -> Array:
        return _times(norms.steepest(_times(gradient, radius), norm), radius)

    return _map_parts(one, threat, gradient=gradient)


@checks_arguments
def move(
    threat: ThreatModel, delta: Delta, gradient: Delta, step_size: StepSize,
    headroom: Delta = None, stride: Delta = None,
) -> Delta:  # fmt: skip
    """One projected ascent step ``Π(δ + step_size * u)``, u the unit ball's steepest direction for radius * gradient.

    ``step_size`` is in units of δ and of the radius' shape, so that every coordinate moves in its own unit.
    ``headroom`` is how far each can move, see `perturbations.headroom`: l1 fills the best coordinates up to it, other
    norms skip coordinates that cannot move; None for no bound. ``stride`` is how far a step may take each, see
    `strides`.
    """

    def one(norm: norms.Norm, radius: Any, delta: Array, gradient: Array, step_size: Any, **limits: Array) -> Array:
        step = jnp.asarray(step_size, delta.dtype)
        limits = {name: per_example.quotient(limit, step, jnp.inf) for name, limit in limits.items()}
        unit = norms.steepest(_times(gradient, radius), norm, **limits)
        return _times(norms.project(_divide(delta, radius) + _divide(step, radius) * unit, norm), radius)

    given = dict(delta=delta, gradient=gradient, step_size=step_size, headroom=headroom, stride=stride)
    return _map_parts(one, threat, **{name: value for name, value in given.items() if value is not None})


@checks_arguments
def shift(threat: ThreatModel, delta: Delta, direction: Delta, step_size: StepSize) -> Delta:
    """``Π(δ + step_size * direction)``, ``step_size`` in units of δ and of the radius' shape; of δ's precision."""

    def one(norm: norms.Norm, radius: Any, delta: Array, direction: Array, step_size: Any) -> Array:
        moved = delta + (jnp.asarray(step_size, delta.dtype) * direction).astype(delta.dtype)
        return _projected(norm, radius, moved)

    return _map_parts(one, threat, delta=delta, direction=direction, step_size=step_size)


@checks_arguments
def gain(threat: ThreatModel, gradient: Delta) -> Float[Array, " b"]:
    """``max_{δ in ball} <gradient, δ>``: the dual norm of radius * gradient, summed over parts."""

    def one(norm: norms.Norm, radius: Any, gradient: Array) -> Array:
        return norms.norm(_times(gradient, radius), norms.dual(norm))

    gains = _map_parts(one, threat, gradient=gradient)
    return jnp.stack(jax.tree.leaves(gains)).sum(0)


@checks_arguments
def size(threat: ThreatModel, delta: Delta) -> Float[Array, " b"]:
    """``‖δ / radius‖``, the largest over parts: at most 1 inside the ball; infinite for δ != 0 at radius 0."""

    def one(norm: norms.Norm, radius: Any, delta: Array) -> Array:
        outside = jnp.where(jnp.asarray(radius) > 0, 0, delta) != 0
        inside_size = norms.norm(_divide(delta, radius), norm)
        return jnp.where(outside.reshape(len(delta), -1).any(-1), jnp.inf, inside_size)

    return jnp.stack(jax.tree.leaves(_map_parts(one, threat, delta=delta))).max(0)


@checks_arguments
def random_delta(threat: ThreatModel, keys: Key[Array, " b"], images: Images) -> Delta:
    """A random point of the ball for each example, see `norms.random_point`."""
    parts, zeros = _parts(threat), _split(threat, threat.perturbation.zeros(images))
    part_keys = jax.vmap(partial(jax.random.split, num=len(parts)), out_axes=1)(keys)

    def one(part: _Part, zero: Array, keys: Key[Array, " b"]) -> Array:
        points = jax.vmap(lambda key: norms.random_point(key, zero.shape[1:], part.norm))(keys)
        return _times(points.astype(zero.dtype), part.radius)

    return _joined(threat, map(one, parts, zeros, part_keys))
