from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

from robust_jax import losses
from robust_jax.attacks import fgsm, pgd
from robust_jax.models import bind, create
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import warp
from simple_models import Linear, Net, initial, measured, times

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
STATIC = ("steps", "restarts", "loss", "momentum", "optimizer", "targeted", "random_start", "keep")
HEAVY_BALL = partial(optax.sgd, momentum=0.5)
# Small programs, run a few times: compile the cheapest way.
attack = jax.jit(pgd, static_argnames=STATIC)
margin, cross_entropy = jax.jit(losses.margin), jax.jit(losses.cross_entropy)


def linear(classes=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(int(np.prod(SHAPE[1:])), classes))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(rng.normal(size=classes), jnp.float32))


def sample(kind, seed=1):
    """Images away from the box ("inside"), or spread over it with a third of exact 0s and 1s ("box")."""
    x = np.random.default_rng(seed).uniform(size=SHAPE)
    x = 0.45 + 0.1 * x if kind == "inside" else np.clip(1.5 * x - 0.25, 0, 1)
    return jnp.asarray(x, jnp.float32)


def labels_of(model, images):
    return model(images).argmax(-1)


def margin_direction(model, labels):
    """The gradient of a two-class margin, [B, n] in float64."""
    w = np.asarray(model.weights, np.float64)
    return np.stack([w[:, 1 - y] - w[:, y] for y in np.asarray(labels)])


def waterfill(g, low, high, radius):
    """The most of <g, δ> over ‖δ‖₂ <= radius and low <= δ <= high: δ = clip(t g), t by bisection."""
    point = lambda t: np.clip(t * g, low, high)  # noqa: E731
    a, b = 0.0, 1e6
    for _ in range(200):
        t = (a + b) / 2
        a, b = (a, t) if np.linalg.norm(point(t)) > radius else (t, b)
    return float(g @ point(a))


def best_gain(g, x, norm, radius):
    """The most of <g, δ> over the ball and the box, independently of the library, in float64."""
    low, high = -x, 1 - x
    if norm == "linf":
        return float(np.where(g > 0, g * np.minimum(radius, high), g * np.maximum(-radius, low)).sum())
    if norm == "l1":  # δ = u - v
        n = len(g)
        result = linprog(
            np.concatenate([-g, g]), A_ub=np.ones((1, 2 * n)), b_ub=[radius],
            bounds=[(0, h) for h in high] + [(0, -v) for v in low],
        )  # fmt: skip
        return -result.fun
    if norm == "l2":
        return waterfill(g, low, high, radius)
    pairs = zip(*(v.reshape(-1, 2) for v in (g, low, high)), strict=True)
    return sum(waterfill(*pair, radius) for pair in pairs)


def check_result(model, result, images, threat, labels, targeted=False):
    size, said = measured(threat, images, result.delta)
    assert (size <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    right = losses.predicted(model(result.images)) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)


RADII = {"l1": 0.4, "l2": 0.35, "linf": 0.1, "l2inf": 0.2}
BOX_RADII = {"l1": 4.0, "l2": 1.2, "linf": 0.3, "l2inf": 0.5}


@pytest.mark.parametrize("norm", RADII)
def test_reaches_the_optimum_of_a_linear_model(norm):
    model = linear()
    for kind, radius in (("inside", RADII[norm]), ("box", BOX_RADII[norm])):
        images, threat = sample(kind), ThreatModel("additive", norm, radius)
        labels = labels_of(model, images)
        flat = np.asarray(images, np.float64).reshape(len(images), -1)
        best = np.array([
            best_gain(g, x, norm, radius)
            for g, x in zip(margin_direction(model, labels), flat, strict=True)
        ])  # fmt: skip
        if kind == "inside":  # the box is not felt: the dual norm
            g = margin_direction(model, labels)
            lengths = np.linalg.norm(g.reshape(len(g), -1, 2), axis=-1).sum(-1)
            dual = {"l1": abs(g).max(1), "l2": np.linalg.norm(g, axis=1), "linf": abs(g).sum(1), "l2inf": lengths}
            np.testing.assert_allclose(best, radius * dual[norm], rtol=1e-6)
        # From a random start the angle to the optimum shrinks by exp(-steps * step_size / radius), so the default,
        # 2.5 radii in all, leaves 8% of it (2% of the gain): 10 radii here. l1 needs none
        # of that, but circles the optimum at the distance of a step: short ones.
        steps, size = (200, radius / 80) if norm == "l1" else (100, radius / 10)
        result = attack(model, images, labels, threat, key=KEY, steps=steps, step_size=size, loss=losses.margin)
        check_result(model, result, images, threat, labels)
        gain = margin(model(result.images), labels) - margin(model(images), labels)
        assert (gain >= 0.99 * best).all(), gain / best
        assert (gain <= 1.0001 * best + 1e-5).all()


