"""Points, terms and attacks of the user's own, named by ``module:name``, are completed and checked as built-in ones."""

import math

import jax
import jax.numpy as jnp
import pytest

from robust_jax import data
from robust_jax.config import base, complete
from robust_jax.config.build import build_attack, check_attack
from robust_jax.objectives import make_objective
from robust_jax.objectives.inputs import Model

# Without `from __future__ import annotations`: the annotations are objects, not strings.
PARTS = """
from typing import Literal

import jax.numpy as jnp
from robust_jax.attacks import AttackResult
from robust_jax.attacks.define import attack
from robust_jax.objectives import Point, PointOutput, point, term
from robust_jax.options import Count, Positive
from robust_jax.spaces.registry import Space
from robust_jax.spaces.threat_models import Threat


def darker(model, images, labels, keys, *, factor: Positive = 0.5, rule: Literal["scale", "shift"] = "scale"):
    return Point(images * factor if rule == "scale" else images - factor)


def _count(examples, classes, **options):
    return jnp.zeros(classes)


@point(memory=_count)
def remembering(model, images, labels, keys, *, memory, steps_done, threat: Threat, steps: Count = 2):
    return Point(images, threat.perturbation.zeros(images), memory + 1)


def distance(point, *, reference: PointOutput, scale: float = 1.0, perturbation: Space = "additive"):
    if scale > 10:
        raise ValueError(f"scale={scale} is larger than 10.")
    return scale * jnp.abs(point.logits - reference.logits).sum(-1)


@term(classifies=True)
def smallest(point):
    return point.loss


def wrong(point):
    return point.logits.argmax(-1) != point.labels


def total(point):
    return point.loss.sum()


def wrong_arguments(point, other):
    return point.loss


@attack(family="black_box")
def negative(logits_fn, images, labels, threat, *, key, count: Count = 1, mode: Literal["all", "none"] = "all"):
    if count > 5:
        raise ValueError(f"count={count} is larger than 5.")
    return AttackResult(1 - images, 1 - 2 * images, logits_fn(1 - images).argmax(-1) != labels)


def plain(logits_fn, images, labels, threat, *, key, count: Count = 1):
    return AttackResult(images, jnp.zeros_like(images), logits_fn(images).argmax(-1) != labels)


def needs_large_images(logits_fn, images, labels, threat, *, key):
    return plain(logits_fn, jnp.broadcast_to(images, (len(images), 999, 999, 1)), labels, threat, key=key)
"""


@pytest.fixture(scope="module", autouse=True)
def own_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts_of_a_test.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def own(name):
    return f"own_parts_of_a_test:{name}"


def config(**changes):
    c = base()
    c.points.dark = dict(kind=own("darker"))
    c.points.kept = dict(kind=own("remembering"), perturbation="flow", radius="1/8")
    c.terms.ce = dict(kind="cross_entropy", at="kept")
    c.terms.far = dict(kind=own("distance"), at="dark", reference="clean", scale=2)
    c.attacks.negative = dict(kind=own("negative"), perturbation="additive", radius=1)
    c.attacks.plain = dict(kind=own("plain"), perturbation="additive", radius=1)
    for path, value in changes.items():
        section, name, option = path.split("__")
        with c.ignore_type():
            c[section][name][option] = value
    return c


