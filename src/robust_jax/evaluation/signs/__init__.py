"""Signs of masked gradients: one decorated function each, see `robust_jax.evaluation.signs.define`."""
