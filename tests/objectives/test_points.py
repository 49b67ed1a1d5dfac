"""Points of training objectives; those that are attacks are tested with the attacks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.objectives import points
from robust_jax.objectives.inputs import Model
from robust_jax.objectives.objective import make_objective, scheduled
from robust_jax.options import GIVEN, arguments
from robust_jax.spaces import threat_models

pytestmark = pytest.mark.usefixtures("quick_compile")

B, H, W, K = 4, 3, 4, 3
LABELS = jnp.asarray([0, 2, 1, 1])


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    sizes = dict(w=(H * W, 6), b=(6,), v=(6, K), linear=(H * W, K))
    return {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in sizes.items()}


def smooth(images):
    theta = parameters()
    return jnp.tanh(images.reshape(len(images), -1) @ theta["w"] + theta["b"]) @ theta["v"]


def linear(images):
    return images.reshape(len(images), -1) @ parameters()["linear"]


def model_of(logits_fn):
    return Model(lambda x: (logits_fn(x), {}), logits_fn)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(0.3, 0.7, size=(B, H, W, 1)), jnp.float32)


KEYS = jax.random.split(jax.random.key(2), B)


def finder(kind, logits_fn=smooth, **options):
    function = points.POINTS[kind]
    given = arguments(function, options) | {name: options[name] for name in GIVEN if name in options}
    return jax.jit(lambda x, keys: function(model_of(logits_fn), x, LABELS, keys, **given))


def find(kind, images, logits_fn=smooth, **options):
    return finder(kind, logits_fn, **options)(images, KEYS)


def random_ones(images, **options):
    anywhere = finder("uniform", **options)
    return [anywhere(images, jax.random.split(jax.random.key(seed), B)) for seed in range(20)]


KINDS = ["uniform", "attack", "divergent", "steepest", "roughest", "nonlinear", "universal"]
SPACES = {"affine": (10.0, 0.5, 0.5), ("flow", "additive"): (0.3, 0.05)}


@pytest.mark.parametrize(
    "kind, space",
    [(kind, ("flow", "additive")) for kind in KINDS] + [("steepest", "affine"), ("universal", "affine")],
    ids=str,
)
def test_a_point_is_in_the_ball_of_any_space_and_its_delta_made_it(kind, space, images):
    images = (images - 0.3) / 0.4  # up to the ends of the box
    radius = SPACES[space]
    threat = rj.ThreatModel(space, "linf", radius)
    own = dict(steps=2) if kind in ("attack", "divergent", "roughest", "nonlinear") else {}
    if kind == "universal":
        own = dict(memory=threat.perturbation.zeros(images[:1]), steps_done=0, step_size=radius)
    found = find(kind, images, perturbation=space, radius=radius, **own)
    assert float(threat_models.size(threat, found.delta).min()) > 0
    assert float(threat_models.size(threat, found.delta).max()) <= 1.0001
    np.testing.assert_allclose(found.images, threat.perturbation.apply(images, found.delta), atol=1e-6)
    if kind not in ("uniform", "steepest"):
        assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


def test_the_steepest_point_is_lyus(images):
    """R = σ sign(g) (|g| / ‖g‖_{p*})^{1 / (p - 1)}, for p = 1 the one largest coordinate."""
    gradient = jax.grad(lambda x: rj.losses.cross_entropy(linear(x), LABELS).sum())(images)
    g = np.asarray(gradient).reshape(B, -1)
    for p in (1.5, 2.0, 3.0):
        q = p / (p - 1)
        expected = 0.2 * np.sign(g) * (np.abs(g) / np.linalg.norm(g, q, axis=1, keepdims=True)) ** (1 / (p - 1))
        delta = find("steepest", images, linear, perturbation="additive", norm=p, radius=0.2).delta
        np.testing.assert_allclose(np.asarray(delta).reshape(B, -1), expected, atol=1e-6)
    one = np.asarray(find("steepest", images, linear, perturbation="additive", norm="l1", radius=0.2).delta)
    assert ((one != 0).sum((1, 2, 3)) == 1).all()
    np.testing.assert_array_equal(np.abs(one).reshape(B, -1).argmax(1), np.abs(g).argmax(1))
    sign = find("steepest", images, linear, perturbation="additive", norm="linf", radius=0.2).delta
    np.testing.assert_allclose(np.asarray(sign).reshape(B, -1), 0.2 * np.sign(g), rtol=1e-6)


def test_steepest_from_noise_in_the_box_is_n_fgsm(images):
    images = (images - 0.3) / 0.4  # up to the ends of the box
    options = dict(perturbation="additive", norm="linf", radius=0.1)
    noise = 2 * find("uniform", images, **options).delta  # the same draw
    noise = jnp.clip(noise, -images, 1 - images)
    sign = jnp.sign(jax.grad(lambda x: rj.losses.cross_entropy(smooth(x), LABELS).sum())(images + noise))
    found = find("steepest", images, noise=2.0, box=True, **options)
    np.testing.assert_allclose(found.images, jnp.clip(images + noise + 0.1 * sign, 0, 1), atol=1e-6)
    np.testing.assert_allclose(found.images, images + found.delta, atol=1e-6)
    assert 0.2 < jnp.abs(found.delta).max() <= 0.3
    # Over flows the images are mixed, and stay in the box whatever δ is.
    flow = find("steepest", images, noise=2.0, box=True, perturbation="flow", norm="linf", radius=0.2)
    assert flow.images.min() >= 0 and flow.images.max() <= 1 and 0.4 < jnp.abs(flow.delta).max() <= 0.6


def test_the_divergent_point_moves_the_prediction_further_than_random_ones(images):
    options = dict(perturbation="additive", radius=0.1)

    def divergence(found):
        return rj.losses.kl_divergence(smooth(found.images), smooth(images))

    attacked = divergence(find("divergent", images, steps=10, **options)).sum()
    assert all(divergence(found).sum() < 0.7 * attacked for found in random_ones(images, **options))


def test_the_nonlinear_point_is_where_linearisation_fails_most(images):
    options = dict(perturbation="additive", radius=0.1)
    loss = lambda x: rj.losses.cross_entropy(smooth(x), LABELS)  # noqa: E731
    gradient = jax.grad(lambda x: loss(x).sum())(images)

    def gap(found):
        return jnp.abs(loss(found.images) - loss(images) - (gradient * found.delta).sum((1, 2, 3)))

    largest = gap(find("nonlinear", images, steps=20, **options))
    assert all((gap(found) < largest).all() for found in random_ones(images, **options))


def test_one_universal_delta_climbs_the_mean_loss_and_is_remembered(images):
    terms = {"ce": dict(kind="cross_entropy", at="all")}
    spec = dict(kind="universal", perturbation="additive", radius=0.1, step_size=0.02)
    objective = make_objective({"all": spec}, terms)
    memory = objective.remember(lambda n: (images[:n], LABELS[:n]), K)
    assert memory["all"].shape == (1, H, W, 1) and not memory["all"].any()
    seen = []

    def mean(gradient):  # over devices
        seen.append(gradient)
        return gradient

    model = model_of(linear)._replace(mean=mean)

    @jax.jit
    def look(memory, step):
        found = objective.find(model, images, LABELS, KEYS, memory, step)
        return found, objective.loss(model, found, LABELS)[0]

    losses = []
    for step in range(8):
        found, loss = look(memory, step)
        memory = {"all": found["all"].memory}
        losses.append(float(loss))
        np.testing.assert_allclose(found["all"].images, images + memory["all"], atol=1e-7)
    assert len(seen) == 1 and (np.diff(losses[:5]) > 0).all()
    # After 5 steps of a fifth of the radius every coordinate whose sign stayed is at the bound.
    gradient = jax.grad(lambda v: rj.losses.cross_entropy(linear(images + v), LABELS).mean())(memory["all"])
    clear = np.abs(gradient) > 0.05
    assert clear.sum() > H * W / 2
    np.testing.assert_allclose(np.asarray(memory["all"])[clear], 0.1 * np.sign(gradient)[clear], rtol=1e-5)


@pytest.mark.parametrize("target, search, space", [(-1, "sign_gradient", "flow"), (2, "deepfool", "additive")])
def test_rat_warps_towards_other_classes_and_refreshes_its_deltas(target, search, space, images):
    spec = dict(kind="targeted_universal", perturbation=space, radius=0.5, examples=3, refresh=2, epochs=5)
    spec |= dict(target=target, search=search)
    options = {"keep": "highest_loss"} if search == "sign_gradient" else {}
    objective = make_objective({"region": spec}, {"ce": dict(kind="cross_entropy", at="region")})
    memory = objective.remember(lambda n: (images[:n], LABELS[:n]), K)
    assert len(memory["region"]["deltas"]) == (K if target < 0 else 1)
    at = jax.jit(lambda scale, m, s: objective.find(model_of(lambda x: scale * smooth(x)), images, LABELS, KEYS, m, s))
    first = at(1.0, memory, 0)["region"]
    deltas = first.memory["deltas"]
    key = jax.random.fold_in(jax.random.key(0), 0)
    threat = rj.ThreatModel(space, "linf", 0.5)
    options |= dict(key=key, epochs=5, method=search)
    towards = jax.jit(lambda t: rj.attacks.universal_targeted(smooth, images[:3], t, threat, **options))
    for i, t in enumerate(range(K) if target < 0 else [target]):
        made = towards(t)
        np.testing.assert_allclose(deltas[i], made.delta[0], atol=1e-5)
    for i, label in enumerate(LABELS):
        allowed = [deltas[k] for k in range(K) if k != label] if target < 0 else [deltas[0] * (label != target)]
        within = [rj.perturbations.confined(threat.perturbation, images[i : i + 1], delta[None]) for delta in allowed]
        assert any(np.array_equal(first.delta[i], delta[0]) for delta in within)
    np.testing.assert_allclose(first.images, threat.perturbation.apply(images, first.delta), atol=1e-6)
    assert 0 <= float(first.images.min()) <= float(first.images.max()) <= 1
    # Between refreshes the deltas stay, whatever became of the model.
    second = at(-1.0, {"region": first.memory}, 1)["region"]
    np.testing.assert_array_equal(second.memory["deltas"], deltas)
    third = at(-1.0, {"region": second.memory}, 2)["region"]
    assert not np.allclose(third.memory["deltas"], deltas)


def test_schedules(images):
    rise = dict(start=0.0, end=3.0, epochs=2.0)
    assert [float(scheduled(rise, epoch)) for epoch in (0.0, 1.0, 2.0, 9.0)] == [0.0, 1.5, 3.0, 3.0]
    points_ = {"noisy": dict(kind="random", perturbation="additive", sigma=dict(start=0.0, end=0.1, epochs=1.0))}
    terms = {
        "ce": dict(kind="cross_entropy", at="noisy"),
        "igr": dict(kind="gradient_norm", perturbation="additive", weight=rise),
    }
    objective, model = make_objective(points_, terms), model_of(smooth)

    @jax.jit
    def look(epoch):
        found = objective.find(model, images, LABELS, KEYS, epoch=epoch)
        return found, objective.loss(model, found, LABELS, epoch)

    for epoch, weight, sigma in ((0.0, 0.0, 0.0), (1.0, 1.5, 0.1)):
        found, (total, outcome) = look(epoch)
        # The deviation of 48 draws is off by 10%, three times as much at most.
        assert float(found["noisy"].delta.std()) == pytest.approx(sigma, rel=0.3)
        assert float(total) == pytest.approx(float(outcome.terms["ce"] + weight * outcome.terms["igr"]), rel=1e-6)
    for wrong in (rise | {"epochs": 0}, {"start": 0.0}, rise | {"end": "3"}):
        with pytest.raises(ValueError, match="terms.igr.weight.*'start', 'end', 'epochs'"):
            make_objective(points_, {"igr": terms["igr"] | {"weight": wrong}})
    with pytest.raises(ValueError, match="terms.igr.power"):
        make_objective(points_, {"igr": terms["igr"] | {"power": rise}})


def test_the_roughest_point_is_that_of_the_scaled_gradient(images):
    ball = dict(perturbation="affine", norm="linf", radius=(10.0, 0.5, 0.5), gradient="l2", steps=3)
    scale = (1.0, 0.0, 0.0)
    found = find("roughest", images, scale=scale, **ball)

    def length(at):
        def loss(x):
            return rj.losses.cross_entropy(smooth(x), LABELS)

        return rj.gradient_norm(loss, at, "affine", norm="l2", scale=scale)

    assert (length(found.images) >= length(find("roughest", images, **ball).images) - 1e-6).all()
    assert not np.array_equal(found.delta, find("roughest", images, **ball).delta)
