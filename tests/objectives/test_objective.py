"""Points and weighted terms: each against the public function it stands for, on a smooth two-layer model."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_jax as rj
from robust_jax.objectives import points as at_points
from robust_jax.objectives.inputs import Model, as_model
from robust_jax.objectives.objective import make_objective

pytestmark = pytest.mark.usefixtures("quick_compile")

B, H, W = 5, 4, 5
CE = dict(kind="cross_entropy")


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    sizes = dict(w=(H * W, 8), b=(8,), v=(8, 3))
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in sizes.items()}


def logits_of(theta, images):
    return jnp.tanh(images.reshape(len(images), -1) @ theta["w"] + theta["b"]) @ theta["v"]


def model_of(theta):
    return Model(train=lambda x: (logits_of(theta, x), {"seen": x.mean()}), eval=lambda x: logits_of(theta, x))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.uniform(size=(B, H, W, 1)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 3, B), jnp.int32), jax.random.split(jax.random.key(2), B)


def loss_of(theta, labels):
    return lambda images: rj.losses.cross_entropy(logits_of(theta, images), labels)


@cache
def compiled(objective):
    return jax.jit(jax.value_and_grad(lambda t, *batch: objective(model_of(t), *batch), has_aux=True))


def run(objective, batch, theta=None):
    """Total, outcome, and the gradient of the total in the parameters."""
    (total, outcome), gradient = compiled(objective)(parameters() if theta is None else theta, *batch)
    return total, outcome, gradient


def agree(one, other, rtol=2e-4):
    """Equal gradients, relative to the largest entry: they are sums of terms of both signs, in float32."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(jnp.abs(b).max()))
        assert float(jnp.abs(b).max()) > 0


