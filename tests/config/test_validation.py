"""A config is complete, plain data; every mistake is one message with all valid choices."""

from __future__ import annotations

import json

import pytest

from robust_jax.attacks import ATTACKS
from robust_jax.config import base, complete
from robust_jax.config.validation import KINDS, check, number
from robust_jax.objectives.points import POINTS
from robust_jax.objectives.terms import TERMS
from robust_jax.options import options_of


def some():
    c = base()
    c.points.adv = dict(kind="attack", perturbation="additive", radius="8/255")
    c.points.warped = dict(kind="random", perturbation="flow", sigma="1 / 10")
    c.terms.ce = dict(kind="cross_entropy", at="adv")
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", weight=4)
    c.terms.gain = dict(kind="first_order_gain", perturbation="affine", radius=("30", 3, 3))
    c.attacks.flow = dict(kind="pgd", perturbation="flow", radius=0.155)
    c.attacks.fgsm = dict(kind="fgsm", perturbation="additive", radius="8/255", curve=(0, "1/2", 1))
    return c


def test_number():
    assert number("8/255") == 8 / 255 and number("0.5") == 0.5 and number("1e-3") == 1e-3 and number(" 1 / 4 ") == 0.25
    assert number(("1/2", 3)) == (0.5, 3) and number(["1/2"]) == (0.5,)
    for huge in ("1e1000000000", "1e1000000000/3", "nan", "inf"):
        assert number(huge) == huge
    for other in ("l2", "flow", "a/b", "8/0", None, True, 3, ""):
        assert number(other) is other


def test_complete_fills_in_every_option_of_every_kind():
    c = complete(some())
    assert c.points.adv.radius == 8 / 255 and c.attacks.fgsm.radius == 8 / 255 and c.attacks.fgsm.curve == (0, 0.5, 1)
    assert c.points.warped.sigma == 0.1 and c.terms.gain.radius == (30, 3, 3)
    assert (c.terms.ce.weight, c.terms.fgr.weight, c.terms.gain.at) == (1.0, 4.0, "clean")
    assert type(c.terms.fgr.weight) is float and type(c.terms.fgr.power) is float and type(c.points.adv.steps) is int
    for section, (known, own) in KINDS.items():
        for entry in c[section].values():
            assert set(entry) == {"kind", *own, *options_of(known[entry.kind])}
    assert c.attacks.flow.loss == "cross_entropy" and c.attacks.flow.step_size is None
    assert KINDS["points"][0] is POINTS and KINDS["terms"][0] is TERMS and KINDS["attacks"][0] is ATTACKS
    json.dumps(c.to_dict())  # plain data


def test_complete_is_idempotent_and_leaves_its_argument_alone():
    c = some()
    before = c.to_dict()
    once = complete(c)
    assert c.to_dict() == before
    assert complete(once).to_dict() == once.to_dict() == complete(complete(once)).to_dict()
    assert json.loads(json.dumps(once.to_dict())) == json.loads(once.to_json())


def set_at(config, path, value):
    *groups, name = path.split(".")
    for group in groups:
        config = config[group]
    with config.ignore_type():
        config[name] = value


