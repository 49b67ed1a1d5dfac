from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from robust_jax import losses
from robust_jax.attacks import ATTACKS, apgd, apgd_dlr, apgd_targeted, pgd
from robust_jax.attacks.apgd_steps import _climbs, _sparse_start, checkpoints, gradients, project_l1
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, digits_network, initial, times
from test_pgd import BOX_RADII, THREATS, best_gain, check_result, margin_direction

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
STATIC = ("steps", "restarts", "rho")

# Small programs, run a few times: compile the cheapest way.
attack = jax.jit(apgd, static_argnames=(*STATIC, "loss", "targeted"))
towards_rivals = jax.jit(apgd_targeted, static_argnames=(*STATIC, "candidates"))
plain = jax.jit(pgd, static_argnames=("steps", "loss"))


def linear(classes=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(int(np.prod(SHAPE[1:])), classes))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(rng.normal(size=classes), jnp.float32))


def net(seed=0, factor=1.0):
    variables = initial(SHAPE, seed)
    variables["params"]["Dense_0"]["kernel"] *= factor
    return bind(Net(), variables)


def sample(count=6, seed=1):
    """A third of the values are exact 0s and 1s."""
    x = np.random.default_rng(seed).uniform(size=(count, *SHAPE[1:]))
    return jnp.asarray(np.clip(1.5 * x - 0.25, 0, 1), jnp.float32)