# (term's options, the public function of loss_fn and images that it must equal)
TERMS = {
    "flow": (
        dict(kind="gradient_norm", perturbation="flow", norm="l2", power=2),
        lambda f, x: rj.gradient_norm(f, x, "flow", norm="l2", power=2),
    ),
    "additive_l1": (
        dict(kind="gradient_norm", perturbation="additive", norm="l1", power=1, method="directional"),
        lambda f, x: rj.gradient_norm(f, x, "additive", norm="l1", power=1),
    ),
    "affine_scaled": (
        dict(kind="gradient_norm", perturbation="affine", norm="linf", power=1, scale=(30, 3, 3)),
        lambda f, x: rj.gradient_norm(f, x, "affine", norm="linf", power=1, scale=(30, 3, 3)),
    ),
    "finite_difference": (
        dict(kind="gradient_norm", perturbation="flow", method="finite_difference", step=0.03),
        lambda f, x: rj.gradient_norm(f, x, "flow", method="finite_difference", step=0.03),
    ),
    "composed": (
        dict(kind="gradient_norm", perturbation=("flow", "additive"), norm="l2", power=2),
        lambda f, x: rj.gradient_norm(f, x, ("flow", "additive"), norm="l2", power=2),
    ),
    "gain": (
        dict(kind="first_order_gain", perturbation="flow", norm="linf", radius=0.155),
        lambda f, x: rj.first_order_gain(f, x, rj.ThreatModel("flow", "linf", 0.155)),
    ),
    "gain_directional": (
        dict(kind="first_order_gain", perturbation="additive", norm=3, radius=0.1, method="directional"),
        lambda f, x: rj.first_order_gain(f, x, rj.ThreatModel("additive", 3, 0.1)),
    ),
    "gain_composed": (
        dict(kind="first_order_gain", perturbation=("flow", "additive"), norm=("l2inf", "linf"), radius=(0.2, 0.1)),
        lambda f, x: rj.first_order_gain(f, x, rj.ThreatModel(("flow", "additive"), ("l2inf", "linf"), (0.2, 0.1))),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_and_its_parameter_gradient_equal_the_public_function(name, batch):
    options, public = TERMS[name]
    images, labels, _ = batch
    total, outcome, gradient = run(make_objective({}, {"only": options | {"weight": 2.5}}), batch)
    mean = lambda t: public(loss_of(t, labels), images).mean()  # noqa: E731
    value, expected = jax.jit(jax.value_and_grad(mean))(parameters())
    assert float(value) > 1e-3
    np.testing.assert_allclose(outcome.terms["only"], value, rtol=1e-5)
    np.testing.assert_allclose(total, 2.5 * value, rtol=1e-5)
    agree(gradient, jax.tree.map(lambda g: 2.5 * g, expected), 5e-3 if name == "finite_difference" else 2e-4)


def test_cross_entropy_and_its_smoothing(batch):
    images, labels, _ = batch
    logits = logits_of(parameters(), images)
    terms = {"ce": CE, "smooth": CE | {"label_smoothing": 0.3, "weight": 0.5}}
    total, outcome, _ = run(make_objective({}, terms), batch)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    plain = -log_p[np.arange(B), labels]
    np.testing.assert_allclose(outcome.terms["ce"], plain.mean(), rtol=1e-5)
    smooth = 0.7 * plain - 0.3 * log_p.mean(1)
    np.testing.assert_allclose(outcome.terms["smooth"], smooth.mean(), rtol=1e-5)
    np.testing.assert_allclose(total, plain.mean() + 0.5 * smooth.mean(), rtol=1e-5)
    np.testing.assert_allclose(outcome.accuracy, (np.argmax(logits, 1) == labels).mean())


ADT_FGR = (
    {
        "bent": dict(kind="attack", perturbation="flow", radius=0.3, steps=3),
        "unused": dict(kind="attack", perturbation="additive", radius=0.1),
    },
    {
        "ce": CE | {"at": "bent", "weight": 0.7},
        "fgr": dict(kind="gradient_norm", at="bent", perturbation="flow", weight=0.2),
        "clean": CE | {"weight": 1.5},
    },
)  # fmt: skip


def test_the_gradient_of_an_objective_is_the_weighted_sum_of_its_terms(batch):
    points, terms = {"bent": dict(kind="random", perturbation="additive", sigma=0.1)}, ADT_FGR[1]
    total, outcome, gradient = run(make_objective(points, terms), batch)
    np.testing.assert_allclose(total, sum(terms[n]["weight"] * v for n, v in outcome.terms.items()), rtol=1e-6)
    alone = {n: run(make_objective(points, {n: t | {"weight": 1.0}}), batch) for n, t in terms.items()}
    for name, (value, *_) in alone.items():
        np.testing.assert_allclose(outcome.terms[name], value, rtol=1e-5)
    parts = [jax.tree.map(lambda g, w=terms[n]["weight"]: w * g, a[2]) for n, a in alone.items()]
    agree(gradient, jax.tree.map(lambda *g: sum(g), *parts), 1e-4)


def test_terms_share_one_attack_and_one_pass_and_unused_points_cost_nothing(batch, monkeypatch):
    calls = {"pgd": 0, "train": 0}
    monkeypatch.setattr(
        at_points, "pgd", lambda *a, f=rj.attacks.pgd, **k: (calls.update(pgd=calls["pgd"] + 1), f(*a, **k))[1]
    )
    images, labels, keys = batch
    theta = parameters()

    def train(x):
        calls["train"] += 1
        return logits_of(theta, x), {}

    objective = make_objective(*ADT_FGR)
    model = model_of(theta)._replace(train=train)
    jax.eval_shape(lambda x: objective(model, x, labels, keys)[0], images)
    assert calls == {"pgd": 1, "train": 2}  # at the attacked point and at the clean one


def test_a_penalty_shares_the_pass_of_the_loss_and_computes_nothing_twice(batch):
    def products(terms):
        lowered = compiled(make_objective({}, terms)).lower(parameters(), *batch)
        return lowered.as_text().count("stablehlo.dot_general")

    # Three a layer: forward, and backward for its weights and for what enters it, but not for images. A penalty
    # doubles them and needs those for images.
    penalty = dict(kind="gradient_norm", perturbation="flow", norm="l2", power=2.0)
    assert products({"ce": CE}) == 2 * 3 - 1
    assert products({"ce": CE, "fgr": penalty}) == 2 * 6 - 1


def test_an_attack_point_is_pgds_and_is_a_constant_of_the_step(batch):
    images, labels, keys = batch
    points, terms = ADT_FGR
    threat = rj.ThreatModel("flow", "linf", 0.3)
    own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)  # the place after "clean"
    logits_fn = lambda x: logits_of(parameters(), x)  # noqa: E731
    found = jax.jit(lambda k: rj.attacks.pgd(logits_fn, images, labels, threat, key=k, steps=3, keep="highest_loss"))(
        own_keys
    )
    assert float(jnp.abs(found.delta).max()) <= 0.3 * 1.0001
    terms = {n: t for n, t in terms.items() if n != "clean"}
    total, outcome, gradient = run(make_objective(points, terms), batch)
    there = make_objective({}, {n: {k: v for k, v in t.items() if k != "at"} for n, t in terms.items()})
    expected = run(there, (found.images, labels, keys))
    np.testing.assert_allclose(total, expected[0], rtol=1e-5)
    agree(gradient, expected[2])
    assert float(outcome.terms["ce"]) > float(run(make_objective({}, {"ce": CE}), batch)[0])
    np.testing.assert_allclose(outcome.state["seen"], found.images.mean(), rtol=1e-6)


def test_a_random_point_is_a_constant_too(batch):
    # The point is made of images: were it not detached, the penalty would be differentiated in them as well.
    images, labels, keys = batch
    points = {"warped": dict(kind="random", perturbation="flow", sigma=0.2)}
    objective = make_objective(points, {"ce": CE | {"at": "warped"}})
    slope = jax.jit(jax.grad(lambda x: objective(model_of(parameters()), x, labels, keys)[0]))(images)
    assert float(jnp.abs(slope).max()) == 0


def test_a_composed_threat_model_as_attack_point(batch):
    images, labels, keys = batch
    model = model_of(parameters())

    @jax.jit
    def attacked(*radii):
        threat = rj.ThreatModel(("flow", "additive"), "linf", radii)
        return at_points.attack(model, images, labels, keys, threat=threat, steps=3).images

    loss = loss_of(parameters(), labels)
    at, flow_alone = attacked(0.3, 0.05), attacked(0.3, 0.0)
    assert float(loss(at).mean()) > float(loss(flow_alone).mean()) > float(loss(images).mean())
    assert 0 <= float(at.min()) <= float(at.max()) <= 1


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_batch_norm_mode_of_the_inner_maximisation(mode, batch):
    images, labels, keys = batch
    theta, used = parameters(), []
    model = Model(
        train=lambda x: (used.append("train"), (logits_of(theta, x), {}))[1],
        eval=lambda x: (used.append("eval"), logits_of(theta, x))[1],
    )
    at = dict(threat=rj.ThreatModel("additive", radius=0.1), steps=1, batch_norm=mode)
    jax.eval_shape(lambda x: at_points.attack(model, x, labels, keys, **at), images)
    assert set(used) == {mode}


def test_a_term_in_eval_mode_sees_the_model_in_eval_mode_and_no_other_term_does(batch):
    images, labels, _ = batch
    penalty = dict(kind="gradient_norm", perturbation="additive", batch_norm="eval")

    def model(theta):  # in train mode the logits are twice as large
        return Model(train=lambda x: (2 * logits_of(theta, x), {"seen": x.mean()}), eval=lambda x: logits_of(theta, x))

    objective, theta = make_objective({}, {"ce": CE, "penalty": penalty}), parameters()
    _, outcome = objective(model(theta), *batch)
    expected = rj.gradient_norm(loss_of(theta, labels), images, "additive")
    np.testing.assert_allclose(outcome.terms["penalty"], expected.mean(), rtol=1e-5)
    trained = rj.losses.cross_entropy(2 * logits_of(theta, images), labels)
    np.testing.assert_allclose(outcome.terms["ce"], trained.mean(), rtol=1e-5)
    np.testing.assert_allclose(outcome.state["seen"], images.mean(), rtol=1e-6)

    _, alone = make_objective({}, {"penalty": penalty})(model(theta), *batch)
    np.testing.assert_allclose(alone.terms["penalty"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(alone.state["seen"], images.mean(), rtol=1e-6)


def test_random_points_have_the_stated_distribution_and_depend_on_nothing_but_the_key():
    count, sigma = 200, 0.155
    ramp = jnp.tile(jnp.arange(9.0)[None, None, :, None] / 100, (count, 9, 1, 1))  # 0.01 a pixel along x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))
    model, labels, flow = model_of(parameters()), jnp.zeros(count, int), rj.perturbations.flow
    make = jax.jit(lambda x, k: at_points.random(model, x, labels[: len(x)], k, perturbation=flow, sigma=sigma).images)
    moved = np.asarray(make(ramp, keys) - ramp)[:, :, 2:-2, 0] * 100  # dx in pixels, away from the border
    n = moved.size
    assert abs(moved.mean()) < 5 * sigma / n**0.5
    assert abs(moved.std() / sigma - 1) < 5 / (2 * n) ** 0.5
    assert abs((moved**4).mean() / sigma**4 - 3) < 5 * (96 / n) ** 0.5  # normal, not uniform
    some = np.asarray(make(ramp[7:11], keys[7:11]) - ramp[7:11])[:, :, 2:-2, 0] * 100
    np.testing.assert_allclose(some, moved[7:11], atol=1e-5)
    assert len({m.tobytes() for m in moved}) == count

    options = dict(perturbation=rj.perturbations.compose(rj.perturbations.additive, flow), sigma=(0.01, 0))
    parts = jax.jit(lambda x, k: at_points.random(model, x, labels[:9], k, **options).images)(ramp[:9], keys[:9])
    noise = np.asarray(parts - ramp[:9])
    assert abs(noise.std() / 0.01 - 1) < 0.15


def test_two_points_of_one_kind_draw_different_noise(batch):
    point = dict(kind="random", perturbation="additive", sigma=0.1)
    objective = make_objective({"a": point, "b": point}, {"a": CE | {"at": "a"}, "b": CE | {"at": "b"}})
    _, outcome, _ = run(objective, batch)
    assert float(outcome.terms["a"]) != float(outcome.terms["b"])


def test_accuracy_and_state_are_those_of_the_first_terms_point(batch):
    images, labels, keys = batch
    point = {"noisy": dict(kind="random", perturbation="additive", sigma=0.3)}
    first = run(make_objective(point, {"a": CE | {"at": "noisy"}, "b": CE}), batch)[1]
    other = run(make_objective(point, {"b": CE | {"at": "noisy"}, "a": CE}), batch)[1]
    np.testing.assert_allclose(other.state["seen"], images.mean(), rtol=1e-6)
    assert abs(float(first.state["seen"] - images.mean())) > 1e-4


def test_a_batch_in_halves_means_the_same(batch):
    images, labels, keys = (x[:4] for x in batch)
    point = {"bent": dict(kind="attack", perturbation="additive", radius=0.1, steps=2)}
    objective = make_objective(point, {n: t for n, t in ADT_FGR[1].items() if n != "clean"})
    whole = run(objective, (images, labels, keys))
    halves = [run(objective, (images[s], labels[s], keys[s])) for s in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(whole[0], (halves[0][0] + halves[1][0]) / 2, rtol=1e-5)
    agree(whole[2], jax.tree.map(lambda a, b: (a + b) / 2, halves[0][2], halves[1][2]), 1e-4)


@pytest.mark.parametrize(
    "points, terms, message",
    [
        ({}, {"a": CE | {"weight": 0.0}}, "at least one term"),
        ({}, {}, "at least one term.*cross_entropy.*first_order_gain.*gradient_norm"),
        ({}, {"a": dict(kind="crossentropy")}, "terms.a.kind='crossentropy'.*cross_entropy.*gradient_norm"),
        ({}, {"a": CE | {"wieght": 1}}, r"terms.a .*'wieght'.*'at', 'batch_norm', 'kind', 'label_smoothing', 'weight'"),
        ({}, {"a": dict(kind="gradient_norm")}, r"lacks \['perturbation'\].*'method', 'norm'"),
        ({}, {"a": CE | {"at": "warped"}}, r"terms.a.at='warped'.*\['clean'\]"),
        ({"clean": dict(kind="random", perturbation="flow", sigma=1)}, {"a": CE}, "points.clean.*another name"),
        ({"p": dict(kind="noise")}, {"a": CE}, "points.p.kind='noise'.*'attack', 'clean', 'divergent', .*'random'"),
        ({"p": dict(kind="random", perturbation="flow")}, {"a": CE}, "points.p.*lacks.*sigma"),
        ({"p": dict(kind="attack", perturbation="flow", radius=1, steps=2.5)}, {"a": CE}, "points.p.steps=2.5.*int"),
    ],
)
def test_mistakes_list_the_valid_choices(points, terms, message):
    with pytest.raises(ValueError, match=message):
        make_objective(points, terms)


def test_a_step_down_the_gradient_lowers_the_objective(batch):
    objective, theta = make_objective({}, {"ce": CE, "igr": TERMS["flow"][0]}), parameters()
    total, _, gradient = run(objective, batch)
    slope = float(optax.tree.norm(gradient)) ** 2
    # Curvature takes a share of the fall that shrinks with the step, rounding one that grows: both are below 5% here.
    lower = run(objective, batch, jax.tree.map(lambda t, g: t - 1e-4 * g, theta, gradient))[0]
    assert float(total - lower) == pytest.approx(1e-4 * slope, rel=0.05)


BALL = dict(perturbation="additive", radius=0.1)
SOFT_POINTS = {
    "bent": dict(kind="attack", steps=2, **BALL),
    "far": dict(kind="divergent", steps=1, **BALL),
    "rough": dict(kind="roughest", steps=1, **BALL),
    "all": dict(kind="universal", step_size=0.1, **BALL),
}
SOFT_TERMS = {
    "ce": CE | {"at": "bent", "label_smoothing": 0.1},
    "trades": dict(kind="kl_divergence", at="far", reference="clean"),
    "lfr": dict(kind="gradient_norm", at="rough", perturbation="additive"),
    "uat": CE | {"at": "all"},
}


def soft(labels, others, share):
    return share * jnp.eye(3)[labels] + (1 - share) * jnp.eye(3)[others]


def test_soft_labels_of_one_class_train_as_that_class(batch):
    images, labels, keys = batch
    objective, model = make_objective(SOFT_POINTS, SOFT_TERMS), model_of(parameters())

    @jax.jit
    def step(labels):
        memory = objective.remember(lambda n: (images[:n], batch[1][:n]), 3)
        return objective.loss(model, objective.find(model, images, labels, keys, memory, 0), labels)

    (total, outcome), (expected, known) = step(soft(labels, labels, 0.5)), step(labels)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), outcome, known)


def test_an_attack_on_soft_labels_maximises_their_cross_entropy(batch):
    images, labels, keys = batch
    labels, theta = soft(labels, (labels + 1) % 3, 0.6), parameters()

    def loss(x):
        return -(labels * jax.nn.log_softmax(logits_of(theta, x))).sum(-1)

    one_step = dict(threat=rj.ThreatModel("additive", radius=0.1), steps=1, step_size=0.1, random_start=False)
    found = at_points.attack(model_of(theta), images, labels, keys, **one_step)
    by_hand = jnp.clip(images + 0.1 * jnp.sign(jax.grad(lambda x: loss(x).sum())(images)), 0, 1)
    np.testing.assert_allclose(found.images, by_hand, atol=1e-6)
    total, outcome, _ = run(make_objective({}, {"ce": CE}), (images, labels, keys))
    assert float(total) == pytest.approx(float(loss(images).mean()), rel=1e-5)
    right = logits_of(theta, images).argmax(-1) == batch[1]  # the class of the larger share
    assert float(outcome.accuracy) == pytest.approx(float(right.mean()))


def test_logits_that_are_no_numbers_are_no_hits(batch):
    images, labels, keys = batch
    theta = {name: jnp.full_like(value, jnp.nan) for name, value in parameters().items()}
    _, outcome = make_objective({}, {"ce": CE})(model_of(theta), images, jnp.zeros_like(labels), keys)
    assert float(outcome.accuracy) == 0


def test_logits_in_half_precision_give_losses_in_single_precision(batch):
    images, labels, keys = batch
    point = dict(kind="attack", perturbation="additive", radius=0.1, steps=1)
    objective = make_objective({"bent": point}, {"ce": CE, "adv": CE | {"at": "bent"}})
    model = lambda x: (x.reshape(len(x), -1)[:, :3]).astype(jnp.bfloat16)  # noqa: E731
    total, outcome = objective(model, images, labels % 3, keys)
    assert total.dtype == jnp.float32 and all(v.dtype == jnp.float32 for v in outcome.terms.values())


def test_a_schedule_is_where_the_epoch_is(batch):
    images, labels, keys = batch
    weight = dict(start=0.0, end=4.0, epochs=2.0)
    objective, theta = make_objective({}, {"ce": CE | {"weight": weight}}), parameters()
    values = [float(objective(model_of(theta), images, labels, keys, epoch)[0]) for epoch in (0.0, 1.0, 2.0)]
    assert values[0] == 0 and values[2] == pytest.approx(2 * values[1])
    with pytest.raises(ValueError, match=r"terms.ce.weight has a schedule: give epoch="):
        objective(model_of(theta), images, labels, keys)
    moved = make_objective(
        {"moved": dict(kind="random", perturbation="additive", sigma=weight)}, {"ce": CE | {"at": "moved"}}
    )
    with pytest.raises(ValueError, match=r"points.moved.sigma has a schedule: give epoch="):
        moved.find(model_of(theta), images, labels, keys)


def test_a_point_that_remembers_needs_its_memory(batch):
    point = {"one": dict(kind="universal", perturbation="additive", radius=0.1, step_size=0.01)}
    with pytest.raises(ValueError, match="points.one: it remembers: give find"):
        make_objective(point, {"ce": CE | {"at": "one"}})(model_of(parameters()), *batch)


def test_labels_that_are_no_classes_are_refused_and_one_key_serves_all():
    images = jnp.zeros((B, H, W, 1))
    model = Model(lambda x: (logits_of(parameters(), x), {}), lambda x: logits_of(parameters(), x))
    near = dict(kind="random", perturbation="additive", sigma=0.1)
    objective = make_objective({"near": near}, {"ce": CE | {"at": "near"}})
    key = jax.random.key(0)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"labels range from .*{wrong}.*, but the logits have 3 classes"):
            objective(model, images, np.full(B, wrong), key)
    one, _ = objective(model, images, np.zeros(B, int), key)
    each, _ = objective(model, images, np.zeros(B, int), jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(B)))
    assert one == each
    with pytest.raises(ValueError, match="key holds 2 keys for 5 images"):
        objective(model, images, np.zeros(B, int), jax.random.split(key))


def test_a_model_whose_training_returns_no_state_is_told():
    only_logits = as_model(Model(train=lambda x: x.reshape(len(x), -1), eval=lambda x: x.reshape(len(x), -1)))
    with pytest.raises(ValueError, match=r"model.train must return \(logits, new state\), and returned"):
        only_logits.train(jnp.zeros((2, 2, 2, 1)))
