"""Additive changes of intensity, ``T(x, δ) = x + δ``."""

from __future__ import annotations

import jax.numpy as jnp

from robust_jax.spaces.perturbations import Perturbation

additive = Perturbation(
    zeros=jnp.zeros_like,
    apply=lambda images, delta: images + delta,
    name="additive",
    pullback_at_zero=lambda images, gradient: gradient,
    # Clipping δ itself keeps it exact, and an image already outside [0, 1] never pushes it out of its ball.
    confine=lambda images, delta: jnp.clip(delta, jnp.minimum(-images, 0), jnp.maximum(1 - images, 0)),
)
"""``T(x, δ) = x + δ``, δ image-shaped, in units of image intensity."""
