"""Norms per example: the public name of `robust_jax.spaces.norms`."""

from robust_jax.spaces.norms import Norm, dual, exponent, norm, project, random_point, steepest

__all__ = ["Norm", "dual", "exponent", "norm", "project", "random_point", "steepest"]