MISTAKES = [
    ("precision", "float64", ["float32", "tensorfloat32", "bfloat16", "default"]),
    ("model.name", "digit_cnn", ["digits_cnn", "small_cnn", "vgg11", "vgg13", "vgg16", "vgg19"]),
    ("model.dtype", "float16", ["float32", "bfloat16"]),
    ("optimizer.name", "loin", ["sgd", "adam", "adamw", "lion"]),
    ("schedule.name", "step", ["constant", "piecewise", "cosine", "one_cycle"]),
    ("evaluation.split", "held_out", ["test", "validation", "train"]),
    ("select_by", "pgd", ["clean", "flow", "fgsm"]),
    ("points.adv.kind", "pgd", ["attack", "clean", "random"]),
    ("points.adv.perturbation", "flw", ["additive", "affine", "flow", "flow_symmetric", "module:name"]),
    ("points.warped.perturbation", "flw", ["additive", "affine", "flow", "flow_symmetric"]),
    ("points.adv.norm", "l9", ["l1", "l2", "l21", "l2inf", "linf"]),
    ("points.adv.loss", "hinge", ["cross_entropy", "dlr", "margin"]),
    ("points.adv.keep", "first", ["best", "highest_loss", "last"]),
    ("points.adv.batch_norm", "both", ["eval", "train"]),
    ("points.adv.steps", 2.5, ["int", "float"]),
    ("points.adv.random_start", 1, ["bool"]),
    ("points.adv.radius", -0.1, ["radius"]),
    ("points.adv.radius", "8 over 255", ["8/255"]),
    ("points.adv.radius", True, ["radius"]),
    ("points.warped.sigma", "big", ["number", "8/255"]),
    ("terms.ce.kind", "crossentropy", ["cross_entropy", "gradient_norm", "first_order_gain"]),
    ("terms.ce.at", "warp", ["adv", "clean", "warped"]),
    ("terms.ce.wieght", 3.0, ["at", "kind", "label_smoothing", "weight"]),
    ("terms.fgr.norm", "l9", ["l1", "l2", "l21", "l2inf", "linf"]),
    ("terms.fgr.perturbation", "flo", ["additive", "affine", "flow", "flow_symmetric"]),
    ("terms.fgr.method", "backprop", ["double_backprop", "directional", "finite_difference"]),
    ("terms.fgr.weight", "heavy", ["number", "8/255"]),
    ("attacks.flow.kind", "pdg", ["fgsm", "pgd"]),
    ("attacks.flow.step", 3, ["steps", "step_size", "restarts", "momentum", "curve"]),
    ("attacks.flow.optimizer", "adm", ["adam", "rmsprop", "sgd"]),
    ("attacks.flow.radius", None, ["radius"]),
    ("data.validation", 0.0, ["validation"]),
    ("data.validaton", 0.1, ["validation", "augment", "data_dir"]),
    ("data.augment.crop", 4, ["flip", "padding", "resize"]),
    ("batchsize", 3, ["batch_size", "epochs", "terms"]),
    ("optimizer.beta", 0.9, ["momentum", "weight_decay", "clip_norm"]),
    ("batch_size", 0, ["above 0"]),
    ("log_every_steps", 0, ["above 0"]),
    ("eval_every_epochs", 0.0, ["above 0"]),
    ("epochs", -1.0, ["above 0"]),
]


@pytest.mark.parametrize("path, value, choices", MISTAKES, ids=[f"{p}={v}" for p, v, _ in MISTAKES])
def test_mistakes(path, value, choices):
    config = some()
    set_at(config, path, value)
    with pytest.raises(ValueError) as error:
        complete(config)
    message = str(error.value)
    assert "\n" not in message
    for text in (*path.split("."), *choices):
        assert text in message
    if isinstance(value, str) and path.split(".")[-1] != "kind":
        assert repr(value) in message


