"""Which examples are drawn: the first of each class, and those whose loss rises most, whatever the batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import robust_jax as rj
from robust_jax.evaluation import drawn

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(size=(60, 4, 4, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
MODEL = rj.model(lambda w, x: x.reshape(len(x), -1) @ w, WEIGHTS)
LABELS = np.where(np.arange(60) % 7, np.asarray(MODEL(IMAGES).argmax(-1)), 0)
ATTACKS = {"step": dict(kind="fgsm", perturbation="additive", radius=0.1)}


def measured(batch_size, **options):
    return rj.robustness(MODEL, (IMAGES, LABELS), ATTACKS, key=jax.random.key(0), batch_size=batch_size, **options)


@pytest.fixture(scope="module")
def whole():
    return measured(60)


@pytest.mark.parametrize("size", [60, 13])
def test_the_hardest_are_those_of_all_examples_in_batches_of_any_size(size, whole):
    found = measured(size)
    outcome = found.attacks["step"]
    rise = np.where(outcome.broken & found.correct, outcome.loss - found.loss, -np.inf)
    expected = np.argsort(-rise)[: drawn.HARDEST]
    np.testing.assert_array_equal(outcome.hardest["id"], expected)
    np.testing.assert_allclose(outcome.hardest["rise"], rise[expected], rtol=1e-5)
    np.testing.assert_array_equal(outcome.hardest["clean"], IMAGES[expected])
    logits = MODEL(outcome.hardest["adversarial"])
    np.testing.assert_array_equal(outcome.hardest["adversarial_predictions"], logits.argmax(-1))
    np.testing.assert_array_equal(outcome.hardest["labels"], LABELS[expected])


def test_examples_come_back_from_their_file(tmp_path, whole):
    assert drawn.read(tmp_path) == {}
    drawn.write(tmp_path, whole, 2)
    kinds = drawn.read(tmp_path)["step"]
    assert set(kinds) == {"sample", "hardest"}
    assert kinds["sample"]["clean"].shape == (2, 4, 4, 1)
    outcome = whole.attacks["step"]
    np.testing.assert_allclose(kinds["hardest"]["adversarial"], outcome.hardest["adversarial"][:2], atol=5e-4)
    np.testing.assert_array_equal(kinds["hardest"]["id"], outcome.hardest["id"][:2])
    drawn.write(tmp_path, whole, 0)
    assert drawn.read(tmp_path) == {}


def test_a_flow_is_found_in_a_composition():
    flow, other = np.zeros((2, 4, 4, 2)), np.zeros((2, 4, 4, 1))
    assert drawn.flow_of((other, flow), (2, 4, 4, 1)) is flow and drawn.flow_of(flow, (2, 4, 4, 1)) is flow
    assert drawn.flow_of(other, (2, 4, 4, 1)) is None and drawn.flow_of((), (2, 4, 4, 1)) is None
