"""Penalise: norms of loss gradients over a perturbation space, at the images or where they are largest nearby."""

from robust_jax.penalties.gradient_norms import first_order_gain, gradient_norm, steepest, value_and_gradient_norm
from robust_jax.penalties.local_flatness import local_flatness

__all__ = ["first_order_gain", "gradient_norm", "local_flatness", "steepest", "value_and_gradient_norm"]
