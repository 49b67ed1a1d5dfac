"""Planted defences that mask gradients are found; honest models, trained with and without attacks, are not accused."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from robust_jax import losses
from robust_jax.attacks import fgsm, pgd, square
from robust_jax.evaluation import masking
from robust_jax.evaluation.robustness import Attack, Outcome, PerExample, robustness
from robust_jax.evaluation.summary import summarise
from robust_jax.models import bind, create
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import warp

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
DIGITS = load_digits()
IMAGES = jnp.asarray(DIGITS.images[..., None] / 16, jnp.float32)
LABELS = jnp.asarray(DIGITS.target)
FEW, THEIRS = IMAGES[1497:1561], LABELS[1497:1561]
BALL = ThreatModel("additive", "linf", 0.1)
ATTACKS = {"pgd": Attack(pgd, BALL, {"steps": 10})}


def trained_at(radius):
    """A network trained on FGSM's images of the digits, in a second or two."""
    model = create("mlp", num_classes=10, hidden=(64, 64), activation="relu")
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, state, index):
        x, y = IMAGES[index], LABELS[index]
        gradient = jax.grad(lambda x: losses.cross_entropy(model.apply(params, x), y).sum())(x)
        x = jnp.clip(x + radius * jnp.sign(gradient), 0, 1)
        slope = jax.grad(lambda p: losses.cross_entropy(model.apply(p, x), y).mean())(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    params, rng = model.init(KEY, IMAGES[:1]), np.random.default_rng(0)
    state = optimizer.init(params)
    for _ in range(300):
        params, state = step(params, state, rng.integers(0, 1497, 64))
    return bind(model, params)


@pytest.fixture(scope="module")
def standard():
    return trained_at(0.0)


def test_every_sign_says_what_it_is():
    signs = masking.signs()
    assert {"black_box", "one_step", "random_logits", "no_gradient", "huge_radius", "more_steps"} <= set(signs)
    assert all(sign.__doc__ for sign in signs.values())
    stages = [sign.needs for sign in signs.values()]
    assert stages == sorted(stages, key=("outcomes", "logits", "gradients", "attacks").index)


def names(warnings):
    return {warning.split(":")[0] for warning in warnings}


def shown(needs, model, measured=None):
    """The warnings of the built-in signs of some needs."""
    look = masking.Look(measured, model, FEW, THEIRS, KEY)
    return [warning for sign in masking.signs().values() if sign.needs in needs for warning in sign(look)]


def measure(model, attacks=ATTACKS):
    ids = np.arange(len(FEW))
    return robustness(model, [{"image": FEW, "label": THEIRS, "id": ids}], attacks, key=KEY)


def test_honest_models_show_no_sign(standard):
    accuracy = []
    for model in (standard, trained_at(0.1)):
        measured = measure(model)
        assert summarise(measured)["warnings"] == []
        assert masking.probe(model, FEW, THEIRS, measured, key=KEY) == []
        accuracy.append(1 - measured.attacks["pgd"].broken.mean())
        assert measured.correct.mean() > 0.85
    assert accuracy[1] > accuracy[0] + 0.05  # two kinds of models indeed


def layers(sizes, seed=0):
    rng = np.random.default_rng(seed)
    pairs = zip(sizes, sizes[1:], strict=False)
    return [jnp.asarray(rng.normal(size=shape) * (2 / shape[0]) ** 0.5, jnp.float32) for shape in pairs]


def chain(activation, weights, images):
    h = images.reshape(len(images), -1)
    for w in weights[:-1]:
        h = activation(h @ w)
    return h @ weights[-1]


def winners(h):
    """k-winners-take-all (Xiao et al. 2020): a tenth of the units, the others are 0."""
    return jnp.where(h >= jax.lax.top_k(h, h.shape[-1] // 10)[0][:, -1:], h, 0)


def fitted(activation, sizes, labels=LABELS, steps=300):
    function, weights = partial(chain, activation), layers(sizes)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(weights, state, index):
        loss = lambda w: losses.cross_entropy(function(w, IMAGES[index]), labels[index]).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    state, rng = optimizer.init(weights), np.random.default_rng(0)
    for _ in range(steps):
        weights, state = step(weights, state, rng.integers(0, 1497, 64))
    return jax.tree_util.Partial(function, weights)


def clipped(model, images):
    return jnp.clip(model(images), -5, 5)


def told_by_other_losses(model, labels=THEIRS, radius=0.1):
    attack = {"pgd": Attack(pgd, ThreatModel("additive", "linf", radius), {"steps": 10})}
    batch = {"image": FEW, "label": labels, "id": np.arange(len(FEW))}
    look = masking.Look(robustness(model, [batch], attack, key=KEY), model, FEW, labels, KEY)
    return masking.signs()["other_losses"](look)


@pytest.mark.parametrize("defence, radius", [("winners", 0.15), ("clipped", 0.2)])
def test_what_pgd_misses_and_other_losses_break_is_told_with_its_size(standard, defence, radius):
    model = jax.tree_util.Partial(clipped, standard) if defence == "clipped" else fitted(winners, (64, 512, 10))
    (warning,) = told_by_other_losses(model, radius=radius)
    lead = int(re.search(r"breaks (\d+) of 64 images more than pgd, \d+% instead of \d+% are left", warning)[1])
    assert lead >= 7


@pytest.mark.parametrize("honest", ["linear", "two classes", "random"])
def test_other_losses_do_not_accuse_honest_models(honest):
    if honest == "linear":
        assert told_by_other_losses(fitted(jax.nn.relu, (64, 10)), radius=0.05) == []
    elif honest == "two classes":
        model = fitted(jax.nn.relu, (64, 64, 2), LABELS % 2)
        assert told_by_other_losses(model, THEIRS % 2) == []
    else:
        model = jax.tree_util.Partial(partial(chain, jax.nn.relu), layers((64, 64, 10)))
        assert told_by_other_losses(model, model(FEW).argmax(-1), radius=0.02) == []


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_examples_that_depend_on_their_batch_are_told_by_every_evaluation():
    net = Normalised()
    variables = net.init(KEY, FEW[:1])
    in_train_mode = lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"])[0]  # noqa: E731
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
    models = {
        "eval": bind(net, variables), "train": jax.tree_util.Partial(in_train_mode, variables),
        "bfloat16": jax.tree_util.Partial(lambda v, x: net.apply(v, x.astype(jnp.bfloat16)).astype(jnp.float32), half),
    }  # fmt: skip
    told = {}
    for name, model in models.items():
        told[name] = [w for w in summarise(measure(model, {}))["warnings"] if "dependent_examples" in w]
    assert told["eval"] == told["bfloat16"] == []
    assert "64 of 64 images depend on the other images" in told["train"][0]


def test_every_evaluation_looks_at_logits_and_gradients_once(standard):
    model = jax.tree_util.Partial(saturated_softmax, standard)
    measured = measure(model, {})
    assert {"probabilities", "zero_gradient"} <= names(summarise(measured)["warnings"])
    assert masking.probe(model, FEW, THEIRS, measured, key=KEY, needs=()) == []
    assert masking.glance(PerExample(measured.id, measured.label, measured.prediction, measured.loss, {})) == []


def quantised(model, images):
    return model(jnp.round(images * 7) / 7)


def stepped(model, images):
    return model(jnp.where(images > 0.5, 1.0, 0.0))


def saturated_softmax(model, images):
    return jax.nn.softmax(model(images) * 1e3)


def scaled(model, images):
    return 1e6 * model(images)


def host_resized(model, images):
    """A random zoom, drawn anew on the host at every call."""
    rng = np.random.default_rng(0)
    drawn = jax.pure_callback(lambda: np.float32(rng.uniform(-0.1, 0.1)), jax.ShapeDtypeStruct((), jnp.float32))
    return resized(model, images, jnp.full(len(images), jax.lax.stop_gradient(drawn)))


def hash_resized(model, images):
    """A random zoom, drawn from the image's own bits: two calls agree."""
    bits = jax.lax.bitcast_convert_type(images, jnp.uint32).sum((1, 2, 3))
    draw = jax.vmap(lambda b: jax.random.uniform(jax.random.key(b), minval=-0.1, maxval=0.1))
    return resized(model, images, draw(bits))


def resized(model, images, zoom):
    at = jnp.arange(8.0) - 3.5
    field = jnp.stack(jnp.meshgrid(at, at, indexing="ij"), -1)
    return model(warp(images, zoom[:, None, None, None] * field))


def without_gradient(model, images):
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return model(jax.pure_callback(lambda x: np.asarray(x), shape, images))


@pytest.mark.parametrize(
    "defence, expected",
    [
        (scaled, {"saturated_loss"}),
        (clipped, {"clipped_logits"}),
        (quantised, {"zero_gradient"}),
        (stepped, {"zero_gradient"}),
        (saturated_softmax, {"probabilities", "zero_gradient"}),
        (host_resized, {"random_logits"}),
        (hash_resized, {"jumping_logits"}),
        (without_gradient, {"no_gradient"}),
    ],
)
def test_planted_defences_show_signs_before_any_attack(standard, defence, expected):
    model = jax.tree_util.Partial(defence, standard)
    found = shown(("logits", "gradients"), model)
    assert expected <= names(found), found


def test_attacks_on_a_quantised_input_show_signs(standard):
    model = jax.tree_util.Partial(quantised, standard)
    measured = measure(model, {"pgd": ATTACKS["pgd"], "square": Attack(square, BALL, {"queries": 200})})
    assert names(masking.compare(measured)) == {"black_box"}
    without = PerExample(*(getattr(measured, k) for k in ("id", "label", "prediction", "loss")),
                         {"pgd": measured.attacks["pgd"]})  # fmt: skip
    found = names(shown(("attacks",), model, without))
    assert {"black_box", "huge_radius"} <= found


def test_what_cannot_be_differentiated_is_not_attacked_further(standard):
    model = jax.tree_util.Partial(without_gradient, standard)
    measured = measure(model, {"square": Attack(square, BALL, {"queries": 20})})
    assert names(masking.probe(model, FEW, THEIRS, measured, key=KEY)) == {"no_gradient"}


def test_an_attack_that_has_not_converged_shows_signs(standard):
    # Steps far too small: twice as many, or a single one of the whole radius, break more.
    weak = Attack(pgd, BALL, {"steps": 5, "step_size": 0.008, "random_start": False})
    found = shown(("attacks",), standard, measure(standard, {"pgd": weak}))
    assert names(found) == {"more_steps", "one_step", "black_box", "other_losses"}


def made(**broken):
    """Outcomes by hand, of the attacks by name."""
    n = 100
    functions = {"pgd": pgd, "square": square, "fgsm": fgsm}
    outcomes = {}
    for name, where in broken.items():
        threat = ThreatModel("affine", "linf", (30.0, 3.0, 3.0)) if name.endswith("turned") else BALL
        hit = np.isin(np.arange(n), where)
        attack = Attack(functions[name.split("_")[0]], threat)
        outcomes[name] = Outcome(attack, hit, *np.zeros((4, n)), curve={}, seconds=0.0, sample={})
    return PerExample(np.arange(n), np.zeros(n, int), np.zeros(n, int), np.zeros(n), outcomes)


def test_attacks_are_compared_on_the_same_examples_beyond_noise():
    assert names(masking.compare(made(pgd=range(20), square=range(30)))) == {"black_box"}
    assert names(masking.compare(made(pgd=range(20), fgsm=range(30)))) == {"one_step"}
    assert masking.compare(made(pgd=range(20), square=range(4, 24))) == []  # as many
    assert masking.compare(made(pgd=range(20), square=range(23))) == []  # too few to tell
    assert masking.compare(made(pgd=range(15), pgd_2=range(15, 30), square=range(30))) == []  # together as strong
    assert masking.compare(made(pgd_turned=range(20), square_turned=range(30))) == []  # few parameters
    assert masking.compare(made(pgd=range(20), square_turned=range(30))) == []  # another threat
    assert "breaks 10 images more than pgd" in masking.compare(made(pgd=range(20), square=range(30)))[0]
