from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from robust_jax.attacks import ATTACKS, fab, fab_targeted
from robust_jax.attacks.fab import _to_plane
from robust_jax.models import bind
from robust_jax.spaces import threat_models
from robust_jax.spaces.per_example import example_keys, inner
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Linear, Net, initial, times
from test_deepfool import THREATS, check_result, exact_distances

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
SHAPE = (6, 4, 4, 2)
STATIC = ("steps", "restarts", "candidates")
# Small programs, run a few times: compile the cheapest way.
attack = jax.jit(fab, static_argnames=(*STATIC, "targeted"))
towards_rivals = jax.jit(fab_targeted, static_argnames=STATIC)


def linear(classes, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(int(np.prod(SHAPE[1:])), classes))
    return Linear(jnp.asarray(weights, jnp.float32), jnp.asarray(rng.normal(size=classes), jnp.float32))


def net(factor=1.0):
    variables = initial(SHAPE)
    variables["params"]["Dense_0"]["kernel"] *= factor
    return bind(Net(), variables)


def sample(low=-0.3, high=1.3, seed=1):
    x = np.random.default_rng(seed).uniform(low, high, size=SHAPE)
    return jnp.asarray(np.clip(x, 0, 1), jnp.float32)


def shortest(g, low, high, wanted, norm):
    """The least norm of δ in the box with ``<g, δ> = wanted``, in float64, by linear programs and bisection."""
    if norm == "l2":  # δ = clip(t g)
        a, b = 0.0, 1e6
        for _ in range(200):
            t = (a + b) / 2
            a, b = (a, t) if g @ np.clip(t * g, low, high) > wanted else (t, b)
        return np.linalg.norm(np.clip(b * g, low, high))
    n = len(g)
    if norm == "l1":  # δ = u - v
        bounds = [(0, h) for h in high] + [(0, -v) for v in low]
        return linprog(np.ones(2 * n), A_eq=np.concatenate([g, -g])[None], b_eq=[wanted], bounds=bounds).fun
    eye, one = np.eye(n), -np.ones((n, 1))
    over = np.block([[eye, one], [-eye, one]])
    bounds = [*zip(low, high, strict=True), (0, None)]
    cost, plane = np.append(np.zeros(n), 1), np.append(g, 0)[None]
    return linprog(cost, A_ub=over, b_ub=np.zeros(2 * n), A_eq=plane, b_eq=[wanted], bounds=bounds).fun


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_projects_exactly_on_the_plane_within_the_box(norm):
    images, rng = sample(), np.random.default_rng(0)
    delta = jnp.asarray(rng.uniform(-1, 1, SHAPE) * 0.3, jnp.float32)
    delta = jnp.clip(images + delta, 0, 1) - images
    g = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    for part in (0.3, 0.8):
        low, high = (np.asarray(bound, np.float64).reshape(6, -1) for bound in (-images - delta, 1 - images - delta))
        flat = np.asarray(g, np.float64).reshape(6, -1)
        most = np.where(flat > 0, flat * high, flat * low).sum(1)
        for radius in (1.0, 0.01):
            threat = ThreatModel("additive", norm, radius)
            found = _to_plane(threat, images, delta, g, jnp.asarray(part * most, jnp.float32)) - delta
            np.testing.assert_allclose(inner(found, g), part * most, rtol=1e-4)
            np.testing.assert_allclose(jnp.clip(images + delta + found, 0, 1), images + delta + found, atol=1e-6)
            exact = [shortest(*row, part * m, norm) for *row, m in zip(flat, low, high, most, strict=True)]
            np.testing.assert_allclose(radius * threat_models.size(threat, found), exact, rtol=1e-4)
    # Out of reach: as far as the box goes.
    found = _to_plane(threat, images, delta, g, jnp.asarray(2 * most, jnp.float32)) - delta
    np.testing.assert_allclose(inner(found, g), most, rtol=1e-4)


@pytest.mark.parametrize("norm, part", [("l2", 1.02), ("linf", 1.02), ("l1", 1.05)])
def test_finds_the_exact_distance_of_a_linear_model_in_the_box(norm, part):
    model, images = linear(5), sample()
    labels = model(images).argmax(-1)
    w, z = np.asarray(model.weights, np.float64), np.asarray(model(images), np.float64)
    x = np.asarray(images, np.float64).reshape(6, -1)

    def distance(i, y, k):
        g, low, high, wanted = w[:, k] - w[:, y], -x[i], 1 - x[i], z[i, y] - z[i, k]
        reachable = np.where(g > 0, g * high, g * low).sum() > wanted
        return shortest(g, low, high, wanted, norm) if reachable else np.inf

    exact = np.array([min(distance(i, y, k) for k in range(5) if k != y) for i, y in enumerate(np.asarray(labels))])
    for radius in (6.0, 100.0) if norm == "l2" else (40.0,):
        threat = ThreatModel("additive", norm, radius)
        for run, options in ((attack, {}), (towards_rivals, {"candidates": 4}))[: 1 + (norm == "l2")]:
            result = run(model, images, labels, threat, key=KEY, steps=30, **options)
            check_result(model, result, images, threat, labels)
            assert result.success.all()
            found = radius * np.asarray(threat_models.size(threat, result.delta))
            assert (found >= exact * 0.9999).all() and (found <= exact * part).all(), found / exact