def test_complete_fills_in_their_defaults():
    c = complete(config())
    assert c.points.dark.to_dict() == {"kind": own("darker"), "factor": 0.5, "rule": "scale"}
    assert c.points.kept.to_dict() == {
        "kind": own("remembering"), "perturbation": "flow", "norm": "linf", "radius": 0.125, "steps": 2
    }  # fmt: skip
    assert (c.terms.far.scale, c.terms.far.weight, c.terms.far.at) == (2.0, 1.0, "dark")
    assert (c.attacks.negative.count, c.attacks.negative.mode, c.attacks.plain.count) == (1, "all", 1)
    assert complete(c).to_dict() == c.to_dict()


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("terms__far__reference", "darkest", r"terms.far.reference='darkest' is unknown.*'clean', 'dark', 'kept'.*Did"),
        ("terms__far__scale", "big", "terms.far.scale='big' is of type str, not float"),
        ("points__dark__rule", "scal", "points.dark.rule='scal' is unknown.*'scale', 'shift'.*Did you mean 'scale'"),
        ("points__dark__factor", 0.0, "points.dark.factor=0.0 must be above 0"),
        ("points__kept__steps", 1.5, "points.kept.steps=1.5 is of type float, not int"),
        ("points__kept__radius", -1.0, "points.kept.radius=-1.0 must be at least 0"),
        ("points__dark__fcator", 0.5, r"points.dark .* has no option \['fcator'\]: valid are \['factor', 'kind'"),
        ("terms__far__scale", 11.0, "terms.far: scale=11.0 is larger than 10"),
        ("terms__far__perturbation", "flw", "terms.far.perturbation='flw' is unknown"),
        ("terms__ce__kind", own("total"), r"terms.ce: it returned float32 \(\): return one number per example"),
        ("terms__ce__kind", own("wrong"), "terms.ce: it returned bool .*return floats, which have a gradient"),
        ("terms__ce__kind", own("entropy"), "terms.ce.kind=.*cannot be imported.*entropy"),
        ("attacks__negative__count", 0, "attacks.negative.count=0 must be at least 1"),
        ("attacks__negative__count", 6, "attacks.negative: count=6 is larger than 5"),
        ("attacks__negative__mode", "some", "attacks.negative.mode='some' is unknown.*'all', 'none'"),
        ("attacks__plain__count", 0, "attacks.plain.count=0 must be at least 1"),
        ("attacks__plain__kind", own("nothing"), "attacks.plain.kind=.*cannot be imported"),
        ("attacks__plain__kind", "nowhere:nothing", "attacks.plain.kind='nowhere:nothing' cannot be imported"),
    ],
)
def test_their_mistakes(path, value, message):
    with pytest.raises(ValueError, match=message):
        complete(config(**{path: value}))


def test_a_term_of_weight_0_and_an_unused_point_are_checked_too():
    c = config(terms__far__weight=0.0, terms__far__scale=11.0)
    with pytest.raises(ValueError, match="terms.far: scale=11.0"):
        complete(c)
    c = config(terms__far__at="clean", points__kept__norm="l9")
    with pytest.raises(ValueError, match="points.kept: .*l9"):
        complete(c)


def test_what_a_library_says_of_nominal_shapes_waits_for_the_real_ones():
    c = config(attacks__negative__kind=own("needs_large_images"))
    complete(c)
    spec = c.attacks.negative.to_dict()
    with pytest.raises(ValueError, match="attacks.negative: .*999"):
        check_attack("attacks.negative", spec, (8, 8, 1), 10)


def test_a_bug_in_a_part_keeps_its_traceback():
    with pytest.raises(TypeError, match="positional argument"):
        complete(config(terms__ce__kind=own("wrong_arguments")))


def test_an_objective_of_their_own():
    points = {"kept": dict(kind=own("remembering"), perturbation="additive", radius=0.1)}
    terms = {"a": dict(kind="kl_divergence", at="kept", reference="clean"), "b": dict(kind=own("smallest"), at="kept")}
    objective = make_objective(points, terms)
    images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
    model = Model(lambda x: (x.reshape(2, -1)[:, :3], {"at": x.mean()}), lambda x: x.reshape(2, -1)[:, :3])
    memory = objective.remember(lambda n: (images[:n], labels[:n]), 3)
    assert memory["kept"].shape == (3,)
    found = objective.find(model, images, labels, jax.random.split(jax.random.key(0), 2), memory, 0)
    assert (found["kept"].memory == 1).all()
    total, outcome = objective.loss(model, found, labels)
    # The point is the clean image: no divergence; and its three logits are equal.
    assert outcome.terms == {"a": pytest.approx(0, abs=1e-6), "b": pytest.approx(math.log(3), rel=1e-5)}
    assert float(total) == pytest.approx(math.log(3), rel=1e-5)


def test_an_attack_is_built_from_its_entry():
    spec = dict(kind=own("negative"), perturbation=["flow", "additive"], radius=["1/4", 0.1], curve=["1/2", 2], count=3)
    function, threat, settings, curve, source = build_attack("attacks.a", spec)
    assert function.__name__ == "negative" and settings == {"count": 3} and curve == (0.5, 2) and source == ""
    assert threat.perturbation.name == "flow+additive"
    assert threat.radius == (0.25, 0.1) and threat.norm == ("linf", "linf")


def test_datasets_have_the_shapes_of_their_configs():
    from robust_jax.config.defaults import nominal_shape

    dataset = data.load("digits")
    assert nominal_shape(base("digits")) == (dataset.image_shape, dataset.num_classes)
    assert nominal_shape(base("my_data:photos")) == ((32, 32, 3), 1000)
    c = base("my_data:photos")
    c.model.mean, c.model.std = (0.5, 0.5), (1.0, 1.0)
    assert nominal_shape(c)[0] == (32, 32, 2)
