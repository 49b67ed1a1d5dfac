"""Perturbation spaces: the public name of `robust_jax.spaces.perturbations` and of the built-in spaces."""

from robust_jax.spaces.additive import additive
from robust_jax.spaces.affine import affine
from robust_jax.spaces.flow import flow, flow_symmetric
from robust_jax.spaces.perturbations import (
    Delta,
    Images,
    Perturbation,
    Stride,
    apply_with_slope,
    compose,
    confined,
    gaussian_delta,
    headroom,
    pullback,
)
from robust_jax.spaces.registry import built_in, get

PERTURBATIONS = built_in()

__all__ = [
    "PERTURBATIONS", "Delta", "Images", "Perturbation", "Stride", "additive", "affine", "apply_with_slope", "compose",
    "confined", "flow", "flow_symmetric", "gaussian_delta", "get", "headroom", "pullback",
]  # fmt: skip
