"""What objects say of themselves: one short line, without arrays and addresses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax import data
from robust_jax.attacks import AttackResult, pgd
from robust_jax.evaluation import Attack, robustness
from robust_jax.options import shown

IMAGES = jnp.full((6, 8, 8, 1), 0.5)
LABELS = jnp.arange(6) % 2
FLOW = rj.ThreatModel("flow", "linf", 0.155)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)


def logits_fn(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def measured():
    attacks = {"flow": Attack(pgd, FLOW, {"steps": 1})}
    return robustness(logits_fn, (IMAGES, LABELS), attacks, key=jax.random.key(0))


def bound():
    model = rj.models.create("mlp", num_classes=2)
    return rj.bind(model, model.init(jax.random.key(0), IMAGES))


def train_state():
    from robust_jax.training.step import TrainState

    return TrainState(jnp.asarray(12345), {"w": WEIGHTS}, *[{}] * 4, *[jnp.zeros(())] * 3)


SAID = {
    "ThreatModel('flow', norm='linf', radius=0.155)": lambda: FLOW,
    "ThreatModel('additive', norm='linf', radius=0.03137)": lambda: rj.ThreatModel("additive", "linf", 8 / 255),
    "ThreatModel('affine', norm='linf', radius=(30, 3, 3))": lambda: rj.ThreatModel("affine", "linf", (30, 3, 3)),
    "ThreatModel(('flow', 'additive'), norm=('linf', 'l2'), radius=(0.25, 1))": lambda: rj.ThreatModel(
        ("flow", "additive"), ("linf", "l2"), (0.25, 1)
    ),
    "Perturbation('flow', unit='px')": lambda: FLOW.perturbation,
    "Perturbation('additive')": lambda: rj.perturbations.additive,
    "AttackResult(images [6, 8, 8, 1], delta ([6, 8, 8, 2], [6, 1]), success 3 of 6)": lambda: AttackResult(
        IMAGES, (jnp.zeros((6, 8, 8, 2)), jnp.zeros((6, 1))), LABELS > 0
    ),
    "Attack(pgd, ThreatModel('flow', norm='linf', radius=0.155), steps=20)": lambda: Attack(pgd, FLOW, {"steps": 20}),
    "PerExample(6 examples: clean 50.0%, flow 50.0%)": measured,
    "Source('test', 5 images of 8×8×1, 2 classes)": lambda: data.Source.from_arrays(
        np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 2, num_classes=2, name="test"
    ).subset(np.arange(5)),
    "BoundModel(MLP, 284,002 numbers)": bound,
    "TrainState(step 12345, 128 numbers)": train_state,
}


@pytest.mark.parametrize("text", SAID)
def test_objects_say_what_they_are_in_a_line(text):
    assert repr(SAID[text]()) == text


def test_an_outcome_says_its_attack_and_how_many_withstood_it():
    text = repr(measured().attacks["flow"])
    assert text.startswith("Outcome(Attack(pgd, ") and "robust 3 of 6" in text


def test_while_jax_traces_shapes_are_said_and_no_values_are_needed():
    seen = []

    @jax.jit
    def traced(radius):
        threat = rj.ThreatModel("flow", "linf", radius)
        seen.extend([repr(threat), repr(pgd(logits_fn, IMAGES, LABELS, threat, key=jax.random.key(0), steps=1))])
        return radius

    traced(0.1)
    assert "radius=" in seen[0] and "success [6]" in seen[1] and all("\n" not in text for text in seen)


def test_numbers_are_rounded_and_counted():
    assert shown.short(np.float32(0.1)) == "0.1" and shown.short((1 / 3, 2)) == "(0.3333, 2)"
    assert shown.numbers({"a": np.zeros((100, 20)), "b": np.zeros(())}) == "2,001 numbers"
