"""Every term against its formula on a linear model, its parameter gradient in float64, and its edge cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import make_objective
from robust_jax.objectives.points import Point
from robust_jax.objectives.terms import TERMS

pytestmark = pytest.mark.usefixtures("quick_compile")

B, H, W, K = 4, 3, 4, 3
LABELS = np.array([0, 2, 1, 1])
# Terms that compare two points, and their options.
PAIRS = {
    "kl_divergence": ("reference", {}),
    "weighted_kl_divergence": ("reference", {}),
    "gradient_difference": ("other", dict(perturbation="additive", norm="l2", power=2.0)),
    "gradient_misalignment": ("other", dict(perturbation="additive")),
    "linearity_gap": ("other", dict(perturbation="additive")),
    "directional_derivative": ("other", dict(perturbation="additive")),
}
SPECS = {
    "cross_entropy": dict(label_smoothing=0.1),
    "gradient_norm": dict(perturbation="additive", norm="l1", power=1.0),
    "first_order_gain": dict(perturbation="additive", norm="linf", radius=0.2),
    "boosted_cross_entropy": {},
} | {name: options | {other: "clean"} for name, (other, options) in PAIRS.items()}


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    sizes = dict(w=(H * W, 6), b=(6,), v=(6, K))
    return {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()}


def smooth(theta):
    def logits(x):
        return jnp.tanh(x.reshape(len(x), -1) @ theta["w"] + theta["b"]) @ theta["v"]

    return Model(lambda x: (logits(x), {}), logits)


def linear(theta):
    def logits(x):
        return x.reshape(len(x), -1) @ theta["w"][:, :K] + theta["b"][:K]

    return Model(lambda x: (logits(x), {}), logits)


def data():
    rng = np.random.default_rng(1)
    images, delta = rng.uniform(size=(B, H, W, 1)), rng.uniform(-0.3, 0.3, size=(B, H, W, 1))
    return {"clean": Point(jnp.asarray(images)), "moved": Point(jnp.asarray(images + delta), jnp.asarray(delta))}


def term(name, model_of, theta, found=None, labels=LABELS, **options):
    """The batch mean of one term at the point "moved", by itself."""
    spec = dict(kind=name, at="clean" if "other" in SPECS[name] else "moved", weight=1.0) | SPECS[name] | options
    if "other" in spec:
        spec["other"] = "moved"
    points = {"moved": dict(kind="uniform", perturbation="additive", radius=0.3)}
    objective = make_objective(points, {"term": spec})
    return objective.loss(model_of(theta), data() if found is None else found, jnp.asarray(labels))[0]


def numpy_linear():
    """Of the linear model at both points: probabilities, losses and image gradients."""
    theta, found = parameters(), data()
    w, b = np.asarray(theta["w"])[:, :K], np.asarray(theta["b"])[:K]
    out = {}
    for name, at in found.items():
        z = np.asarray(at.images).reshape(B, -1) @ w + b
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out[name] = p, -np.log(p[np.arange(B), LABELS]), (p - np.eye(K)[LABELS]) @ w.T
    return out, np.asarray(found["moved"].delta).reshape(B, -1)


def expected():
    seen, delta = numpy_linear()
    (p0, loss0, g0), (p1, loss1, g1) = seen["clean"], seen["moved"]
    own = np.eye(K, dtype=bool)[LABELS]
    smoothed = 0.9 * own + 0.1 / K
    kl = (p0 * np.log(p0 / p1)).sum(-1)
    lengths = np.linalg.norm(g0, axis=-1) * np.linalg.norm(g1, axis=-1)
    slope = (g0 * delta).sum(-1)
    return {
        "cross_entropy": -(smoothed * np.log(p1)).sum(-1),
        "gradient_norm": np.abs(g1).sum(-1),
        "first_order_gain": 0.2 * np.abs(g1).sum(-1),
        "boosted_cross_entropy": loss1 - np.log(1 - np.where(own, 0, p1).max(-1)),
        "kl_divergence": kl,
        "weighted_kl_divergence": kl * (1 - p0[own]),
        "gradient_difference": ((g1 - g0) ** 2).sum(-1),
        "gradient_misalignment": 1 - (g0 * g1).sum(-1) / lengths,
        "linearity_gap": np.abs(loss1 - loss0 - slope),
        "directional_derivative": np.abs(slope),
    }


def test_every_term_is_tested():
    assert set(SPECS) == set(TERMS) == set(expected())


@pytest.mark.parametrize("name", SPECS)
def test_a_term_of_a_linear_model_is_its_formula(name):
    with jax.enable_x64(True):
        assert float(jax.jit(lambda theta: term(name, linear, theta))(parameters())) == pytest.approx(
            expected()[name].mean(), rel=1e-9
        )


@pytest.mark.parametrize("name", SPECS)
def test_the_parameter_gradient_of_a_term(name):
    with jax.enable_x64(True):
        theta = parameters()
        rng = np.random.default_rng(7)
        direction = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in theta.items()}
        f = jax.jit(lambda t: jax.value_and_grad(lambda t: term(name, smooth, t))(t))
        gradient, h = f(theta)[1], 1e-5
        after, before = (float(f({k: v + s * h * direction[k] for k, v in theta.items()})[0]) for s in (1, -1))
        slope = sum(float((gradient[k] * direction[k]).sum()) for k in theta)
        # Truncation h^2 = 1e-10, rounding 1e-16 / h = 1e-11, times derivatives of order 10.
        assert slope == pytest.approx((after - before) / (2 * h), rel=1e-6, abs=1e-7)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_a_term_does_not_depend_on_the_batch(name):
    with jax.enable_x64(True):
        found, theta = data(), parameters()
        run = jax.jit(lambda found, labels: term(name, smooth, theta, found, labels))
        alone = []
        for i in range(B):
            one = {k: jax.tree.map(lambda a, i=i: a[i : i + 1], f) for k, f in found.items()}
            alone.append(float(run(one, LABELS[i : i + 1])))
        assert np.mean(alone) == pytest.approx(float(run(found, LABELS)), rel=1e-10)


@pytest.mark.parametrize("name", SPECS)
def test_a_term_of_a_constant_model_and_of_a_saturated_one_is_finite(name):
    theta = {k: jnp.float32(v) for k, v in parameters().items()}
    found = jax.tree.map(jnp.float32, data())
    run = jax.jit(jax.value_and_grad(lambda t: term(name, smooth, t, found)))
    for scale in (0.0, 10.0, 20.0, 30.0, 1e3):
        value, gradient = run(theta | {"v": theta["v"] * scale})
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "name, space",
    [("gradient_difference", "flow"), ("gradient_difference", ("flow", "additive")), ("linearity_gap", "affine"),
     ("gradient_misalignment", ("flow", "additive")), ("linearity_gap", ("flow", "additive"))],
    ids=str,
)  # fmt: skip
def test_terms_of_two_points_in_other_spaces(name, space):
    """Zero where both points are the same, and above it where they are not."""
    theta, labels = parameters(), jnp.asarray(LABELS)
    images = data()["clean"].images
    keys = jax.random.split(jax.random.key(0), B)
    values = []
    for radius in (0.0, 0.5):
        radius = (radius, radius / 10) if isinstance(space, tuple) else radius
        points = {"moved": dict(kind="uniform", perturbation=space, radius=radius)}
        spec = dict(kind=name, at="clean", other="moved", perturbation=space)
        objective = make_objective(points, {"term": spec})
        values.append(float(jax.jit(lambda t, o=objective: o(smooth(t), images, labels, keys)[0])(theta)))
    assert values[0] == pytest.approx(0, abs=2e-6) and values[1] > 1e-4


def test_a_slope_in_another_space_is_refused():
    points = {"moved": dict(kind="uniform", perturbation="flow", radius=0.5)}
    spec = dict(kind="linearity_gap", at="clean", other="moved", perturbation="additive")
    objective, keys = make_objective(points, {"t": spec}), jax.random.split(jax.random.key(0), B)
    with pytest.raises(ValueError, match="additive.*other point"):
        objective(smooth(parameters()), data()["clean"].images, jnp.asarray(LABELS), keys)


@pytest.mark.parametrize("kind", ["linearity_gap", "directional_derivative"])
def test_a_slope_at_images_that_were_moved_is_refused(kind):
    points = {name: dict(kind="uniform", perturbation="additive", radius=0.1) for name in ("moved", "at")}
    spec = dict(kind=kind, at="at", other="moved", perturbation="additive")
    objective, keys = make_objective(points, {"t": spec}), jax.random.split(jax.random.key(0), B)
    with pytest.raises(ValueError, match="give a point that does not move them"):
        objective(smooth(parameters()), data()["clean"].images, jnp.asarray(LABELS), keys)
