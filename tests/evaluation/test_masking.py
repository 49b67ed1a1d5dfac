"""Planted defences that mask gradients are found; honest models, trained with and without attacks, are not accused.

The models are those of `benchmarks/masking`, which lists what every evaluation says of them in docs/masking.md.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.masking import honest, planted
from benchmarks.masking.networks import FEW, KEY, THEIRS, perceptron
from benchmarks.masking.probe import looked_at, names
from robust_jax.attacks import deepfool, fgsm, fmn, gaussian_noise, pgd, square
from robust_jax.evaluation import masking
from robust_jax.evaluation.robustness import Attack, Outcome, PerExample, robustness
from robust_jax.evaluation.signs.define import is_many
from robust_jax.evaluation.statistics import exceeds, significant_lead
from robust_jax.evaluation.summary import summarise
from robust_jax.models import bind
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

BALL = planted.BALL
ATTACKS = planted.PGD
ALL = planted.KINDS | planted.LATER
# One kind for each sign; the slow tests try all.
EACH = list({(kind.needs, kind.sign): name for name, kind in reversed(ALL.items()) if kind.sign}.values())


@pytest.fixture(scope="module")
def standard():
    return perceptron()


def test_every_sign_says_what_it_is():
    signs = masking.signs()
    assert {"black_box", "one_step", "random_logits", "no_gradient", "huge_radius", "more_steps"} <= set(signs)
    assert all(sign.__doc__ for sign in signs.values())
    stages = [sign.needs for sign in signs.values()]
    assert stages == sorted(stages, key=("outcomes", "logits", "gradients", "attacks").index)


def measure(model, attacks=ATTACKS, images=FEW, labels=THEIRS):
    batch = {"image": images, "label": labels, "id": np.arange(len(images))}
    return robustness(model, [batch], attacks, key=KEY)


def shown(needs, model, measured=None):
    """The warnings of the built-in signs of some needs."""
    look = masking.Look(measured or measure(model, {}), model, FEW, THEIRS, KEY)
    return [warning for sign in masking.signs().values() if sign.needs in needs for warning in sign(look)]


def looking_for(name, model, attacks, images=FEW, labels=THEIRS):
    """The warnings of one sign."""
    look = masking.Look(measure(model, attacks, images, labels), model, images, labels, KEY)
    return masking.signs()[name](look)


def test_there_are_many_kinds_of_planted_defences_and_of_honest_models():
    assert len(planted.KINDS) >= 31 and len(planted.LATER) >= 5 and len(honest.MODELS) >= 13
    # The tests below take the kinds of these.
    assert {ALL[name].needs for name in EACH} == {"outcomes", "logits", "gradients", "attacks"}


@pytest.mark.parametrize("name", [name for name in EACH if ALL[name].needs in ("logits", "gradients")])
def test_planted_defences_show_signs_before_any_further_attack(name):
    kind, model = ALL[name], ALL[name].model()
    measured = measure(model, kind.attacks if kind.sign in ("tiny_radius", "non_finite") else {})
    assert kind.sign in names(summarise(measured)["warnings"])


@pytest.mark.parametrize("name", [name for name in EACH if ALL[name].needs in ("outcomes", "attacks")])
def test_attacks_on_planted_defences_show_signs(name):
    kind = ALL[name]
    assert looking_for(kind.sign, kind.model(), kind.attacks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_whole_probe_tells_planted_defences(name):
    kind = ALL[name]
    found = names(looked_at(kind.model(), FEW, THEIRS, kind.attacks, further=kind.needs == "attacks")["warnings"])
    assert kind.sign in found if kind.sign else not found


@pytest.mark.parametrize("name", ["standard"])
def test_honest_models_show_no_sign(name):
    case = honest.MODELS[name]
    few = {"additive": case.attacks["additive"]}  # the other ball compiles all attacks again
    found = looked_at(case.model(), case.images, case.labels, few)
    assert found["warnings"] == [] and found["clean"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", honest.MODELS)
def test_the_whole_probe_accuses_no_honest_model(name):
    case = honest.MODELS[name]
    found = looked_at(case.model(), case.images, case.labels, case.attacks)
    assert found["warnings"] == [] and found["clean"] > 0.7


def test_what_other_losses_break_is_told_with_its_size():
    kind = planted.KINDS["k winners"]
    attacks = kind.attacks | {"steep": Attack(fgsm, kind.attacks["pgd"].threat)}
    (warning,) = looking_for("other_losses", kind.model(), attacks)
    found = re.search(r"breaks (\d+) of 64 images that pgd and steep left, (\d+)% instead of (\d+)% are left", warning)
    more, after, before = map(int, found.groups())
    assert more >= 8 and abs((before - after) - 100 * more / 64) <= 1
    assert re.search(r"\(pgd alone \d+%, steep alone \d+%\)", warning)


def test_every_attack_that_searches_with_gradients_is_compared_with_other_losses(standard):
    # DeepFool stops at a tiny perturbation in its ball; noise and single steps alone say nothing about gradients.
    weak = {"steps": 1, "relaxation": 0.1}
    assert looking_for("other_losses", standard, {"deepfool": Attack(deepfool, BALL, weak)})
    others = {"noise": Attack(gaussian_noise, BALL), "fgsm": Attack(fgsm, BALL)}
    assert looking_for("other_losses", standard, others) == []


def test_examples_that_depend_on_their_batch_are_told_by_every_evaluation():
    net = planted.Normalised()
    variables = net.init(KEY, FEW[:1])
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
    models = {
        "eval": bind(net, variables), "train": jax.tree_util.Partial(planted.in_train_mode, variables),
        "bfloat16": jax.tree_util.Partial(lambda v, x: net.apply(v, x.astype(jnp.bfloat16)).astype(jnp.float32), half),
    }  # fmt: skip
    told = {}
    for name, model in models.items():
        told[name] = [w for w in summarise(measure(model, {}))["warnings"] if "dependent_examples" in w]
    assert told["eval"] == told["bfloat16"] == []
    assert "64 of 64 images depend on the other images" in told["train"][0]


def test_every_evaluation_looks_at_logits_and_gradients_once(standard):
    model = jax.tree_util.Partial(planted.saturated_softmax, standard)
    measured = measure(model, {})
    assert {"probabilities", "zero_gradient"} <= names(summarise(measured)["warnings"])
    assert masking.probe(model, FEW, THEIRS, measured, key=KEY, needs=()) == []
    assert masking.glance(PerExample(measured.id, measured.label, measured.prediction, measured.loss, {})) == []


def test_signs_are_looked_for_in_the_network_that_was_measured():
    found = set()

    def model(images):
        found.add(jax.config.jax_default_matmul_precision)
        return (images.reshape(len(images), -1) @ jnp.ones((images[0].size, 10))) * jnp.arange(10.0)

    measured = robustness(model, (FEW, THEIRS), {"pgd": ATTACKS["pgd"]}, key=KEY, precision="bfloat16")
    masking.glance(measured)
    masking.probe(model, FEW, THEIRS, measured, key=KEY)
    assert found - {None} == {"bfloat16"}  # without one only shapes are asked for


def test_attacks_on_a_quantised_input_show_signs(standard):
    model = jax.tree_util.Partial(planted.quantised, standard)
    measured = measure(model, {"pgd": ATTACKS["pgd"], "square": Attack(square, BALL, {"queries": 200})})
    assert names(masking.compare(measured)) == {"black_box", "unmoved_loss"}
    without = PerExample(*(getattr(measured, k) for k in ("id", "label", "prediction", "loss")),
                         {"pgd": measured.attacks["pgd"]})  # fmt: skip
    found = names(shown(("attacks",), model, without))
    assert {"black_box", "huge_radius"} <= found


def test_noise_in_the_same_ball_is_no_search_without_gradients(standard):
    model = jax.tree_util.Partial(planted.quantised, standard)
    for more, told in ((Attack(gaussian_noise, BALL), True), (Attack(square, BALL, {"queries": 200}), False)):
        measured = measure(model, {"pgd": ATTACKS["pgd"], "other": more})
        found = names(shown(("attacks",), model, measured))
        assert ("black_box" in found) == told


def test_what_cannot_be_differentiated_is_not_attacked_further(standard):
    model = jax.tree_util.Partial(planted.without_gradient, standard)
    measured = measure(model, {"square": Attack(square, BALL, {"queries": 20})})
    assert names(masking.probe(model, FEW, THEIRS, measured, key=KEY)) == {"no_gradient"}


def test_an_attack_that_has_not_converged_shows_signs(standard):
    # Steps far too small: twice as many, or a single one of the whole radius, break more.
    weak = Attack(pgd, BALL, {"steps": 5, "step_size": 0.008, "random_start": False})
    found = shown(("attacks",), standard, measure(standard, {"pgd": weak}))
    assert names(found) == {"more_steps", "one_step", "black_box", "other_losses"}
    assert all(re.search(r"\d", warning) and re.search(r"[Uu]se |too ", warning) for warning in found)


def made(**broken):
    """Outcomes by hand, of the attacks by name."""
    n = 100
    functions = {"pgd": pgd, "square": square, "fgsm": fgsm, "fmn": fmn}
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
    assert names(masking.compare(made(fmn=range(20), square=range(30)))) == {"black_box"}  # it takes all of its steps
    assert "breaks 10 images more than pgd" in masking.compare(made(pgd=range(20), square=range(30)))[0]


def test_an_ascent_that_does_not_raise_the_loss_is_told():
    measured = made(pgd=range(20))
    outcome = measured.attacks["pgd"]
    for stuck, told in ((0, False), (10, False), (11, True), (80, True)):  # 10 have a probability of .028
        loss = np.full(100, 0.5) + (np.arange(100) >= 20 + stuck)
        found = PerExample(measured.id, measured.label, measured.prediction, np.full(100, 0.5),
                           {"pgd": Outcome(**vars(outcome) | {"loss": loss})})  # fmt: skip
        warnings = masking.compare(found)
        assert names(warnings) == ({"unmoved_loss"} if told else set()), stuck
        assert not told or f"loss of {stuck} of 80 images" in warnings[0]


def test_the_thresholds_are_exact_binomial_tests():
    lead = lambda b, c: significant_lead(np.arange(100) < b, (np.arange(100) >= 50) & (np.arange(100) < 50 + c))  # noqa: E731
    # McNemar: 2^-5 = .031 and 2^-6 = .016; 7 to 1, 9/256 = .035, and 8 to 1, 10/512 = .0195.
    assert [lead(5, 0), lead(6, 0), lead(7, 1), lead(8, 1), lead(3, 9)] == [0, 6, 0, 7, 0]
    # Of 64, 8 or more with probability .0158 at a share of .05, 7 or more with .0422.
    assert not exceeds(7, 64, 0.05) and exceeds(8, 64, 0.05)
    assert not exceeds(0, 64, 0.0) and not exceeds(0, 0, 0.05)
    assert is_many(np.arange(8) < 3) and not is_many(np.arange(8) < 2)


def test_a_radius_is_tiny_in_whatever_space():
    tiny = masking.signs()["tiny_radius"]

    def told(*threat):
        outcome = Outcome(Attack(pgd, ThreatModel(*threat)), *np.zeros((5, 1)), curve={}, seconds=0.0, sample={})
        measured = PerExample(*np.zeros((4, 1)), {"pgd": outcome})
        return tiny(masking.Look(measured, None, FEW, THEIRS))

    for norm in ("linf", "l2", "l1"):
        assert told("additive", norm, 0.0019) and told("additive", norm, 0.0021) == []
    assert told("flow", "l2inf", 0.001) and told("flow", "l2", 0.1) == []
    assert told("affine", "linf", (0.001, 0.0001, 0.0001)) and told("affine", "linf", (1.0, 0.1, 0.1)) == []
    assert (
        told(("flow", "additive"), "linf", (0.0005, 0.0005)) and told(("flow", "additive"), "linf", (0.1, 0.001)) == []
    )
    assert "change no pixel by more than 0.0019" in told("additive", "linf", 0.0019)[0]