def test_checkpoints_are_the_papers():
    # Croce & Hein 2020, section 3: p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    found = checkpoints(100)
    np.testing.assert_array_equal(np.flatnonzero(found), [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(found[found > 0], [22, 19, 16, 13, 10, 7, 6, 6])
    np.testing.assert_array_equal(np.flatnonzero(checkpoints(5)), [2, 3, 4, 5])  # each once: ceil of 22, 41, ... of 5
    np.testing.assert_array_equal(checkpoints(1), [0, 1])


def test_climbs_in_l1_are_the_papers():
    # Croce & Hein 2021, section 4.3: 30%, 30% and 40% of the steps at 3, 2 and 1 radii.
    found = _climbs(100)
    np.testing.assert_array_equal(np.flatnonzero(found.begins), [0, 31, 62])
    np.testing.assert_array_equal(np.flatnonzero(found.ends), [30, 61])
    np.testing.assert_array_equal(np.bincount(found.factors), [0, 40, 31, 31])
    assert found.next[30] == 2 and found.next[61] == 1 and (np.diff(found.next) <= 0).all()
    np.testing.assert_array_equal(np.flatnonzero(_climbs(250).checks[:10]), [3, 6, 9])  # int(0.04 * 75)
    for steps in range(1, 12):  # a step at least is left for the ball itself
        found = _climbs(steps)
        assert (found.factors == 1).sum() >= 1 and len(found.ends) - found.ends.sum() == steps
        assert gradients(ThreatModel("flow", "l1", 1.0), steps) == len(found.begins)
        assert gradients(ThreatModel("flow", "l2", 1.0), steps) == steps


@pytest.mark.parametrize("space, radius", [("additive", 2.0), ("flow", 4.0), ("affine", (30, 3, 3)), ("additive", 0.0)])
def test_starts_in_l1_are_sparse_on_the_surface_and_differ(space, radius):
    images, threat = jnp.full((6, 8, 8, 1), 0.5), ThreatModel(space, "l1", radius)
    start = jax.jit(_sparse_start, static_argnums=1)
    one, other = (start(threat, 3, example_keys(jax.random.key(k), 6), images) for k in (0, 1))
    size = threat_models.size(threat, one)
    np.testing.assert_allclose(size, 3 * (size > 0), rtol=1e-5)
    assert size.all() == bool(np.any(radius))
    changed = np.stack([np.asarray(d != 0).reshape(6, -1) for d in (one, other)])
    if space != "affine":  # of 3 numbers
        assert (changed.mean(-1) < 0.5).all() and (changed[0] != changed[1]).any(-1).all() == size.all()


def test_the_projection_within_the_box_is_that_of_a_general_solver():
    rng = np.random.default_rng(0)
    for radius in (0.3, 1.0, np.array([2.0, 0.5])):
        images, delta = rng.uniform(size=(4, 1, 3, 2)).round(1), rng.normal(size=(4, 1, 3, 2))
        threat = ThreatModel("additive", "l1", jnp.float32(radius))
        found = jax.jit(project_l1)(threat, jnp.asarray(images, jnp.float32), jnp.asarray(delta, jnp.float32))
        unit = np.broadcast_to(radius, delta.shape)
        for x, d, r, p in zip(*(v.reshape(4, -1) for v in (images, delta, unit, np.asarray(found))), strict=True):
            best = nearest(x, d, r)
            # Nearest in units of the radius, in which the ball is one.
            np.testing.assert_allclose(np.sum(((p - d) / r) ** 2), np.sum(((best - d) / r) ** 2), rtol=1e-3, atol=1e-5)
            assert np.sum(abs(p) / r) <= 1 + 1e-5 and (x + p >= -1e-6).all() and (x + p <= 1 + 1e-6).all()


def nearest(x, delta, radius):
    """The nearest δ of the l1 ball in the box, as the difference of two positive parts, by SLSQP."""
    n, unit = len(x), delta / radius
    value = lambda v: np.sum((v[:n] - v[n:] - unit) ** 2)  # noqa: E731
    slope = lambda v: 2 * np.concatenate([v[:n] - v[n:] - unit, v[n:] - v[:n] + unit])  # noqa: E731
    limits = [(0, r) for r in np.concatenate([(1 - x) / radius, x / radius])]
    ball = dict(type="ineq", fun=lambda v: 1 - v.sum(), jac=lambda v: -np.ones(2 * n))
    found = optimize.minimize(value, np.zeros(2 * n), jac=slope, bounds=limits, constraints=[ball], method="SLSQP",
                              options=dict(maxiter=300, ftol=1e-12))  # fmt: skip
    return (found.x[:n] - found.x[n:]) * radius


def test_l1_leaves_no_more_than_the_authors_code():
    # At 40 steps x 5 restarts the authors' code leaves 61%, ours 58%; 64% if a step moves one coordinate more.
    model, images, labels = digits_network()
    result = attack(model, images, labels, ThreatModel("additive", "l1", 1.0), key=KEY, steps=40, restarts=5)
    assert 0.4 < 1 - result.success.mean() <= 0.605


def test_targeted_dlr_is_the_papers():
    logits, labels, targets = jnp.array([[4.0, 3.0, 1.0, -1.0, -9.0]] * 2), jnp.array([0, 1]), jnp.array([4, 0])
    np.testing.assert_allclose(losses.dlr_targeted(logits, labels, targets), [-13 / 4, 1 / 4])
    np.testing.assert_allclose(losses.dlr_targeted(logits[:, :3], labels, jnp.array([2, 0])), [-1, 1 / 3], rtol=1e-6)
    assert not losses.dlr_targeted(0 * logits, labels, targets).any()
    with pytest.raises(ValueError, match="3 classes.*2"):
        losses.dlr_targeted(logits[:, :2], labels, labels)


@pytest.mark.parametrize("norm", BOX_RADII)
def test_reaches_the_optimum_of_a_linear_model_in_the_box(norm):
    model, images, radius = linear(), sample(), BOX_RADII[norm]
    labels, threat = model(images).argmax(-1), ThreatModel("additive", norm, radius)
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    pairs = zip(margin_direction(model, labels), flat, strict=True)
    best = np.array([best_gain(g, x, norm, radius) for g, x in pairs])
    result = attack(model, images, labels, threat, key=KEY, loss=losses.margin)
    check_result(model, result, images, threat, labels)
    gain = losses.margin(model(result.images), labels) - losses.margin(model(images), labels)
    assert (gain >= 0.99 * best).all() and (gain <= 1.0001 * best).all(), gain / best


def test_starts_in_l1_are_directions_in_units_of_the_radius():
    keys, images = jax.random.split(KEY, 500), jnp.full((500, 4, 4, 1), 0.5)
    start = jax.jit(_sparse_start, static_argnums=1)
    shares = []
    for radius in ((30.0, 3.0, 3.0), (3.0, 3.0, 3.0)):
        found = np.abs(start(ThreatModel("affine", "l1", radius), 3, keys, images)) / np.asarray(radius)
        shares.append((found / found.sum(-1, keepdims=True)).mean(0))
    # 500 draws of a share with a standard deviation of a quarter: five of their standard errors.
    np.testing.assert_allclose(shares[0], shares[1], atol=5 * 0.25 / 500**0.5)


def test_starts_in_l1_do_not_depend_on_the_other_images():
    images, keys = jnp.full((2, 6, 6, 1), 0.5), jax.random.split(KEY, 2)
    together = ThreatModel("additive", "l1", jnp.array([1.0, 20.0])[:, None, None, None])
    alone = ThreatModel("additive", "l1", jnp.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(
        _sparse_start(together, 3, keys, images)[:1], _sparse_start(alone, 3, keys[:1], images[:1]), atol=1e-6
    )


def test_projects_on_the_l1_ball_within_the_box():
    images, threat = sample(), ThreatModel("additive", "l1", (3.0, 1.5))
    rng = np.random.default_rng(0)
    delta = rng.normal(size=SHAPE)
    found = np.asarray(project_l1(threat, images, jnp.asarray(delta, jnp.float32)), np.float64)
    unit = lambda d: (d / np.array([3.0, 1.5])).reshape(6, -1)  # noqa: E731
    assert (abs(unit(found)).sum(1) <= 1.0001).all() and (abs(unit(found)).sum(1) > 0.9999).all()
    # Nearest: no feasible point lies beyond the plane through it, on the side of δ.
    for _ in range(200):
        other = rng.laplace(size=SHAPE) ** 3
        other /= abs(unit(other)).sum(1).reshape(6, 1, 1, 1)
        other = np.clip(other, -np.asarray(images, np.float64), 1 - np.asarray(images, np.float64))
        assert (((unit(other) - unit(found)) * (unit(delta) - unit(found))).sum(1) <= 1e-4).all()
    inside = jnp.asarray(0.5 * found, jnp.float32)
    np.testing.assert_array_equal(project_l1(threat, images, inside), inside)


@pytest.mark.parametrize("norm, order", [("l2", 2), ("linf", 1)])
def test_targets_break_exactly_what_can_be_broken(norm, order):
    # Away from the box; a linear model's nearest boundary is often not that of the second logit.
    model, images = linear(5, seed=3), 0.45 + 0.1 * sample(40)
    labels = model(images).argmax(-1)
    w, z = np.asarray(model.weights, np.float64), np.asarray(model(images), np.float64)
    exact = np.array([
        min((z[i, y] - z[i, k]) / np.linalg.norm(w[:, k] - w[:, y], order) for k in range(5) if k != y)
        for i, y in enumerate(np.asarray(labels))
    ])  # fmt: skip
    radius = float(np.median(exact))
    result = towards_rivals(model, images, labels, ThreatModel("additive", norm, radius), key=KEY, steps=40)
    check_result(model, result, images, ThreatModel("additive", norm, radius), labels)
    clear = np.abs(exact / radius - 1) > 0.01
    assert clear.sum() > 30
    np.testing.assert_array_equal(np.asarray(result.success)[clear], (exact < radius)[clear])


@pytest.mark.parametrize("threat", THREATS[2:], ids=lambda t: t.perturbation.name)
def test_any_space_however_it_is_called(threat):
    model, images = net(), sample()
    result = attack(model, images, LABELS, threat, key=KEY, steps=12)
    check_result(model, result, images, threat, LABELS)
    right = model(images).argmax(-1) == LABELS
    loss = lambda x: losses.cross_entropy(model(x), LABELS)  # noqa: E731
    assert (loss(result.images) > loss(images))[right].all()
    np.testing.assert_array_equal(result.images[~right], images[~right])
    if threat.perturbation.name != "flow":
        return
    one = attack(model, images[5:], LABELS[5:], threat, key=example_keys(KEY, 6)[5:], steps=12)
    np.testing.assert_allclose(one.images[0], result.images[5], atol=1e-4)
    assert one.success[0] == result.success[5]


def test_jitted_or_not_is_the_same():
    model, images, threat = net(), sample(), ThreatModel("additive", "l2", 0.5)
    one, other = (f(model, images, LABELS, threat, key=KEY, steps=12) for f in (apgd, attack))
    np.testing.assert_allclose(one.images, other.images, atol=1e-5)
    np.testing.assert_array_equal(one.success, other.success)


@pytest.mark.parametrize("norm, radius", [("linf", 0.05), ("l1", 1.0)])
def test_is_not_weaker_than_pgd_and_more_effort_does_not_help_the_defender(norm, radius):
    model, images, threat = net(3), sample(64), ThreatModel("additive", norm, radius)
    labels = model(images).argmax(-1)
    margin = lambda r: np.asarray(losses.margin(model(r.images), labels))  # noqa: E731
    runs = {n: attack(model, images, labels, threat, key=KEY, steps=n, loss=losses.margin) for n in (5, 40)}
    base = plain(model, images, labels, threat, key=KEY, steps=40, loss=losses.margin)
    assert 0 < runs[40].success.sum() < 64
    assert runs[40].success.sum() >= base.success.sum() and margin(runs[40]).mean() >= margin(base).mean() - 1e-3
    assert runs[40].success.sum() >= runs[5].success.sum() and margin(runs[40]).mean() >= margin(runs[5]).mean()
    if norm == "linf":
        more = attack(model, images, labels, threat, key=KEY, steps=5, loss=losses.margin, restarts=3)
        assert (more.success | ~runs[5].success).all() and (margin(more) >= margin(runs[5]) - 1e-5).all()


def test_targeted():
    model, images, target = net(), sample(), jnp.array([2, 0, 1, 2, 1, 0])
    threat = ThreatModel("additive", "l2", 1.5)
    result = attack(model, images, target, threat, key=KEY, steps=12, targeted=True)
    check_result(model, result, images, threat, target, targeted=True)
    assert result.success.sum() > (model(images).argmax(-1) == target).sum()


def test_dlr_is_not_saturated():
    images, threat = sample(), ThreatModel("additive", "linf", 0.15)
    labels = net()(images).argmax(-1)
    run = jax.jit(apgd_dlr, static_argnames="steps")
    results = [run(net(factor=f), images, labels, threat, key=KEY, steps=12) for f in (1.0, 1e4)]
    check_result(net(factor=1e4), results[1], images, threat, labels)
    np.testing.assert_array_equal(results[0].success, results[1].success)
    plain_one = attack(net(factor=1e4), images, labels, threat, key=KEY, steps=12)
    assert plain_one.success.sum() < results[1].success.sum()  # the cross-entropy is


def test_zero_radius_and_constant_models_give_the_clean_image_back():
    images = sample()
    for model, radius in ((net(), 0.0), (net(factor=0.0), 3.0)):
        threat = ThreatModel("additive", "l1", radius)
        result = attack(model, images, LABELS, threat, key=KEY, steps=12)
        np.testing.assert_array_equal(result.images, images)
        check_result(model, result, images, threat, LABELS)


def test_a_model_that_gives_nan_never_gives_nan_images():
    base, images, threat = net(), sample(), ThreatModel("additive", "l2", 0.8)
    labels = base(images).argmax(-1)
    spoilt = times(base, jnp.array([1, 1, jnp.nan, jnp.inf, 1, 1])[:, None])
    result = attack(spoilt, images, labels, threat, key=KEY, steps=12)
    assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
    check_result(spoilt, result, images, threat, labels)
    rest, alone = np.array([0, 1, 4, 5]), attack(times(base, 1.0), images, labels, threat, key=KEY, steps=12)
    np.testing.assert_allclose(result.images[rest], alone.images[rest], atol=1e-5)


@pytest.mark.parametrize(
    "function, options, message",
    [
        (apgd, dict(steps=0), "steps=0"),
        (apgd, dict(rho=1.5), "rho=1.5"),
        (apgd, dict(restarts=0), "restarts=0"),
        (apgd_targeted, dict(candidates=0), "candidates=0"),
        (apgd_targeted, dict(restarts=0), "restarts=0"),
        (apgd, dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (apgd, dict(labels=jnp.full(6, 2)), "2 classes"),
    ],
)
def test_errors(function, options, message):
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=ThreatModel("additive", "linf", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        function(linear(), **(given | options))


def test_where_they_are_entered():
    assert [ATTACKS[n] for n in ("apgd", "apgd_dlr", "apgd_targeted")] == [apgd, apgd_dlr, apgd_targeted]
