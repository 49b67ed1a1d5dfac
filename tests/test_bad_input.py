"""A table of mistakes, generated over the whole public API: each is one error of the package that names its place.

Nothing compiles but the weights of one small model: what is wrong is found before, from values and shapes.
`benchmarks/reliability/bad_inputs.py` counts the same table.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from benchmarks.reliability import mistakes, mistakes_api, mistakes_runs
from benchmarks.reliability.mistakes import BALL, CLEAR, FUNCTIONS, IMAGES, KEY, LABELS, PLAIN, Plain, call, model
from robust_jax import attacks
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel


def check(run, names):
    """The call raises a ValueError or TypeError of the package, whose message names the place."""
    assert mistakes.outcome(mistakes.Case("", "", "", names, run))[0] == CLEAR


def all_clear(cases):
    """Every case ends in a clear error; the others are listed."""
    found = [(case, mistakes.outcome(case)) for case in cases]
    assert [(case.place, case.mistake, outcome) for case, outcome in found if outcome[0] != CLEAR] == []
    return len(found)


@pytest.mark.parametrize("name", mistakes.ATTACKS)
def test_every_attack_names_the_argument_that_is_wrong(name):
    assert all_clear(mistakes.of_attacks([name])) > 60


def test_every_penalty_names_the_argument_that_is_wrong():
    assert all_clear(mistakes.of_penalties()) > 200


@pytest.mark.parametrize("table", mistakes_api.TABLES)
def test_the_rest_of_the_api_names_the_argument_that_is_wrong(table):
    assert all_clear(mistakes_api.of(table)) > 10


def test_train_and_evaluate_name_the_key_or_argument_that_is_wrong(tmp_path):
    assert all_clear(mistakes_runs.of_runs(tmp_path / "runs")) > 500


def test_messages_name_the_way_out():
    for wrong, message in (
        (dict(images=np.full((2, 4, 4, 3), 1.0000002, np.float32)), "1.00000024.*rounding.*clip"),
        (dict(images=IMAGES * 255), "divide bytes by 255"),
        (dict(images=IMAGES - 1), "mean and std"),
        (dict(logits_fn=lambda x: model(x)[:, :1]), r"sigmoid.*jnp.stack\(\[0 \* z, z\], -1\)"),
        (dict(logits_fn=FUNCTIONS["numpy"]), "black_box"),
        (dict(logits_fn=Plain()), r"robust_jax.model\(module, variables\)"),
        (dict(logits_fn=PLAIN), r"takes no train: give lambda images: module.apply\(variables, images\)"),
    ):
        check(call(attacks.pgd, "pgd", **wrong), message)


def test_what_a_model_returns_is_checked_under_jit_too():
    for name in ("returns a tuple", "one logit", "fewer rows"):
        run = jax.jit(lambda x, y, name=name: attacks.fgsm(FUNCTIONS[name], x, y, BALL, key=KEY).images)
        with pytest.raises(ValueError, match="logits_fn"):
            run.lower(IMAGES, LABELS)


def test_channels_first_is_refused_where_pixels_move_and_can_be_insisted_on():
    turned = np.full((2, 3, 16, 16), 0.5, np.float32)
    mean = lambda x: x.mean((1, 2, 3))  # noqa: E731
    radii = {"flow": 1.0, "affine": (30.0, 1.0, 1.0), ("additive", "flow"): (0.1, 1.0)}
    for space, radius in radii.items():
        check(
            call(attacks.pgd, "pgd", images=turned, threat=ThreatModel(space, "linf", radius)),
            "channels first.*moveaxis",
        )
        check(partial(rj.gradient_norm, mean, turned, space), "channels first.*moves_pixels=False")
    meant = dataclasses.replace(flow, moves_pixels=False)
    for space, images in ((meant, turned), ("additive", turned), ("flow", np.zeros((2, 1, 6, 3), np.float32))):
        lowered = jax.jit(partial(rj.gradient_norm, mean, perturbation=space)).lower(images)
        assert lowered.out_info.shape == (2,)


def test_a_universal_delta_of_one_channel_is_not_spread_over_three():
    check(partial(attacks.apply_universal, BALL, IMAGES, np.zeros((1, 4, 4, 1))), r"delta.*\(4, 4, 1\).*\(4, 4, 3\)")
    both = ThreatModel(("flow", "additive"), "linf", (1.0, 0.1))
    check(partial(attacks.apply_universal, both, IMAGES, np.zeros((1, 4, 4, 3))), "delta")
    for target in ("cat", 1.0, [0, 1]):
        check(partial(attacks.universal_targeted, model, IMAGES, target, BALL, key=KEY), "target")


def test_batches_and_attacks_of_an_evaluation():
    batch = {"image": IMAGES, "label": LABELS}
    for batches, given, key, names in (
        ([IMAGES], {}, KEY, r"batches must be pairs \(images, labels\) or dicts"),
        ((IMAGES, LABELS[:1]), {}, KEY, "batches: its arrays have .1, 2. entries"),
        ([{"images": IMAGES, "labels": LABELS}], {}, KEY, "batches.*'images'"),
        ([batch], {"pgd": attacks.pgd}, KEY, r"attacks.pgd.*Attack\(function"),
        ([batch], {}, 0, "key"),
        ([batch | {"label": LABELS * 1.0}], {}, KEY, "labels"),
    ):
        check(partial(robustness, model, batches, given, key=key), names)
    for given, names in (
        (("pgd", BALL), "function"), ((attacks.pgd, "flow"), "threat"), ((attacks.pgd, BALL, [3]), "settings"),
        ((attacks.pgd, BALL, {}, ("x",)), "curve"),
    ):  # fmt: skip
        check(partial(Attack, *given), names)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_is_right_passes(dtype):
    images = jnp.asarray(IMAGES, dtype)
    run = partial(attacks.pgd, model, images, LABELS, BALL, key=KEY, steps=np.int64(2), restarts=np.int32(1))
    assert jax.eval_shape(run).images.dtype == dtype