def test_no_terms_a_missing_key_and_impossible_combinations():
    with pytest.raises(ValueError, match="at least one term.*cross_entropy"):
        complete(base())
    config = some()
    del config.data["limit"]
    with pytest.raises(ValueError, match="data.limit is missing"):
        check(config)
    config = some()
    config.terms.fgr.method = "finite_difference"
    config.model.name, config.sync_batch_norm = "vgg11", True
    with pytest.raises(ValueError, match="sync_batch_norm.*double_backprop or directional"):
        complete(config)
    config = some()
    set_at(config, "points.adv.perturbation", ("flow", "additive"))
    with pytest.raises(ValueError, match="points.adv: a composition of 2.*tuple"):
        complete(config)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("attacks.flow.steps", 0, "attacks.flow.steps=0"),
        ("attacks.flow.random_start", False, "restarts=2 repeat"),
        ("attacks.flow.keep", "last", "keep='last'"),
        ("attacks.flow.targeted", True, "true labels only"),
        ("attacks.fool.targeted", True, "true labels only"),
        ("terms.ce.weight", float("nan"), "terms.ce.weight=nan: give a finite number"),
        ("terms.ce.weight", (1.0, 2.0), "terms.ce.weight=.*give a finite number, or one as 8/255[.]"),
        ("terms.ce.label_smoothing", 2.0, "label_smoothing=2.0 must be below 1"),
        ("points.noisy.sigma", -0.1, "points.noisy.sigma=-0.1 must be at least 0"),
        (
            "attacks.auto.version",
            "rand",
            "attacks.auto: .*version='rand' calls logits_fn.*'standard' and 'plus' for functions of images alone",
        ),
        ("attacks.fool.steps", 0, "attacks.fool.steps=0 must be at least 1"),
        ("attacks.fool.overshoot", -0.1, "overshoot=-0.1"),
        ("evaluation.checkpoint", "bset", "'best', 'latest'"),
        ("select_limit", -1, "^select_limit=-1 must be at least 0"),
        ("seed", -1, "^seed=-1 must be at least 0"),
        ("seed", 2**32, "seed=4294967296 must be at most 4294967295"),
        ("model.std", "x", "model.std='x': give a finite number"),
        ("model.std", 0.0, "model.std=0.0 must be above 0"),
        ("model.std", (0.2, float("nan")), "model.std=nan: give a finite number"),
        ("model.mean", float("inf"), "model.mean=inf: give a finite number"),
        ("attacks.flow.curve", (-1, 1), r"attacks.flow.curve=\(-1, 1\): give multiples >= 0"),
        ("attacks.flow.curve", 1.5, "attacks.flow.curve=1.5: give a tuple of multiples"),
        ("attacks.flow.curve", tuple(range(200_000)), "attacks.flow.curve has 200,000 radii: at most 1,000"),
        ("optimizer.ema", 1.5, "optimizer.ema=1.5 must be below 1"),
        ("optimizer.adversarial_weights", -0.1, "^optimizer.adversarial_weights=-0.1 must be at least 0"),
        ("optimizer.clip_norm", -1.0, "^optimizer.clip_norm=-1.0 must be at least 0"),
        ("schedule.learning_rate", -0.1, "^schedule.learning_rate=-0.1 must be at least 0"),
        ("evaluation.limit", -5, "^evaluation.limit=-5 must be at least 0"),
        ("evaluation.batch_size", 0, "^evaluation.batch_size=0 must be above 0"),
        ("points.rough.steps", 0, "points.rough.steps=0 must be at least 1"),
        ("points.rough.gradient", "l3", "points.rough.gradient.*l3"),
        ("points.region.refresh", 0, "points.region.refresh=0 must be at least 1"),
        ("points.region.target", 10, "points.region: target=10 is no class"),
        ("points.rough.radius", (0.1, 0.2, 0.3), "points.rough: radius=.*flow has shape"),
        ("model.options", {"layers": 3}, "model .*layers"),
    ],
)
def test_impossible_values_fail_before_training(path, value, message):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.points.rough = dict(kind="roughest", perturbation="flow", radius=0.1)
    c.points.region = dict(kind="targeted_universal", perturbation="flow", radius=0.1)
    c.points.noisy = dict(kind="random", perturbation="flow", sigma=0.1)
    c.terms.rough = dict(kind="cross_entropy", at="rough")
    c.terms.region = dict(kind="cross_entropy", at="region")
    c.attacks.flow = dict(kind="pgd", perturbation="flow", radius=0.1, restarts=2)
    c.attacks.fool = dict(kind="deepfool", perturbation="affine", radius=(30, 3, 3))
    c.attacks.auto = dict(kind="auto_attack", perturbation="additive", radius=0.1)
    c = complete(c)
    set_at(c, path, value)
    with pytest.raises(ValueError, match=message):
        complete(c)


