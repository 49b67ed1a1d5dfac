"""The penalty and its gradient in the parameters, in float64, on a small smooth model and images of exact 0s and 1s."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.penalties import gradient_norms
from robust_jax.penalties.gradient_norms import first_order_gain, gradient_norm, steepest, value_and_gradient_norm
from robust_jax.spaces import norms, per_example, perturbations, registry, threat_models
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

# These many small programs are compiled once and run a few times: compile the cheapest way.

contrast = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 2), images.dtype),
    apply=lambda images, delta: images * (1 + delta[:, 0, None, None, None]) + delta[:, 1, None, None, None],
    name="contrast",
)
SPACES = ["additive", "flow", "affine", contrast, ("flow", "additive"), "flow_symmetric"]
EXACT = ["double_backprop", "directional"]
SIGNS = np.array([1.0, -1, -1, 1])
SHAPE = (4, 4, 3, 2)


def parameters(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    sizes = dict(w=(24, 6), b=(6,), gain=(6,), v=(6,))
    return {k: jnp.asarray(rng.normal(size=v) * (0.5 if k == "w" else 1), dtype) for k, v in sizes.items()}


def binary_images(dtype=np.float64):
    return jnp.asarray(np.random.default_rng(1).integers(0, 2, SHAPE), dtype)


def losses_of(theta, images, signs=SIGNS, batch_norm=False):
    """Logistic loss [B] of a two-layer net, with train-mode BatchNorm in its first layer or without."""
    hidden = images.reshape(len(images), -1) @ theta["w"]
    if batch_norm:
        hidden = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-3)
    logit = 2 * jnp.tanh(hidden * theta["gain"] + theta["b"]) @ theta["v"]
    return jnp.logaddexp(0.0, logit * jnp.asarray(signs, images.dtype))


def bound(theta, batch_norm=False, signs=SIGNS):
    return lambda images: losses_of(theta, images, signs, batch_norm)


def penalty(theta, space, norm, power, method="double_backprop", batch_norm=False, images=None, **options):
    images = binary_images() if images is None else images
    return gradient_norm(bound(theta, batch_norm), images, space, norm, power, method=method, **options).mean()


def direction_like(theta, seed=5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), theta)


def shifted(theta, direction, h):
    return jax.tree.map(lambda t, d: t + h * d, theta, direction)


def dot(a, b):
    return sum(float((x * y).sum()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def by_definition(theta, space, images, batch_norm=False):
    """The gradient of the summed losses in δ at 0, by autodiff of the perturbation itself; leaves [B, n]."""
    grad = slope_in_delta(theta, registry.get(space), images, batch_norm)
    return np.concatenate([np.asarray(g).reshape(len(g), -1) for g in jax.tree.leaves(grad)], 1)


@partial(jax.jit, static_argnums=(1, 3))
def slope_in_delta(theta, space, images, batch_norm):
    total = lambda d: losses_of(theta, space.apply(images, d), batch_norm=batch_norm).sum()  # noqa: E731
    return jax.grad(total)(space.zeros(images))


def numpy_norm(g, norm):
    if norm in ("l21", "l2inf"):
        lengths = np.linalg.norm(g.reshape(len(g), -1, 2), axis=-1)
        return lengths.sum(-1) if norm == "l21" else lengths.max(-1)
    return np.linalg.norm(g, {"l1": 1, "l2": 2, "linf": np.inf}.get(norm, norm), axis=1)


CASES = [
    *[("additive", n, p, False) for n, p in (("l1", 1), ("l1", 2), ("l2", 1), ("l2", 2), ("linf", 1), ("linf", 2),
                                             (1.5, 1))],
    *[("flow", n, p, False) for n, p in (("l1", 1), ("l2", 2), ("linf", 2), ("l21", 1), ("l2inf", 1), (3, 2))],
    *[("affine", n, p, False) for n, p in (("l1", 1), ("l2", 2), ("linf", 1))],
    *[(contrast, n, p, False) for n, p in (("l1", 2), ("linf", 1))],
    *[(("flow", "additive"), n, p, False) for n, p in (("l1", 1), ("l2", 2), ("linf", 1))],
    ("additive", "l1", 1, True), ("flow", "l2", 2, True), ("affine", "linf", 1, True),
    (("flow", "additive"), "l1", 1, True), (contrast, "l2", 1, True),
    ("flow_symmetric", "l2", 2, False),
]  # fmt: skip


def case_id(value):
    return getattr(value, "name", str(value))


@pytest.mark.parametrize("space, norm, power, batch_norm", CASES, ids=case_id)
def test_value_and_parameter_gradient_of_the_exact_methods(space, norm, power, batch_norm):
    with jax.enable_x64(True):
        theta = parameters()
        direction = direction_like(theta)
        f = partial(penalty, space=space, norm=norm, power=power, batch_norm=batch_norm)
        evaluate = jax.jit(lambda t: [jax.value_and_grad(partial(f, method=m))(t) for m in EXACT])
        results, h = evaluate(theta), 1e-5
        if space != "flow_symmetric":  # by definition not the derivative of its apply
            g = by_definition(theta, space, binary_images(), batch_norm)
            for value, _ in results:
                assert float(value) == pytest.approx((numpy_norm(g, norm) ** power).mean(), rel=1e-10)
        after, before = (evaluate(shifted(theta, direction, s * h))[0][0] for s in (1, -1))
        expected = float(after - before) / (2 * h)
        assert abs(expected) > 1e-4
        for _, gradient in results:
            # Central differences: truncation h^2 = 1e-10, rounding 1e-16 / h = 1e-11, times derivatives of order 10.
            assert dot(gradient, direction) == pytest.approx(expected, rel=1e-6, abs=1e-7)
        # Both are exact, so each coordinate agrees to rounding.
        for one, other in zip(*(jax.tree.leaves(gradient) for _, gradient in results), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@partial(jax.jit, static_argnums=5)
def finite_difference_bound(theta, direction, images, v, h, batch_norm):
    """Taylor's remainder of the surrogate, in the parameter direction, meaned over the batch.

    v is the direction of the differences, length that of its longest example, unit = v / length. With
    F(t) = d/dθ_direction of mean loss at x + t unit, the surrogate's derivative is length (F(h) - F(0)) / h and
    the exact one length F'(0); they differ by length h / 2 F''(ξ) for some ξ in (0, h).
    """
    length = jnp.sqrt((v**2).sum((1, 2, 3))).max()

    def slope(t):
        f = lambda th: losses_of(th, images + t * v / length, batch_norm=batch_norm).mean()  # noqa: E731
        return jax.jvp(f, (theta,), (direction,))[1]

    second = jax.vmap(jax.grad(jax.grad(slope)))(h * jnp.linspace(0, 1, 33))
    return length * h / 2 * jnp.abs(second).max()


@partial(jax.jit, static_argnums=2)
def image_gradient(theta, images, batch_norm):
    return per_example.value_and_gradient(bound(theta, batch_norm), images)[1]


@pytest.mark.parametrize(
    "space, norm, power, batch_norm",
    [("additive", "l1", 1, True), ("flow", "l2", 2, False), ("affine", "linf", 1, True), ("additive", "linf", 1, False),
     (("flow", "additive"), "l2", 2, True), ("flow", "l1", 1, True)],
    ids=case_id,
)  # fmt: skip
def test_parameter_gradient_of_finite_differences_stays_in_its_bound(space, norm, power, batch_norm):
    with jax.enable_x64(True):
        theta, images = parameters(), binary_images()
        direction = direction_like(theta)
        f = partial(penalty, space=space, norm=norm, power=power, batch_norm=batch_norm)
        surrogate = partial(f, method="finite_difference")
        gradients_ = jax.jit(lambda t, h: (jax.grad(f)(t), jax.grad(partial(surrogate, step=h))(t)))

        # The direction J ∇φ(g), by definition: φ of the pullback of an image gradient, differentiated in it.
        g = image_gradient(theta, images, batch_norm)
        pull = partial(perturbations.pullback, registry.get(space), images)

        def phi(g):
            leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(pull(g))]
            return norms.norm(jnp.concatenate(leaves, 1), norm, power).sum()

        v = jax.jit(jax.grad(phi))(g)
        errors = []
        for h in (1e-2, 1e-3):
            exact, gradient = gradients_(theta, h)
            errors.append(abs(dot(gradient, direction) - dot(exact, direction)))
            limit = float(finite_difference_bound(theta, direction, images, v, h, batch_norm))
            # Rounding: 1e-16 |∇_θ ℓ| length / h, below 1e-11 here.
            assert errors[-1] <= limit * 1.001 + 1e-10
        # The bound is tight to first order, so that a wrong direction or step could not hide below it.
        assert errors[1] >= limit * 0.1
        assert errors[0] == pytest.approx(10 * errors[1], rel=0.5)


def test_finite_differences_in_float32_round_within_their_bound():
    with jax.enable_x64(True):
        theta = parameters()
        options = dict(space="flow", norm="l2", power=2, step=1e-2)
        exact, truncated = (jax.jit(jax.grad(partial(penalty, method=m, **options)))(theta) for m in
                            ("double_backprop", "finite_difference"))  # fmt: skip
    theta32, images = parameters(dtype=np.float32), binary_images(np.float32)
    rounded = jax.jit(jax.grad(partial(penalty, method="finite_difference", images=images, **options)))(theta32)
    loss_gradient = jax.grad(lambda t: losses_of(t, images).mean())(theta32)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(loss_gradient))
    g = by_definition(theta32, "flow", images)
    # |v| = |J 2 g| <= 2 |J| |g|, |J| <= 4 for differences of 0/1 images; rounding ε |∇_θ ℓ| |v| / h with h = 1e-2.
    rounding = 10 * np.finfo(np.float32).eps * size * 8 * np.linalg.norm(g, axis=1).max() / 1e-2
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(truncated), strict=True):
        assert np.abs(np.asarray(a, np.float64) - np.asarray(b)).max() <= rounding
    largest = max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(exact))
    assert rounding < 0.05 * largest, "or the bound above says nothing"


@pytest.mark.parametrize("method", gradient_norms.METHODS)
def test_value_and_parameter_gradient_do_not_depend_on_the_batch(method):
    with jax.enable_x64(True):
        theta, images = parameters(), binary_images()

        def value(theta, index):
            f = bound(theta, signs=jnp.asarray(SIGNS)[index])
            return gradient_norm(f, images[index], "flow", "l2", 2, method=method, step=1e-6)

        both = jax.jit(lambda t, index: (value(t, index), jax.jacrev(value)(t, index)))
        together, jacobian = both(theta, np.arange(4))
        # finite_difference moves an example by its share of the batch's longest direction: equal to O(h) only.
        tolerance = 1e-4 if method == "finite_difference" else 1e-9
        for i in range(4):
            value_alone, alone = both(theta, np.array([i]))
            np.testing.assert_allclose(value_alone[0], together[i], rtol=1e-12)
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(jacobian), strict=True):
                np.testing.assert_allclose(a[0], b[i], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", gradient_norms.METHODS)
@pytest.mark.parametrize("power", [1, 2])
def test_zero_gradient_has_norm_0_and_parameter_gradient_0(method, power):
    theta = parameters(dtype=np.float32)
    flat = jnp.full(SHAPE, 0.5)  # a constant image does not change under a flow
    for norm in ("l1", "linf", "l21") if method == "double_backprop" else ("l1", "l2"):
        f = jax.jit(jax.value_and_grad(lambda t, x, n=norm: penalty(t, "flow", n, power, method, images=x)))
        value, gradient = f(theta, flat)
        assert value == 0
        jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradient)
        # One flat image among others contributes nothing, and the others stay finite.
        value, gradient = f(theta, binary_images(np.float32).at[1].set(1))
        assert value > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))

    def constant(t):
        return gradient_norm(lambda x: jnp.full(len(x), t) + 0 * x.sum((1, 2, 3)), flat, "additive",
                             "l2", power, method=method).sum()  # fmt: skip

    value, gradient = jax.jit(jax.value_and_grad(constant))(1.0)
    assert value == 0 and gradient == 0


@pytest.mark.parametrize("method", gradient_norms.METHODS)
def test_has_aux_and_a_training_loss_under_jit(method):
    theta, images = parameters(dtype=np.float32), binary_images(np.float32)

    @jax.jit
    def step(theta):
        def objective(theta):
            loss_fn = lambda x: (losses_of(theta, x, batch_norm=True), x.mean((0, 1, 2)))  # noqa: E731
            loss, norm, aux = value_and_gradient_norm(loss_fn, images, "flow", method=method, has_aux=True)
            return loss.mean() + 0.5 * norm.mean(), aux

        return jax.value_and_grad(objective, has_aux=True)(theta)

    (total, aux), gradient = step(theta)
    loss, norm = jax.jit(lambda t: value_and_gradient_norm(bound(t, True), images, "flow", method=method))(theta)
    assert total == pytest.approx(float(loss.mean() + 0.5 * norm.mean()), rel=1e-5)
    np.testing.assert_allclose(aux, images.mean((0, 1, 2)), rtol=1e-6)
    separate = jax.jit(jax.grad(
        lambda t: losses_of(t, images, batch_norm=True).mean() + 0.5 * penalty(
            t, "flow", "l2", 2, method, True, images)))(theta)  # fmt: skip
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(separate), strict=True):
        # finite_difference: two float32 programs differ by rounding ε |∇_θ ℓ| |v| / h, about 1e-4.
        tolerance = 1e-3 if method == "finite_difference" else 1e-4
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_images_are_constants():
    theta, images = parameters(dtype=np.float32), binary_images(np.float32)
    for method in gradient_norms.METHODS:
        gradient = jax.jit(jax.grad(lambda x, m=method: penalty(theta, "flow", "l2", 2, m, images=x)))(images)
        np.testing.assert_array_equal(gradient, 0)


THREATS = [
    ThreatModel("additive", "linf", 0.1),
    ThreatModel("additive", "l1", 2.0),
    ThreatModel("additive", 3, 0.5),
    ThreatModel("flow", "linf", 0.155),
    ThreatModel("flow", "l2inf", 0.155),
    ThreatModel("affine", "linf", (30, 3, 3)),
    ThreatModel(contrast, "l2", 0.2),
    ThreatModel(("flow", "additive"), ("l2", "linf"), (0.5, 0.1)),
]


@jax.jit
def evaluated(theta, images, threat):
    return [f(bound(theta), images, threat) for f in (first_order_gain, steepest)]


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: f"{t.perturbation.name}-{t.norm}")
def test_first_order_gain_is_the_largest_inner_product_over_the_ball(threat):
    theta, images = parameters(dtype=np.float32), binary_images(np.float32)
    g = by_definition(theta, threat.perturbation, images)

    def inner(delta):
        flat = np.concatenate([np.asarray(d).reshape(len(d), -1) for d in jax.tree.leaves(delta)], 1)
        return (g * flat).sum(1)

    gain, best = evaluated(theta, images, threat)
    gain = np.asarray(gain)
    assert (threat_models.size(threat, best) <= 1 + 1e-5).all() and (gain > 1e-3).all()
    np.testing.assert_allclose(inner(best), gain, rtol=1e-4)
    many = 60
    draw = jax.jit(lambda key: threat_models.random_delta(threat, jax.random.split(key, 4), images))
    for seed in range(many):
        assert (inner(draw(jax.random.key(seed))) <= gain).all()
    if not threat.perturbation.parts:
        dual = norms.dual(threat.norm)
        norm = jax.jit(lambda r: gradient_norm(bound(theta), images, threat.perturbation, dual, 1, scale=r))(
            threat.radius
        )
        np.testing.assert_allclose(gain, norm, rtol=1e-5)


@pytest.mark.parametrize("threat", [THREATS[0], THREATS[6]], ids=["additive", "contrast"])
def test_first_order_gain_is_the_rate_at_which_the_loss_rises(threat):
    with jax.enable_x64(True):
        theta, images = parameters(), binary_images()
        gain, best = evaluated(theta, images, threat)
        small = jax.tree.map(lambda d: 1e-6 * d, best)
        rise = losses_of(theta, threat.perturbation.apply(images, small)) - losses_of(theta, images)
        np.testing.assert_allclose(rise / 1e-6, gain, rtol=1e-4)


def test_first_order_gain_is_differentiable_in_the_parameters():
    with jax.enable_x64(True):
        theta, images = parameters(), binary_images()
        direction = direction_like(theta)
        for threat in (THREATS[3], THREATS[7]):
            f = jax.jit(lambda t, threat=threat: first_order_gain(bound(t), images, threat).sum())
            h = 1e-5
            expected = float(f(shifted(theta, direction, h)) - f(shifted(theta, direction, -h))) / (2 * h)
            assert dot(jax.grad(f)(theta), direction) == pytest.approx(expected, rel=1e-6)


def test_scale_multiplies_the_gradient_in_delta():
    theta, images = parameters(dtype=np.float32), binary_images(np.float32)
    g = by_definition(theta, "affine", images)
    value = gradient_norm(bound(theta), images, "affine", "l2", 1, scale=(30, 3, 0.5))
    np.testing.assert_allclose(value, np.linalg.norm(g * [30, 3, 0.5], axis=1), rtol=1e-4)
    g = by_definition(theta, ("affine", "additive"), images)
    value = gradient_norm(bound(theta), images, ("affine", "additive"), "l1", 1, scale=((30, 3, 0.5), 0.1))
    expected = np.abs(g * np.array([30, 3, 0.5] + [0.1] * 24)).sum(1)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_errors():
    images, loss_fn = binary_images(np.float32), bound(parameters(dtype=np.float32))
    with pytest.raises(ValueError, match="one loss per image.*mean"):
        gradient_norm(lambda x: loss_fn(x).mean(), images, "flow")
    with pytest.raises(ValueError, match="directional.*double_backprop.*finite_difference"):
        gradient_norm(loss_fn, images, "flow", method="exact")
    with pytest.raises(ValueError, match="additive.*flow"):
        gradient_norm(loss_fn, images, "flw")
    with pytest.raises(ValueError, match="l1.*l2"):
        gradient_norm(loss_fn, images, "flow", norm="l7")
    with pytest.raises(ValueError, match="composition"):
        gradient_norm(loss_fn, images, ("flow", "additive"), norm="l21")


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_finite_differences_are_refused_in_half_precision(half):
    images = jnp.full((2, 3, 3, 1), 0.5, half)
    with pytest.raises(ValueError, match="method=finite_difference moves images by 0.0001, which is rounded away"):
        gradient_norm(lambda x: x.sum((1, 2, 3)) ** 2, images, "additive", method="finite_difference")


def test_a_perturbation_of_ones_own_has_an_entry_for_each_image_and_changes_nothing_at_0():
    images, loss_fn = binary_images(np.float32), bound(parameters(dtype=np.float32))
    one = Perturbation(lambda x: jnp.zeros((1, *x.shape[1:])), lambda x, d: x + d, "patch")
    darker = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: x * 0.5 + d[:, :, None, None], "darker")
    for call in (gradient_norm, lambda f, x, space: first_order_gain(f, x, ThreatModel(space, "linf", 0.1))):
        with pytest.raises(ValueError, match=r"patch: zeros\(images\) must have an entry for each image.*\(1, "):
            call(loss_fn, images, one)
        with pytest.raises(ValueError, match="darker: apply.* must return images unchanged"):
            call(loss_fn, images, darker)


def test_a_perturbation_of_ones_own_takes_images_of_another_precision_than_its_delta():
    lighting = Perturbation(lambda x: jnp.zeros((len(x), 1)), lambda x, d: (x + d[:, :, None, None]).astype(x.dtype),
                               "lighting")  # fmt: skip
    images = jnp.full((2, 3, 3, 1), 0.5, jnp.bfloat16)
    found = gradient_norm(lambda x: x.astype(jnp.float32).sum((1, 2, 3)), images, lighting, power=1)
    np.testing.assert_allclose(found, 9.0)