@pytest.mark.parametrize("threat", THREATS[2:], ids=lambda t: t.perturbation.name)
def test_any_space_however_it_is_called(threat):
    model, images = net(), sample(-0.2, 1.2)
    labels = model(images).argmax(-1)
    result = attack(model, images, labels, threat, key=KEY, steps=20, restarts=2)
    check_result(model, result, images, threat, labels)
    assert result.success.any()
    if threat.perturbation.name != "flow":
        return
    i = int(np.flatnonzero(result.success)[-1])
    part = slice(i, i + 1)
    one = attack(model, images[part], labels[part], threat, key=example_keys(KEY, 6)[part], steps=20, restarts=2)
    assert one.success[0]
    alone, among = (threat_models.size(threat, d)[0] for d in (one.delta, result.delta[part]))
    np.testing.assert_allclose(alone, among, rtol=0.02)


def test_jitted_or_not_more_restarts_zero_radius_and_constant_or_saturated_models():
    model, images, threat = net(), sample(-0.2, 1.2), ThreatModel("additive", "l2", 2.0)
    labels = model(images).argmax(-1)
    run = lambda m, y, t: attack(m, images, y, t, key=KEY, steps=20, restarts=2)  # noqa: E731
    one = run(model, labels, threat)
    check_result(model, one, images, threat, labels)
    eager = fab(model, images, labels, threat, key=KEY, steps=20, restarts=2)
    np.testing.assert_allclose(eager.images, one.images, atol=1e-4)
    size = lambda r: np.where(r.success, threat_models.size(threat, r.delta), np.inf)  # noqa: E731
    less = attack(model, images, labels, threat, key=KEY, steps=20)
    assert (size(one) <= size(less) * 1.0001).all()
    saturated = run(net(1e4), labels, threat)
    check_result(net(1e4), saturated, images, threat, labels)
    np.testing.assert_allclose(size(saturated), size(one), rtol=1e-2)
    wrong = (labels + 1) % 3
    for m, y, radius in ((model, labels, 0.0), (net(0.0), labels, 2.0), (model, wrong, 2.0)):
        same = run(m, y, ThreatModel("additive", "l2", radius))
        np.testing.assert_array_equal(same.images, images)
        np.testing.assert_array_equal(same.success, m(images).argmax(-1) != y)


def test_early_stop_ends_the_search_of_an_image_with_the_run_that_breaks_it():
    model, images, threat = net(), sample(-0.2, 1.2), ThreatModel("additive", "l2", 1.0)
    labels = model(images).argmax(-1)
    run = lambda **options: towards_rivals(model, images, labels, threat, key=KEY, steps=10, **options)  # noqa: E731
    first, both, stopped = run(candidates=1), run(candidates=2), run(candidates=2, early_stop=True)
    np.testing.assert_array_equal(stopped.success, both.success)
    broken = np.asarray(first.success)
    np.testing.assert_array_equal(stopped.delta[broken], first.delta[broken])
    nearer = threat_models.size(threat, both.delta) < threat_models.size(threat, first.delta)
    assert (nearer & broken).any()  # the other class is nearer, and without early_stop it is looked at too


def test_targeted():
    model, images, threat = linear(2), sample(0.45, 0.55), ThreatModel("additive", "l2", 4.0)
    labels = model(images).argmax(-1)
    result = attack(model, images, 1 - labels, threat, key=KEY, steps=30, targeted=True)
    check_result(model, result, images, threat, 1 - labels, targeted=True)
    # Two classes: towards the other one is away from this one.
    exact = exact_distances(model, images, labels, 2)
    np.testing.assert_allclose(4 * threat_models.size(threat, result.delta), exact, rtol=0.02)


def test_a_model_that_gives_nan_never_gives_nan_images():
    base, images, threat = net(), sample(-0.2, 1.2), ThreatModel("additive", "l2", 2.0)
    labels = base(images).argmax(-1)
    spoilt = times(base, jnp.array([1, 1, jnp.nan, jnp.inf, 1, 1])[:, None])
    result = attack(spoilt, images, labels, threat, key=KEY, steps=20)
    assert np.isfinite(result.images).all() and np.isfinite(result.delta).all()
    check_result(spoilt, result, images, threat, labels)
    rest, alone = np.array([0, 1, 4, 5]), attack(times(base, 1.0), images, labels, threat, key=KEY, steps=20)
    np.testing.assert_allclose(result.images[rest], alone.images[rest], atol=1e-4)


@pytest.mark.parametrize(
    "function, options, message",
    [
        (fab, dict(steps=0), "steps=0"),
        (fab, dict(restarts=0), "restarts=0"),
        (fab_targeted, dict(candidates=0), "candidates=0"),
        (fab, dict(alpha_max=2.0), "alpha_max=2.0"),
        (fab, dict(eta=0.5), "eta=0.5"),
        (fab_targeted, dict(beta=1.0), "beta=1.0"),
        (fab, dict(images=jnp.full(SHAPE, 1.5)), r"\[0, 1\].*1.5"),
        (fab, dict(labels=jnp.full(6, 2)), "2 classes"),
    ],
)
def test_errors(function, options, message):
    given = dict(images=sample(), labels=jnp.zeros(6, int), threat=ThreatModel("additive", "linf", 0.1), key=KEY)
    with pytest.raises(ValueError, match=message):
        function(linear(2), **(given | options))


def test_where_they_are_entered():
    assert ATTACKS["fab"] is fab and ATTACKS["fab_targeted"] is fab_targeted
