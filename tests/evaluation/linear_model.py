"""A linear model of two classes with its images, whose loss has closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

import robust_jax as rj

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(0.4, 0.6, (3, 6, 5, 2)), jnp.float32)
LABELS = jnp.zeros(3, int)
WEIGHTS = jnp.asarray(RNG.normal(size=(6, 5, 2)), jnp.float32)
KEY = jax.random.key(0)
ADDITIVE = rj.ThreatModel("additive", "linf", 0.05)


def of_weights(weights):
    """Two classes whose margin, for label 0, is <weights, x>."""
    return lambda x: jnp.stack([jnp.zeros(len(x)), (x * weights).sum((1, 2, 3))], -1)


linear = of_weights(WEIGHTS)
