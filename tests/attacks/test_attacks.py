"""How attacks are defined, found and checked."""

import ast
import inspect
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from properties import net, sample
from robust_jax import attacks, losses
from robust_jax.attacks.define import Cost, Family, Problem, about, attack, cost_of
from robust_jax.attacks.result import AttackResult, clip_box
from robust_jax.options import Fraction, arguments, check_options, options_of
from robust_jax.spaces import threat_models
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY, MODEL = jax.random.key(0), net()
ADDITIVE, L2 = ThreatModel("additive", "linf", 0.1), ThreatModel("additive", "l2", 0.1)
LABELS = jnp.zeros(6, int)


def test_the_imports_of_the_package_are_the_attacks_that_are_found():
    tree = ast.parse(Path(attacks.__file__).read_text())
    imported = {name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(attacks.ATTACKS) == {name for name in imported if about(getattr(attacks, name, None)) is not None}
    assert all(getattr(attacks, name) is function for name, function in attacks.ATTACKS.items())
    assert set(attacks.__all__) == (imported | {"ATTACKS"}) - {"Callable", "extensions"}
    assert not any(name.startswith("universal") for name in attacks.ATTACKS)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_has_a_family_a_cost_and_options_with_ranges(name):
    function = attacks.ATTACKS[name]
    assert about(function).family in get_args(Family)
    cost = cost_of(function, {}, Problem((8, 8, 1), 10, ADDITIVE))
    assert cost.forwards >= 1 and (cost.gradients == 0) == (about(function).family == "black_box")
    for option in options_of(function).values():
        if option.default is not None:
            option.check(option.name, option.default)
        numeric = isinstance(option.default, int | float) and not isinstance(option.default, bool)
        assert option.range or not numeric, option.name


def test_families():
    families = {name: about(function).family for name, function in attacks.ATTACKS.items()}
    assert {name for name, family in families.items() if family == "black_box"} == {
        "gaussian_noise", "grid", "nes", "pointwise", "random_search", "spsa", "square", "uniform_noise",
    }  # fmt: skip
    assert {name for name, family in families.items() if family == "ascent"} == {"apgd", "apgd_dlr", "pgd"}
    white = {name for name, family in families.items() if family == "white_box"}
    assert white == {
        "apgd_targeted", "carlini_wagner", "ddn", "ead", "fab", "fab_targeted", "fmn", "sigma_zero", "stadv",
    }  # fmt: skip
    # They stop as soon as they cross the boundary, and are not compared with attacks without gradients.
    assert {name for name, family in families.items() if family == "boundary"} == {"adef", "deepfool", "jsma"}
    assert families["fgsm"] == "one_step" and families["auto_attack"] == "combined"


BAD = [
    ("pgd", dict(step_size=-0.01), "pgd: step_size=-0.01 must be above 0"),
    ("pgd", dict(step_size=0), "pgd: step_size=0 must be above 0"),
    ("pgd", dict(step_size=(0.1, 0.0, 0.1)), "pgd: step_size=0.0 must be above 0"),
    ("pgd", dict(step_size=float("nan")), "pgd: step_size=nan"),
    ("pgd", dict(momentum=-1), "pgd: momentum=-1 must be at least 0"),
    ("pgd", dict(steps=2.5), "pgd: steps=2.5 is of type float, not int"),
    ("pgd", dict(steps=True), "pgd: steps=True is of type bool, not int"),
    ("pgd", dict(targeted=1), "pgd: targeted=1 is of type int, not bool"),
    ("pgd", dict(loss="hinge"), "pgd: loss='hinge'.*cross_entropy.*dlr.*margin"),
    ("pgd", dict(optimizer=3), "pgd: optimizer=3.*adam.*GradientTransformation"),
    ("pgd", dict(keep="first"), "pgd: keep='first' is unknown.*best.*highest_loss.*last"),
    ("pgd", dict(restarts=2, random_start=False), "pgd: restarts=2 repeat the same run without random_start"),
    ("spsa", dict(early_stop=True, keep="last"), "spsa: early_stop"),
    ("apgd", dict(rho=1.5), "apgd: rho=1.5 must be at most 1"),
    ("apgd", dict(rho=float("nan")), "apgd: rho=nan"),
    ("carlini_wagner", dict(threat=L2, learning_rate=-0.1), "carlini_wagner: learning_rate=-0.1 must be above 0"),
    ("carlini_wagner", {}, "carlini_wagner: norm='linf'.*deepfool"),
    ("square", dict(p_init=1.5), "square: p_init=1.5 must be at most 1"),
    ("grid", dict(points=(3, 3)), r"grid: points=\(3, 3\)"),
    ("auto_attack", dict(version="best"), "auto_attack: version='best'.*plus.*rand.*standard"),
]


@pytest.mark.parametrize("name, options, message", BAD)
def test_errors_name_attack_value_and_what_was_expected(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        attacks.ATTACKS[name](MODEL, sample(), LABELS, **(dict(threat=ADDITIVE, key=KEY) | options))


def test_numpy_numbers_are_numbers():
    run = lambda **o: attacks.pgd(MODEL, sample(), LABELS, ADDITIVE, key=KEY, **o)  # noqa: E731
    found = run(steps=np.int64(2), step_size=np.float32(0.05), momentum=np.float64(0.5), early_stop=np.bool_(False))
    expected = run(steps=2, step_size=0.05, momentum=0.5)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    run(steps=1, step_size=jnp.full((1, 1, 2), 0.05))
    jax.jit(lambda size: run(steps=1, step_size=size))(-1.0)  # traced: no value yet


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_a_model_that_does_not_take_what_the_version_calls_it_with(version):
    model = MODEL if version == "rand" else lambda images, key: MODEL(images)
    called, other = ("(images, key)", "standard") if version == "rand" else ("(images)", "rand")
    with pytest.raises(ValueError) as error:
        attacks.auto_attack(model, sample(), LABELS, ADDITIVE, key=KEY, version=version)
    assert f"auto_attack: version='{version}' calls logits_fn{called}" in str(error.value)
    assert f"'{other}'" in str(error.value)


def test_an_attack_of_ones_own():
    @attack(family="black_box", cost=lambda options, problem: Cost(forwards=1, gradients=0))
    def darker(logits_fn, images, labels, threat, *, key, share: Fraction = 1.0):
        delta = threat_models.project(threat, -share * images)
        perturbed = clip_box(threat.perturbation.apply(images, delta))
        return AttackResult(perturbed, delta, losses.misclassified(logits_fn(perturbed), labels))

    images = sample()
    result = darker(MODEL, images, LABELS, ADDITIVE, key=KEY, share=0.5)
    np.testing.assert_allclose(result.images, images - np.minimum(0.5 * images, 0.1), atol=1e-6)
    np.testing.assert_array_equal(result.success, MODEL(result.images).argmax(-1) != LABELS)
    with pytest.raises(ValueError, match="darker: share=2 must be at most 1"):
        darker(MODEL, images, LABELS, ADDITIVE, key=KEY, share=2)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        darker(MODEL, images + 1, LABELS, ADDITIVE, key=KEY)
    assert inspect.signature(darker).parameters["share"].default == 1.0
    assert cost_of(darker, {}, Problem((4, 4, 2), 3, ADDITIVE)) == (1, 0)
    assert about(len) is None and about(darker).check is None


def test_a_loss_and_an_optimizer_are_given_by_name_in_a_config():
    given = dict(kind="pgd", loss="margin", optimizer="adam", steps=3)
    check_options("attacks.a", given, attacks.pgd)
    made = arguments(attacks.pgd, given)
    assert made["loss"] is losses.margin and callable(made["optimizer"]) and made["steps"] == 3
    with pytest.raises(ValueError, match="attacks.a.loss.*'hinge'.*margin"):
        check_options("attacks.a", given | {"loss": "hinge"}, attacks.pgd)
