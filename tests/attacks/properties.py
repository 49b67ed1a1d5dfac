"""What holds for every attack, checked with few compilations: weights and radii are traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import losses
from robust_jax.models import bind
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net, initial, measured

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)


def net(scale=1.0, seed=0):
    """`Net` with all its weights multiplied; a pytree, so that NaN or huge weights need no compilation."""
    variables = initial(SHAPE, seed)
    return bind(Net(), jax.tree.map(lambda v: v * scale, variables))


def sample(low=-0.2, high=1.2, seed=1):
    """Images of which a part lies on the box."""
    x = np.random.default_rng(seed).uniform(low, high, size=SHAPE)
    return jnp.asarray(np.clip(x, 0, 1), jnp.float32)


def smooth(size=8, seed=0, count=6):
    """Smooth images, ``[count, size, size, 1]``, that deform well."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*2 * [np.linspace(0, 1, size)], indexing="ij")
    phase, up, across = rng.uniform(0, 6, count), rng.uniform(-4, 4, count), rng.uniform(-4, 4, count)
    waves = [np.sin(p + u * y + a * x) for p, u, a in zip(phase, up, across, strict=True)]
    return jnp.asarray(0.5 + 0.45 * np.stack(waves)[..., None], jnp.float32)


def check_result(model, result, images, threat, labels, targeted=False, minimal=False):
    for leaf in jax.tree.leaves((result.images, result.delta)):
        assert np.isfinite(leaf).all()
    size, said = measured(threat, images, result.delta)
    assert (size <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    right = losses.predicted(model(result.images)) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)
    if minimal:
        before = losses.predicted(model(images)) == labels
        untouched = ~np.asarray(result.success) | np.asarray(before if targeted else ~before)
        np.testing.assert_array_equal(result.images[untouched], images[untouched])
        assert all(not leaf[untouched].any() for leaf in jax.tree.leaves(result.delta))


def check_properties(attack, threat, images=None, model=None, minimal=False, eager=True, atol=1e-4):
    """Budget, box, batch, jit, zero radius and models out of their mind; returns the result at the model's labels.

    ``attack``: ``(model, images, labels, threat, *, key)``, options given.
    """
    images = sample() if images is None else images
    model = net() if model is None else model
    run = jax.jit(lambda *given: attack(*given[:4], key=given[4]))
    weights, tree = jax.tree.flatten(model)
    scaled = lambda factor: jax.tree.unflatten(tree, [w * factor for w in weights])  # noqa: E731
    labels = model(images).argmax(-1).at[-1].add(1) % 3
    keys = example_keys(KEY, len(images))
    result = run(model, images, labels, threat, keys)
    check_result(model, result, images, threat, labels, minimal=minimal)

    # Alone with its own key as in the batch; among others as among these.
    alone = run(model, images[1:2], labels[1:2], threat, keys[1:2])
    np.testing.assert_allclose(alone.images[0], result.images[1], atol=atol)
    assert alone.success[0] == result.success[1]
    others = (1 - images).at[2].set(images[2])
    among = run(model, others, labels, threat, keys)
    np.testing.assert_array_equal(among.images[2], result.images[2])

    if eager:
        unjitted = attack(model, images, labels, threat, key=keys)
        np.testing.assert_allclose(unjitted.images, result.images, atol=atol)
        np.testing.assert_array_equal(unjitted.success, result.success)

    nothing = jax.tree.map(lambda r: r * 0.0, threat)
    unmoved = run(model, images, labels, nothing, keys)
    np.testing.assert_array_equal(unmoved.images, images)
    np.testing.assert_array_equal(unmoved.success, model(images).argmax(-1) != labels)

    for spoilt in (scaled(jnp.nan), scaled(jnp.inf), scaled(1e4), scaled(0.0)):
        check_result(spoilt, run(spoilt, images, labels, threat, keys), images, threat, labels, minimal=minimal)
    for level in (0.0, 0.5, 1.0):
        constant = jnp.full_like(images, level)
        check_result(model, run(model, constant, labels, threat, keys), constant, threat, labels, minimal=minimal)
    return labels, result


ADDITIVE = ThreatModel("additive", "linf", 0.1)
THREATS = [
    ADDITIVE,
    ThreatModel("additive", "l1", 3.0),
    ThreatModel("flow", "l2inf", 1.0),
    ThreatModel("affine", "linf", (30, 3, 3)),
    ThreatModel(("flow", "additive"), ("l2", "linf"), (2.0, 0.1)),
]
