from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_jax as rj
from robust_jax import losses
from robust_jax.attacks import ATTACKS, apply_universal, universal, universal_gradient, universal_targeted
from robust_jax.models import bind
from robust_jax.options import options_of
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, initial, measured

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (10, 5, 5, 1)
STATIC = ("epochs", "batch_size", "loss", "keep", "fraction", "reach", "restarts", "method")


def jitted(function):
    options = options_of(function)
    return jax.jit(function, static_argnames=[n for n in STATIC if n in options or "method" in options])


gradient, deepfool, towards = map(jitted, (universal_gradient, universal, universal_targeted))


def linear(seed=0):
    weights = np.random.default_rng(seed).normal(size=(25, 2))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.zeros(2))


def net(images, seed=2):
    """A random net whose mean logits over the images are equal: every class is near."""
    variables = initial(images.shape, seed)
    bias = variables["params"]["Dense_0"]["bias"]
    variables["params"]["Dense_0"]["bias"] = bias - bind(Net(), variables)(images).mean(0)
    return bind(Net(), variables)


def sample(low=0.4, high=0.6, seed=1):
    """Smooth images: slopes of their own, so that flows and turns change them all alike."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5), indexing="ij")
    slopes = rng.uniform(0.3, 1, size=(SHAPE[0], 2))
    plane = 0.5 + 0.2 * (slopes[:, :1, None] * y + slopes[:, 1:, None] * x)
    spread = low + (high - low) * (plane + 0.2 * rng.uniform(size=plane.shape))
    return jnp.asarray(np.clip(spread, 0, 1)[..., None], jnp.float32)


def check_result(model, result, images, threat, labels, targeted=False):
    size, said = measured(threat, images, result.delta)
    assert (size <= 1.0001).all()
    assert (result.images >= 0).all() and (result.images <= 1).all()
    for leaf in jax.tree.leaves(result.delta):
        assert len(leaf) == len(images) and np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))
    np.testing.assert_allclose(result.images, said, atol=1e-6)
    first = jax.tree.map(lambda leaf: leaf[:1], result.delta)
    # Another program: the last bit may differ.
    np.testing.assert_allclose(apply_universal(threat, images, first), result.images, atol=2e-7)
    right = losses.predicted(model(result.images)) == labels
    np.testing.assert_array_equal(result.success, right if targeted else ~right)


@pytest.mark.parametrize("norm, order", [("l2", 2), ("linf", 1)])
@pytest.mark.parametrize("batch_size", [100, 4])
def test_reaches_the_optimum_of_the_mean_of_a_linear_model(norm, order, batch_size):
    # The mean margin over labels 0 (7 of 10) and 1 is linear in δ: its optimum is radius * the dual norm.
    model, images, labels = linear(), sample(), jnp.asarray([0] * 7 + [1] * 3)
    threat = ThreatModel("additive", norm, {"l2": 0.3, "linf": 0.1}[norm])
    result = gradient(model, images, labels, threat, key=KEY, loss=losses.margin, batch_size=batch_size,
                      keep="highest_loss")  # fmt: skip
    check_result(model, result, images, threat, labels)
    w = np.asarray(model.weights, np.float64)
    best = float(threat.radius) * 0.4 * np.linalg.norm(w[:, 1] - w[:, 0], order)
    mean = lambda x: float(losses.margin(model(x), labels).mean())  # noqa: E731
    gain = mean(result.images) - mean(images)
    assert 0.99 * best <= gain <= 1.0001 * best, gain / best


@pytest.mark.parametrize("norm, order", [("l2", 2), ("linf", 1)])
def test_deepfool_turns_a_linear_model_where_one_direction_serves_all(norm, order):
    model, images = linear(), sample()
    model.bias = jnp.array([0.5, 0.0]) - model(images).mean(0)
    w = np.asarray(model.weights, np.float64)
    margins = np.asarray(model(images), np.float64) @ [1, -1]
    needed = np.abs(margins).max() / np.linalg.norm(w[:, 1] - w[:, 0], order)
    labels = jnp.asarray((margins < 0).astype(int))
    assert not labels.any() and np.abs(images - 0.5).max() + needed < 0.5  # the box is not felt
    # All boundaries are parallel: the step of the farthest image fools all, and its 2% too much bounds the size.
    threat = ThreatModel("additive", norm, 1.1 * needed)
    result = deepfool(model, images, labels, threat, key=KEY, fraction=1.0)
    check_result(model, result, images, threat, labels)
    assert result.success.all()
    assert float(threat_models.size(threat, result.delta)[0]) <= 1.021 / 1.1
    # Half of the images are enough for half, and that half is wrong already: no pass.
    some = deepfool(model, images, labels.at[:5].set(1), threat, key=KEY, fraction=0.5)
    assert some.success.mean() == 0.5 and not some.delta.any()
    # Too small for anyone: no step in the ball.
    nearest = needed * margins.min() / margins.max()
    none = deepfool(model, images, labels, ThreatModel("additive", norm, 0.9 * nearest), key=KEY, epochs=2, reach=1.0)
    assert not none.success.any() and not none.delta.any()


THREATS = [
    ThreatModel("additive", "linf", 0.2),
    ThreatModel("additive", "l1", 4.0),
    ThreatModel("flow", "l2inf", 2.0),
    ThreatModel("affine", "linf", (40, 2, 2)),
    ThreatModel(("flow", "additive"), ("l2inf", "linf"), (1.0, 0.1)),
]


@pytest.mark.parametrize(
    "method, threat",
    [("sign_gradient", THREATS[i]) for i in (1, 3, 4)] + [("deepfool", THREATS[i]) for i in (1, 2, 4)],
    ids=lambda v: v if isinstance(v, str) else v.perturbation.name,
)
def test_any_space_targeted(method, threat):
    images = sample(0.2, 1.0)
    model = net(images)
    clean = np.bincount(model(images).argmax(-1), minlength=3)
    target = int(clean.argmin())
    # Three numbers have local maxima.
    more = {"restarts": 4} if (method, threat.perturbation.name) == ("sign_gradient", "affine") else {}
    result = towards(model, images, target, threat, key=KEY, method=method, epochs=8, **more)
    check_result(model, result, images, threat, jnp.full(len(images), target), targeted=True)
    assert result.success.sum() > clean[target] and result.success.mean() >= 0.5, (clean, result.success.mean())


@pytest.mark.parametrize("run", [gradient, deepfool])
def test_any_space_untargeted_and_deterministic(run):
    images = sample(0.2, 1.0)
    model = net(images)
    labels = model(images).argmax(-1)
    # The last is smooth in δ: signs and kinks would carry the last bit on.
    for threat in (THREATS[2], ThreatModel("additive", "l2", 0.3)):
        result, again, other = (run(model, images, labels, threat, key=jax.random.key(k), epochs=4, batch_size=4)
                                for k in (0, 0, 1))  # fmt: skip
        check_result(model, result, images, threat, labels)
        assert result.success.any()
        jax.tree.map(np.testing.assert_array_equal, result, again)
        assert not np.array_equal(jax.tree.leaves(other.delta)[0], jax.tree.leaves(result.delta)[0])
    eager = {gradient: universal_gradient, deepfool: universal}[run]
    unjitted = eager(model, np.asarray(images), np.asarray(labels), threat, key=KEY, epochs=4, batch_size=4)
    np.testing.assert_allclose(unjitted.images, result.images, atol=1e-3)
    np.testing.assert_array_equal(unjitted.success, result.success)


def test_what_is_kept():
    images = sample(0.2, 1.0)
    model = net(images)
    labels = model(images).argmax(-1)
    # Far too long steps, so that the last δ is not the best.
    run = partial(gradient, model, images, labels, THREATS[0], key=KEY, epochs=5, step_size=5.0, batch_size=4)
    best, highest, last = (run(keep=keep) for keep in ("best", "highest_loss", "last"))
    for result in (best, highest, last):
        check_result(model, result, images, THREATS[0], labels)
    mean = lambda r: float(losses.cross_entropy(model(r.images), labels).mean())  # noqa: E731
    assert mean(highest) >= mean(best) - 1e-6 and mean(highest) > mean(last) + 1e-3
    assert best.success.sum() >= max(highest.success.sum(), last.success.sum())

    def odd(logits, labels):  # falls where the attack succeeds
        value = losses.margin(logits, labels)
        return jnp.where(value > 0, value - 10, value)

    best, highest = (run(keep=keep, loss=odd) for keep in ("best", "highest_loss"))
    assert best.success.sum() > highest.success.sum()


def test_restarts_add_runs_to_the_first():
    images = sample(0.2, 1.0)
    model = net(images)
    labels, threat = model(images).argmax(-1), ThreatModel("affine", "linf", (20, 1, 1))
    gains = []
    for seed in range(4):
        one, four = (
            gradient(model, images, labels, threat, key=jax.random.key(seed), epochs=3, restarts=n, keep="highest_loss")
            for n in (1, 4)
        )
        check_result(model, four, images, threat, labels)
        gains.append(float(losses.cross_entropy(model(four.images), labels).mean()
                           - losses.cross_entropy(model(one.images), labels).mean()))  # fmt: skip
    assert min(gains) >= 0 and max(gains) > 1e-4, gains  # the first run of the four is that of the one


def test_an_image_counts_up_to_the_clip():
    # Image 0 would gain ten times image 1's along a pixel of its own; past the clip the ball's budget is image 1's.
    weights = np.zeros((25, 2))
    weights[0, 0], weights[1, 1] = 10.0, 1.0
    model = Linear(jnp.asarray(weights, jnp.float32), jnp.asarray([-5.0, -0.5]))
    images, labels, threat = jnp.full((2, 5, 5, 1), 0.5), jnp.arange(2), ThreatModel("additive", "l2", 0.2)
    own = lambda logits, labels: logits[jnp.arange(2), labels]  # noqa: E731
    plain, clipped = (gradient(model, images, labels, threat, key=KEY, loss=own, clip=c, keep="last").delta[0, 0, :2]
                      for c in (np.inf, 0.4))  # fmt: skip
    assert plain[0] > 0.19 and plain[1] < 0.03
    assert 0.03 < clipped[0] < 0.1 and clipped[1] > 0.15


def test_constant_spoilt_models_and_radius_zero_give_no_change():
    images, labels = sample(), jnp.asarray([0, 1] * 5)
    constant = Linear(jnp.zeros((25, 2)), jnp.array([1.0, 0.0]))
    spoilt = Linear(linear().weights * jnp.nan, jnp.zeros(2))
    for run in (gradient, deepfool):
        for model, radius in ((constant, 1.0), (spoilt, 1.0), (linear(), 0.0)):
            threat = ThreatModel("flow", "linf", radius)
            result = run(model, images, labels, threat, key=KEY, epochs=2, batch_size=4)
            check_result(model, result, images, threat, labels)
            np.testing.assert_array_equal(result.images, images)


def test_one_compilation_serves_all_parameters_radii_and_targets():
    images, traces = sample(0.2, 1.0), 0
    module = Net()

    @jax.jit
    def run(model, images, target, threat, key):
        nonlocal traces
        traces += 1
        return universal_targeted(model, images, target, threat, key=key, epochs=3)

    for seed, target, radius in ((0, 0, 0.1), (1, 1, 0.1), (2, 2, 0.3)):
        model = bind(module, module.init(jax.random.key(seed), images))
        threat = ThreatModel("additive", "linf", radius)
        result = run(model, images, jnp.asarray(target), threat, KEY)
        check_result(model, result, images, threat, jnp.full(len(images), target), targeted=True)
    assert traces == 1


def test_where_they_are_entered():
    assert rj.attacks.universal is universal and rj.attacks.universal_targeted is universal_targeted
    assert not {"universal", "universal_gradient", "universal_targeted"} & set(ATTACKS)


@pytest.mark.parametrize(
    "function, options, message",
    [
        (universal, dict(key=jax.random.split(KEY, 10)), r"one key.*\(10,\)"),
        (universal_gradient, dict(key=jax.random.PRNGKey(0)), "key must be made by jax.random.key"),
        (universal, dict(epochs=0), "epochs=0"),
        (universal_gradient, dict(batch_size=0), "batch_size=0"),
        (universal, dict(fraction=0.0), "fraction=0.0"),
        (universal, dict(steps=0), "steps=0"),
        (universal, dict(reach=0.5), "reach=0.5"),
        (universal_gradient, dict(keep="first"), "first.*best.*highest_loss.*last"),
        (universal_gradient, dict(restarts=2, keep="last"), "restarts=2"),
        (universal_gradient, dict(threat=THREATS[-1], step_size=0.1), "step_size.*tuple of 2"),
        (universal_gradient, dict(labels=jnp.full(10, 2)), "2 classes"),
        (universal, dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
    ],
)
def test_errors(function, options, message):
    given = dict(images=sample(), labels=jnp.zeros(10, int), threat=THREATS[0], key=KEY)
    with pytest.raises(ValueError, match=message):
        function(linear(), **(given | options))


@pytest.mark.parametrize(
    "target, options, message",
    [
        (jnp.arange(10) % 2, {}, "one target"),
        (5, {}, "2 classes"),
        (1, dict(method="pgd"), "deepfool.*sign_gradient"),
    ],
)
def test_errors_of_targets(target, options, message):
    with pytest.raises(ValueError, match=message):
        universal_targeted(linear(), sample(), target, THREATS[0], key=KEY, **options)


@pytest.fixture(scope="module")
def digits():
    """A logistic regression after a few steps, 100 training images that are not a 3, and held-out ones."""
    data = rj.data.load("digits")
    part = lambda source, n: source.take(np.arange(n))  # noqa: E731
    train, test = part(data.train, 600), part(data.test, 300)
    images, labels = jnp.asarray(train["image"] / 255, jnp.float32), jnp.asarray(train["label"])
    optimizer = optax.adam(0.05)

    def loss(model):
        return losses.cross_entropy(model(images), labels).mean()

    def step(_, carry):
        model, state = carry
        updates, state = optimizer.update(jax.grad(loss)(model), state)
        return optax.apply_updates(model, updates), state

    model = Linear(jnp.zeros((64, 10)), jnp.zeros(10))
    model, _ = jax.jit(partial(jax.lax.fori_loop, 0, 100, step))((model, optimizer.init(model)))
    held, names = jnp.asarray(test["image"] / 255, jnp.float32), np.asarray(test["label"])
    assert (np.asarray(model(held).argmax(-1)) == names).mean() > 0.9
    return model, images[np.asarray(labels) != 3][:100], held[names != 3]


@pytest.mark.parametrize("method", ["sign_gradient", "deepfool"])
def test_digits_are_seen_as_the_target(digits, method):
    model, images, held_out = digits
    threat, target = ThreatModel("additive", "linf", 0.25), 3
    assert (model(images).argmax(-1) == target).mean() < 0.1
    result = towards(model, images, target, threat, key=KEY, method=method, epochs=10)
    check_result(model, result, images, threat, jnp.full(100, target), targeted=True)
    held = (model(apply_universal(threat, held_out, result.delta[:1])).argmax(-1) == target).mean()
    assert result.success.mean() >= 0.5 and held >= 0.5, (result.success.mean(), held)


def test_deltas_of_single_images_are_no_universal_one():
    images = sample()
    delta = jnp.broadcast_to(jnp.linspace(0, 0.1, len(images))[:, None, None, None], images.shape)
    with pytest.raises(ValueError, match="delta has 10 entries that differ, and one δ is for all images"):
        apply_universal(THREATS[0], images, delta)
    np.testing.assert_array_equal(
        apply_universal(THREATS[0], images, delta[:1]), apply_universal(THREATS[0], images, delta[:1].repeat(10, 0))
    )