def test_l1_reaches_the_optimum_of_an_image_sized_model_at_the_default_settings():
    # One coordinate a step reached 33% of it here.
    rng = np.random.default_rng(0)
    x = np.clip(1.5 * rng.uniform(size=(2, 28, 28, 1)) - 0.25, 0, 1)
    model = Linear(jnp.asarray(rng.normal(size=(784, 2)), jnp.float32), jnp.zeros(2))
    images, threat = jnp.asarray(x, jnp.float32), ThreatModel("additive", "l1", 10.0)
    labels = labels_of(model, images)
    result = attack(model, images, labels, threat, key=KEY, loss=losses.margin)
    check_result(model, result, images, threat, labels)
    gain = margin(model(result.images), labels) - margin(model(images), labels)
    for got, g, v in zip(gain, margin_direction(model, labels), x.reshape(2, -1), strict=True):
        assert 0.98 * best_gain(g, v, "l1", 10.0) <= got <= 1.0001 * best_gain(g, v, "l1", 10.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_multi_class_linear_model(norm):
    model, images, threat = linear(4), sample("inside"), ThreatModel("additive", norm, RADII[norm])
    labels = labels_of(model, images)
    w, z = np.asarray(model.weights, np.float64), np.asarray(model(images), np.float64)
    order = {"linf": 1, "l2": 2}[norm]
    best = np.array([
        max(z[i, k] - z[i, y] + RADII[norm] * np.linalg.norm(w[:, k] - w[:, y], order) for k in range(4) if k != y)
        for i, y in enumerate(np.asarray(labels))
    ])  # fmt: skip
    clean = np.asarray(margin(model(images), labels))
    # A maximum over classes of linear functions has one local maximum a class: restarts look at several.
    result = attack(model, images, labels, threat, key=KEY, steps=50, step_size=0.1 * threat.radius, restarts=5,
                    loss=losses.margin)  # fmt: skip
    check_result(model, result, images, threat, labels)
    gain = margin(model(result.images), labels) - clean
    assert (gain >= 0.99 * (best - clean)).all(), gain / (best - clean)
    assert (gain <= 1.0001 * (best - clean)).all()


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_momentum_reaches_the_optimum_in_the_box_too(norm):
    model, images, threat = linear(), sample("box"), ThreatModel("additive", norm, BOX_RADII[norm])
    labels = labels_of(model, images)
    steps, part = (200, 1 / 80) if norm == "l1" else (100, 1 / 10)
    result = attack(model, images, labels, threat, key=KEY, steps=steps, step_size=part * threat.radius,
                    loss=losses.margin, momentum=0.9)  # fmt: skip
    check_result(model, result, images, threat, labels)
    gain = margin(model(result.images), labels) - margin(model(images), labels)
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    for got, g, x in zip(gain, margin_direction(model, labels), flat, strict=True):
        assert got >= 0.99 * best_gain(g, x, norm, BOX_RADII[norm])


def ramp(h=6, w=7):
    """Images whose bilinear interpolation is a plane, so that the best flow is known: slopes a down, b across."""
    slopes = np.array([[0.03, 0.05], [-0.04, 0.02], [0.0, 0.06]])
    y, x = np.meshgrid(np.arange(h) - h / 2, np.arange(w) - w / 2, indexing="ij")
    return slopes, jnp.asarray(0.5 + slopes @ np.stack([y.ravel(), x.ravel()]), jnp.float32).reshape(3, h, w, 1)


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2inf", 2)])
def test_reaches_the_optimum_over_flows_of_a_plane(norm, dual):
    slopes, images = ramp()
    w = np.random.default_rng(0).normal(size=(6, 7))
    w[[0, -1]] = w[:, [0, -1]] = 0  # the border does not move freely
    logits_fn = Linear(jnp.asarray(np.stack([0 * w.ravel(), w.ravel()], 1), jnp.float32), jnp.zeros(2))
    labels = jnp.zeros(3, int)
    for radius in (0.25, 0.9):
        threat = ThreatModel("flow", norm, radius)
        result = attack(logits_fn, images, labels, threat, key=KEY, loss=losses.margin)
        gain = margin(logits_fn(result.images), labels) - margin(logits_fn(images), labels)
        best = radius * abs(w).sum() * np.linalg.norm(slopes, dual, axis=1)
        assert (gain >= 0.99 * best).all() and (gain <= 1.0001 * best).all(), gain / best
        check_result(logits_fn, result, images, threat, labels)
    both = ThreatModel(("flow", "additive"), (norm, "linf"), (0.25, 0.05))
    result = attack(logits_fn, images, labels, both, key=KEY, loss=losses.margin)
    gain = margin(logits_fn(result.images), labels) - margin(logits_fn(images), labels)
    best = 0.25 * abs(w).sum() * np.linalg.norm(slopes, dual, axis=1) + 0.05 * abs(w).sum()
    assert (gain >= 0.99 * best).all() and (gain <= 1.0001 * best).all(), gain / best
    check_result(logits_fn, result, images, both, labels)


def net(seed=0):
    return bind(Net(), initial(SHAPE, seed))


BRIGHTNESS = Perturbation(
    zeros=lambda images: jnp.zeros((len(images), 1)),
    apply=lambda images, delta: images + delta[:, :, None, None],
    name="brightness",
)
THREATS = [
    ThreatModel("additive", "linf", 0.1),
    ThreatModel("additive", "l1", 3.0),
    ThreatModel("flow", "l2inf", 1.0),
    ThreatModel("affine", "linf", (30, 3, 3)),
    ThreatModel((BRIGHTNESS, "flow", "additive"), ("linf", "l2", "linf"), (0.3, 0.5, 0.03)),
]
threats = pytest.mark.parametrize("threat", THREATS, ids=lambda t: f"{t.perturbation.name}")


@threats
def test_budget_box_and_success_hold_however_it_is_called(threat):
    model, images = net(), sample("box")
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    options = dict(steps=8, restarts=2)
    result = attack(model, images, labels, threat, key=KEY, **options)
    check_result(model, result, images, threat, labels)
    assert (cross_entropy(model(result.images), labels) > cross_entropy(model(images), labels)).all()
    # Alone with its own key as in the batch: [B] keys make the draw independent of how the batch is cut.
    keys = example_keys(KEY, len(images))
    for i in (1, 5):
        part = attack(model, images[i : i + 1], labels[i : i + 1], threat, key=keys[i : i + 1], **options)
        # Matrix products of other shapes round differently; 16 steps carry it on.
        np.testing.assert_allclose(part.images[0], result.images[i], atol=1e-3)
        assert part.success[0] == result.success[i]


def test_jitted_or_not_is_the_same():
    model, images, labels = net(), sample("box"), jnp.array([0, 1, 2, 0, 1, 2])
    threat = ThreatModel("additive", "l2", 0.5)
    eager = pgd(model, images, labels, threat, key=KEY, steps=8, restarts=2)
    jitted = attack(model, images, labels, threat, key=KEY, steps=8, restarts=2)
    np.testing.assert_allclose(eager.images, jitted.images, atol=1e-5)
    np.testing.assert_array_equal(eager.success, jitted.success)


def numpy_pgd(model, x0, labels, radius, step, steps, momentum):
    """Momentum PGD on cross-entropy of a linear model, every iterate, in float64."""
    w, b = (np.asarray(v, np.float64) for v in (model.weights, model.bias))
    x0 = np.asarray(x0, np.float64).reshape(len(x0), -1)
    x, velocity, iterates = x0.copy(), 0.0, []
    for _ in range(steps):
        iterates.append(x.copy())
        z = x @ w + b
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = (p - np.eye(w.shape[1])[labels]) @ w.T
        velocity = momentum * velocity + g / np.abs(g).sum(1, keepdims=True)
        x = np.clip(np.clip(x + step * np.sign(velocity), x0 - radius, x0 + radius), 0, 1)
    return np.stack([*iterates, x])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_last_iterate_follows_an_independent_implementation(momentum):
    model, images, labels = linear(3), sample("box"), jnp.array([0, 1, 2, 0, 1, 2])
    threat = ThreatModel("additive", "linf", 0.2)
    result = attack(model, images, labels, threat, key=KEY, steps=7, step_size=0.07, momentum=momentum,
                    random_start=False, keep="last")  # fmt: skip
    expected = numpy_pgd(model, images, labels, 0.2, 0.07, 7, momentum)[-1]
    np.testing.assert_allclose(result.images.reshape(6, -1), expected, atol=1e-5)


def test_the_step_of_an_optimizer_follows_an_independent_implementation():
    model, images, labels = linear(3), sample("box"), jnp.array([0, 1, 2, 0, 1, 2])
    w = np.asarray(model.weights, np.float64)
    x0 = np.asarray(images, np.float64).reshape(len(images), -1)
    delta, velocity = np.zeros_like(x0), 0.0
    for _ in range(6):
        z = (x0 + delta) @ w + np.asarray(model.bias, np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        velocity = 0.5 * velocity + (p - np.eye(3)[labels]) @ w.T
        delta = delta + 0.1 * velocity
        delta *= np.minimum(1, 0.6 / np.linalg.norm(delta, axis=1, keepdims=True))
        delta = np.clip(x0 + delta, 0, 1) - x0
    result = attack(model, images, labels, ThreatModel("additive", "l2", 0.6), key=KEY, steps=6, step_size=0.1,
                    optimizer=HEAVY_BALL, random_start=False, keep="last")  # fmt: skip
    np.testing.assert_allclose(result.delta.reshape(6, -1), delta, atol=1e-5)


def test_adam_reaches_the_corner_of_the_ball_of_every_example_by_itself():
    model, images = linear(), sample("inside")
    labels, threat = labels_of(model, images), ThreatModel("additive", "linf", 0.1)
    options = dict(key=KEY, loss=losses.margin, optimizer="adam", random_start=False)
    result = attack(model, images, labels, threat, **options)
    check_result(model, result, images, threat, labels)
    best = 0.1 * np.abs(margin_direction(model, labels)).sum(1)
    gain = margin(model(result.images), labels) - margin(model(images), labels)
    np.testing.assert_allclose(gain, best, rtol=1e-3)
    alone = attack(model, images[:1], labels[:1], threat, **options)
    np.testing.assert_allclose(alone.delta, result.delta[:1], atol=1e-6)


def test_an_optimizer_moves_every_part_of_a_composition_in_its_units():
    model, images = net(), sample("inside")
    labels = model(images).argmax(-1)
    threat = ThreatModel(("flow", "additive"), "linf", (0.3, 0.02))
    result = attack(model, images, labels, threat, key=KEY, steps=4, optimizer="adam", random_start=False, keep="last")
    check_result(model, result, images, threat, labels)
    for delta, radius in zip(result.delta, (0.3, 0.02), strict=True):
        assert jnp.abs(delta).max() == pytest.approx(radius, rel=1e-4)


def test_what_is_kept():
    model, images = net(), sample("box")
    labels = model(images).argmax(-1)
    threat = ThreatModel("additive", "l2", 1.0)

    # A loss that falls as the attack succeeds: best keeps a misclassified iterate, highest_loss the highest loss.
    def odd(logits, labels):
        value = margin(logits, labels)
        return jnp.where(value > 0, -10.0 + value, value)

    options = dict(key=KEY, steps=20, loss=odd)
    best, highest = (attack(model, images, labels, threat, keep=k, **options) for k in ("best", "highest_loss"))
    value = lambda r: odd(model(r.images), labels)  # noqa: E731
    assert best.success.any() and (value(highest) >= value(best) - 1e-5).all()
    assert best.success.sum() > highest.success.sum()
    for result in (best, highest):
        check_result(model, result, images, threat, labels)

    # Steps far too long: the last iterate is not the best one.
    options = dict(key=KEY, steps=9, step_size=50.0, loss=losses.margin, random_start=False)
    results = {k: attack(model, images, labels, threat, keep=k, **options) for k in ("best", "highest_loss", "last")}
    loss = {k: margin(model(r.images), labels) for k, r in results.items()}
    np.testing.assert_allclose(loss["best"], loss["highest_loss"], rtol=1e-5)
    assert (loss["best"] >= loss["last"] - 1e-5).all() and (loss["best"] > loss["last"] + 1e-4).any()


def test_best_never_does_worse_than_the_clean_image():
    model, images = net(), sample("box")
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    descend = lambda logits, labels: -cross_entropy(logits, labels)  # noqa: E731
    threat = ThreatModel("additive", "linf", 0.3)
    result = attack(model, images, labels, threat, key=KEY, steps=5, loss=descend)
    wrong = model(images).argmax(-1) != labels
    assert wrong.any() and (result.success[wrong]).all()


def test_targeted():
    model, images, target = net(), sample("box"), jnp.array([2, 0, 1, 2, 1, 0])
    threat = ThreatModel("additive", "l2", 1.5)
    result = attack(model, images, target, threat, key=KEY, targeted=True)
    check_result(model, result, images, threat, target, targeted=True)
    assert result.success.sum() > (model(images).argmax(-1) == target).sum()
    assert (cross_entropy(model(result.images), target) <= cross_entropy(model(images), target) + 1e-6).all()
    # Two classes: towards the other class is away from this one.
    two, x = linear(), sample("box")
    towards = attack(two, x, 1 - labels_of(two, x), threat, key=KEY, targeted=True)
    away = attack(two, x, labels_of(two, x), threat, key=KEY)
    np.testing.assert_allclose(towards.images, away.images, atol=1e-5)
    np.testing.assert_array_equal(towards.success, away.success)


def test_more_effort_and_more_room_never_help_the_defender():
    model = net(3)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(64, *SHAPE[1:])), jnp.float32)
    labels = model(images).argmax(-1)
    run = lambda radius, **o: attack(  # noqa: E731
        model, images, labels, ThreatModel("additive", "l2", radius), key=KEY, loss=losses.margin, **o)  # fmt: skip
    loss = lambda r: np.asarray(margin(model(r.images), labels))  # noqa: E731

    one, three = (run(0.3, steps=5, restarts=n) for n in (1, 3))
    assert (loss(three) >= loss(one) - 1e-5).all() and (three.success | ~one.success).all()
    assert (loss(three) > loss(one) + 1e-5).any()
    few, many = (loss(run(0.3, steps=n)) for n in (2, 40))
    assert many.mean() >= few.mean() and (many >= few - 0.05 * np.abs(few)).all()
    results = [run(r, steps=5) for r in (0.0, 0.1, 0.2, 0.4, 0.8)]
    mean = [loss(r).mean() for r in results]
    assert (np.diff(mean) > 0).all()
    rate = [float(r.success.mean()) for r in results]
    assert (np.diff(rate) >= 0).all() and rate[0] == 0 and rate[-1] > 0.5