@pytest.mark.parametrize(
    "kind, perturbation, message",
    [
        ("ddn", "additive", "attacks.fool: norm='linf'.*give norm='l2'"),
        ("ead", "flow", "attacks.fool: norm='linf'.*give norm='l1'"),
        ("jsma", "flow", "attacks.fool: perturbation flow.*'additive' with 'linf'"),
        ("adef", "affine", "attacks.fool: perturbation affine.*give 'flow'"),
    ],
)
def test_an_attack_that_cannot_have_its_threat_model_fails_before_training(kind, perturbation, message):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.fool = dict(kind=kind, perturbation=perturbation, radius=0.1)
    with pytest.raises(ValueError, match=message):
        complete(c)


@pytest.mark.parametrize("name", ["clean", "worst_case"])
def test_an_attack_is_not_named_as_a_result_is(name):
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks[name] = dict(kind="pgd", perturbation="flow", radius=0.1)
    with pytest.raises(ValueError, match=f"attacks.{name}: .*another"):
        complete(c)


@pytest.mark.parametrize(("key", "dtype"), [("model.dtype", "bfloat16"), ("precision", "tensorfloat32")])
def test_finite_differences_need_float32(key, dtype):
    c = base()
    c.update_from_flattened_dict({key: dtype})
    c.terms.ce = dict(kind="cross_entropy")
    c.terms.fgr = dict(kind="gradient_norm", perturbation="flow", method="finite_difference")
    with pytest.raises(ValueError, match=f"needs {key}=float32, not {dtype}"):
        complete(c)


def test_an_attack_has_no_schedule():
    c = base()
    c.terms.ce = dict(kind="cross_entropy")
    c.attacks.flow = dict(kind="pgd", perturbation="flow", radius=dict(start=0.0, end=1.0, epochs=1.0))
    with pytest.raises(ValueError, match="attacks.flow has schedules.*radius"):
        complete(c)


def test_a_path_may_go_up_and_the_name_of_a_dataset_may_not():
    for name in ("folder:../pets", "npz:../pets.npz"):
        c = base(name)
        c.terms.ce = dict(kind="cross_entropy")
        assert complete(c).data.name == name
    for name in ("../mnist", " "):
        c.data.name = name
        with pytest.raises(ValueError, match="is no name of a dataset"):
            complete(c)


def own_term(point):
    return point.loss


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize(
    "section, spec, message",
    [
        ("terms", dict(kind="boosted_cross_entropy"), r"^terms.p: boosted_cross_entropy needs one class per image"),
        ("terms", dict(kind="weighted_kl_divergence", reference="clean"), "^terms.p: weighted_kl_divergence needs one"),
        (
            "terms",
            dict(kind=f"{__name__}:own_term"),
            "^terms.p: own_term needs .* part of your own.*soft_labels",
        ),
        (
            "points",
            dict(kind="targeted_universal", perturbation="additive", radius=0.1),
            "^points.p: targeted_universal",
        ),
        ("points", dict(kind="attack", perturbation="additive", radius=0.1, loss="margin"), "^points.p: loss='margin'"),
    ],
)
def test_mixing_is_refused_by_what_needs_one_class_per_image(name, section, spec, message):
    config = base()
    config.data.augment[name] = 0.2
    config[section].p = spec
    config.terms.ce = dict(kind="cross_entropy", at="p" if section == "points" else "clean")
    with pytest.raises(ValueError, match=f"{message}.*data.augment.cutmix to 0"):
        complete(config)
    config.data.augment[name] = 0.0
    complete(config)
    config.data.augment[name] = 0.2
    del config[section]["p"]
    config.terms.ce = dict(kind="cross_entropy", at="clean")
    complete(config)
