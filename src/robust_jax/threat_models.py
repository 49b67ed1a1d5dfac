"""Threat models and the geometry of their balls: the public name of `robust_jax.spaces.threat_models`."""

from robust_jax.spaces.threat_models import (
    ThreatModel,
    gain,
    in_radii,
    move,
    on_sphere,
    project,
    random_delta,
    scaled,
    shift,
    size,
    steepest,
    strides,
)  # fmt: skip

__all__ = [
    "ThreatModel", "gain", "in_radii", "move", "on_sphere", "project", "random_delta", "scaled", "shift", "size",
    "steepest", "strides",
]  # fmt: skip