def spoilt(base, factor, level, images):
    """NaN logits where the first pixel is brighter than the level."""
    return jnp.where(images[:, 0, 0, :1] > level, jnp.nan, base(images)) * factor


@pytest.mark.parametrize("keep", ["best", "highest_loss", "last"])
@pytest.mark.parametrize("space, norm", [("additive", "l2"), ("flow", "linf")])
def test_radius_zero_gives_the_clean_image_to_the_bit_and_a_model_that_gives_nan_no_nan_images(space, norm, keep):
    base, images = net(), sample("box")
    made = lambda factor, level: jax.tree_util.Partial(spoilt, base, jnp.float32(factor), jnp.float32(level))  # noqa: E731
    sound = made(1, 2)
    run = partial(attack, key=KEY, steps=4, momentum=0.5, keep=keep)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    result = run(sound, images, labels, ThreatModel(space, norm, 0.0))
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.success, sound(images).argmax(-1) != labels)
    labels, threat = base(images).argmax(-1), ThreatModel(space, norm, 0.5)
    for model in (made(1, 0.5), made(1, -1), made(np.inf, 2)):  # some NaN, all NaN, all infinite
        result = run(model, images, labels, threat)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.images, result.delta)))
        check_result(model, result, images, threat, labels)


def test_nan_does_not_spread_to_other_examples():
    base, images = net(), sample("box")
    labels, threat = base(images).argmax(-1), ThreatModel("additive", "l2", 0.5)
    rest = np.array([0, 1, 3, 4, 5])
    models = times(base, jnp.ones((6, 1)).at[2].set(jnp.nan)), times(base, 1.0)
    one, other = (attack(m, images, labels, threat, key=KEY, steps=4) for m in models)
    np.testing.assert_array_equal(one.images[rest], other.images[rest])


