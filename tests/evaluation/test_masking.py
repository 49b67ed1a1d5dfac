"""Planted defences that mask gradients are found; honest models, trained with and without attacks, are not accused."""

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
    assert names(found) == {"more_steps", "one_step", "black_box"}


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