def test_a_constant_model_gives_the_clean_image_back():
    images, labels = sample("box"), jnp.array([0, 1, 0, 1, 0, 1])
    constant = Linear(jnp.zeros((32, 2)), jnp.array([1.0, 0.0]))
    result = attack(constant, images, labels, ThreatModel("additive", "l1", 1.0), key=KEY, steps=3)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.success, labels == 1)


def test_fgsm_is_one_full_step():
    model, images, labels = net(), sample("box"), jnp.array([0, 1, 2, 0, 1, 2])
    gradient = jax.grad(lambda x: cross_entropy(model(x), labels).sum())(images)
    result = fgsm(model, images, labels, ThreatModel("additive", "linf", 0.1), key=KEY)
    np.testing.assert_allclose(result.images, jnp.clip(images + 0.1 * jnp.sign(gradient), 0, 1), atol=1e-6)
    result = fgsm(model, images, labels, ThreatModel("additive", "linf", 0.1), key=KEY, targeted=True)
    np.testing.assert_allclose(result.images, jnp.clip(images - 0.1 * jnp.sign(gradient), 0, 1), atol=1e-6)
    result = fgsm(model, images, labels, ThreatModel("flow", "linf", 0.1), key=KEY)
    # On each axis to the better side of the grid, and nowhere where both are worse.
    for axis in range(2):
        ways = (jnp.zeros((*SHAPE[:3], 2)).at[..., axis].set(way) for way in (0.1, -0.1))
        up, down = ((gradient * (warp(images, way) - images)).sum(-1) for way in ways)
        expected = jnp.where(jnp.maximum(up, down) > 0, jnp.where(up > down, 0.1, -0.1), 0)
        np.testing.assert_allclose(result.delta[..., axis], expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(keep="first"), "first.*best.*highest_loss.*last"),
        (dict(steps=0), "steps=0"),
        (dict(restarts=0), "restarts=0"),
        (dict(restarts=2, random_start=False), "random_start"),
        (dict(restarts=2, keep="last"), "last"),
        (dict(early_stop=True, keep="last"), "early_stop.*keep='last'"),
        (dict(optimizer="adm"), "'adm' is unknown.*'adam'"),
        (dict(optimizer="adam", momentum=0.9), "momentum=0.9.*its own"),
        (dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (dict(images=jnp.zeros(SHAPE[1:])), r"\[B, H, W, C\]"),
        (dict(labels=jnp.full(6, 2)), "2 classes"),
        (dict(labels=jnp.zeros(5, int)), r"\(5,\)"),
        (dict(key=jax.random.split(KEY, 5)), "5 keys for 6"),
        (dict(threat=ThreatModel(("flow", "additive"), "linf", (0.1, 0.1)), step_size=0.1), "step_size.*tuple of 2"),
    ],
)
def test_errors(options, message):
    images = sample("box")
    given = dict(images=images, labels=jnp.zeros(6, int), threat=ThreatModel("additive", "linf", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        pgd(linear(), **(given | options))


@pytest.fixture(scope="module")
def digits():
    """A small network after a second of training, and 300 held-out images."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = jnp.asarray(data.images[..., None] / 16, jnp.float32)
    labels = jnp.asarray(data.target)
    model = create("mlp", num_classes=10, hidden=(64, 64), activation="relu")
    params = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, state, index):
        def loss(p):
            return cross_entropy(model.apply(p, images[index]), labels[index]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(150):
        params, state = step(params, state, rng.integers(0, 1497, 64))
    assert (model.apply(params, images[1497:]).argmax(-1) == labels[1497:]).mean() > 0.85
    return model, params, images[1497:], labels[1497:]


@pytest.mark.parametrize("norm, radius", [("linf", 0.12), ("l2", 0.7)])
def test_agrees_with_foolbox_at_equal_settings(digits, norm, radius):
    foolbox = pytest.importorskip("foolbox")
    model, variables, images, labels = digits
    logits_fn = bind(model, variables)
    settings = dict(steps=10, rel_stepsize=None, abs_stepsize=0.25 * radius, random_start=False)
    peer = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm](**settings)
    wrapped = foolbox.JAXModel(jax.jit(lambda x: logits_fn(x)), bounds=(0, 1))
    _, theirs, fooled = peer(wrapped, images, labels, epsilons=radius)
    result = attack(logits_fn, images, labels, ThreatModel("additive", norm, radius), key=KEY, steps=10,
                    step_size=0.25 * radius, random_start=False, keep="last")  # fmt: skip
    ours, other = 1 - float(result.success.mean()), 1 - float(np.asarray(fooled).mean())
    assert 0.1 < other < 0.9, "accuracies at an end of the scale compare nothing"
    assert abs(ours - other) <= 0.01
    if norm == "linf":  # the same iterates but for signs of gradients near 0
        assert (np.abs(np.asarray(theirs) - result.images) < 1e-4).mean() > 0.97


def test_one_compilation_serves_all_parameters_and_radii(digits):
    model, variables, images, labels = digits
    traces = 0

    def run(logits_fn, images, labels, threat, key):
        nonlocal traces
        traces += 1
        return pgd(logits_fn, images, labels, threat, key=key, steps=3)

    jitted = jax.jit(run)
    results = []
    for factor, radius in ((1.0, 0.1), (0.5, 0.1), (-1.0, 0.2)):
        logits_fn = bind(model, jax.tree.map(partial(jnp.multiply, factor), variables))
        threat = ThreatModel("additive", "linf", radius)
        results.append(jitted(logits_fn, images[:8], labels[:8], threat, KEY))
        check_result(logits_fn, results[-1], images[:8], threat, labels[:8])
    assert traces == 1 and jitted._cache_size() == 1
    assert not np.allclose(results[0].images, results[2].images)


@pytest.mark.parametrize("norm, radius, least", [("linf", 0.4, 0.93), ("linf", 1.5, 0.75), ("l2inf", 0.4, 0.6)])
def test_flows_are_not_held_on_the_side_of_a_grid_line_where_they_start(norm, radius, least):
    # White noise: most pixels change for the better both ways. Each has a flow of its own, so that a linear model's
    # optimum is the sum of those of pixels; T is bilinear between grid lines, so that in linf it is on their corners.
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.2, 0.8, (4, 7, 7, 1)), jnp.float32)
    w = rng.normal(size=49)
    model = Linear(jnp.asarray(np.stack([0 * w, w], 1), jnp.float32), jnp.array([500.0, 0.0]))
    lines = [-radius, *range(-int(radius), int(radius) + 1), radius]
    corners = [warp(images, jnp.broadcast_to(jnp.array([a, b]), (4, 7, 7, 2))) for a in lines for b in lines]
    best = (np.stack(corners) * w.reshape(7, 7, 1)).max(0).sum((1, 2, 3)) - (images.reshape(4, -1) @ w)
    threat, labels = ThreatModel("flow", norm, radius), jnp.zeros(4, int)
    result = attack(model, images, labels, threat, key=KEY, loss=losses.margin)
    check_result(model, result, images, threat, labels)
    gain = (result.images - images).reshape(4, -1) @ w
    assert (gain <= 1.0001 * best).all() and (gain >= least * best).all(), gain / best


@pytest.mark.parametrize("norm, length", [("l21", np.hypot), ("l1", lambda a, b: abs(a) + abs(b))])
def test_flows_that_share_a_budget_move_the_pixels_that_gain_most(norm, length):
    # As above. The upper bound is Lagrange's: with the best price of a pixel's way, each pixel buys for itself.
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.2, 0.8, (4, 7, 7, 1)), jnp.float32)
    w = rng.normal(size=49)
    model = Linear(jnp.asarray(np.stack([0 * w, w], 1), jnp.float32), jnp.array([500.0, 0.0]))
    ways = [(a, b) for a in np.linspace(-2, 2, 17) for b in np.linspace(-2, 2, 17)]
    moved = np.stack([warp(images, jnp.broadcast_to(jnp.array(way), (4, 7, 7, 2))) for way in ways])
    gains = ((moved - images) * w.reshape(7, 7, 1)).reshape(len(ways), 4, 49)
    lengths = np.array([length(*way) for way in ways])[:, None, None]
    for radius in (2.0, 15.0):
        prices = np.linspace(0.05, 3, 60)
        best = np.min([price * radius + (gains - price * lengths).max(0).sum(-1) for price in prices], 0)
        threat, labels = ThreatModel("flow", norm, radius), jnp.zeros(4, int)
        result = attack(model, images, labels, threat, key=KEY, loss=losses.margin)
        check_result(model, result, images, threat, labels)
        gain = (result.images - images).reshape(4, -1) @ w
        assert (gain <= 1.0001 * best).all() and (gain >= 0.65 * best).all(), gain / best
