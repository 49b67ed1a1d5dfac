"""Per-example accounting, on models whose robust accuracy is known in closed form."""

import dataclasses
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import robust_jax as rj
from robust_jax import losses
from robust_jax.attacks import AttackResult, carlini_wagner, pgd
from robust_jax.evaluation import trial
from robust_jax.evaluation.attack import Attack, Source
from robust_jax.evaluation.identity import attack_of
from robust_jax.evaluation.robustness import robustness
from robust_jax.evaluation.summary import summarise
from robust_jax.evaluation.table import threat_of
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
N, SIDE, CLASSES = 90, 4, 3
WEIGHTS = RNG.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
# Away from 0 and 1, so that no perturbation of 0.2 meets the box.
IMAGES = RNG.uniform(0.3, 0.7, (N, SIDE, SIDE, 1)).astype(np.float32)
MARGINS = IMAGES.reshape(N, -1) @ WEIGHTS
LABELS = np.where(RNG.random(N) < 0.9, MARGINS.argmax(1), RNG.integers(0, CLASSES, N)).astype(np.int32)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


MODEL = rj.model(linear, jnp.asarray(WEIGHTS))
MODEL_CORRECT = MARGINS.argmax(1) == LABELS


def cut(size, images=IMAGES, labels=LABELS):
    """The examples in batches of one size, the last one padded with wrongly labelled rubbish."""
    for start in range(0, len(images), size):
        index = np.arange(start, start + size)
        real = index < len(images)
        index = np.minimum(index, len(images) - 1)
        label = np.where(real, labels[index], 0).astype(np.int32)
        yield {"image": images[index], "label": label, "id": index, "mask": real}


def exact_robust(radius):
    """A linear classifier keeps class y on the linf ball iff every margin exceeds radius * its l1 norm."""
    robust = np.ones(N, bool)
    for k in range(CLASSES):
        gap = WEIGHTS[:, LABELS].T - WEIGHTS[:, k]
        margin = (IMAGES.reshape(N, -1) * gap).sum(1) - radius * np.abs(gap).sum(1)
        robust &= (margin > 0) | (k == LABELS)
    return robust


def margin_attack(radius, **settings):
    # With three classes the worst point is the best of two; the margin's ascent finds either.

    return Attack(
        pgd,
        ThreatModel("additive", "linf", radius),
        dict(steps=10, restarts=8, loss=losses.margin) | settings,
        curve=(0, 0.5, 1, 2),
    )


def test_linear_model_has_the_robust_accuracy_of_the_closed_form():
    radius = 0.08
    measured = robustness(MODEL, cut(32), {"a": margin_attack(radius)}, key=jax.random.key(0))
    outcome = measured.attacks["a"]
    for multiple in (0.5, 1, 2):
        np.testing.assert_array_equal(~outcome.curve[multiple], exact_robust(multiple * radius))
    assert 0.1 < exact_robust(radius).mean() < 0.8  # the case is not trivial
    np.testing.assert_array_equal(outcome.broken, outcome.curve[1.0])
    np.testing.assert_array_equal(outcome.curve[0.0], ~measured.correct)
    np.testing.assert_array_equal(measured.correct, MARGINS.argmax(1) == LABELS)
    np.testing.assert_array_equal(measured.id, np.arange(N))
    assert outcome.size.max() <= 1.0001 and outcome.excess.max() < 1e-6
    assert summarise(measured)["warnings"] == []


def test_a_transfer_attack_is_made_on_its_source_and_scored_on_the_model():
    other = rj.model(linear, MODEL.weights + RNG.normal(size=WEIGHTS.shape).astype(np.float32))
    options = dict(key=jax.random.key(0))
    run = lambda model, attack: robustness(model, cut(32), {"a": attack}, **options).attacks["a"]  # noqa: E731
    attack = dataclasses.replace(margin_attack(0.08), curve=())
    own, there = run(MODEL, attack), run(other, attack)
    moved = run(MODEL, dataclasses.replace(attack, source=Source("other", other)))
    np.testing.assert_array_equal(moved.sample["adversarial"], there.sample["adversarial"])
    logits = MODEL(moved.sample["adversarial"])
    np.testing.assert_array_equal(moved.sample["adversarial_predictions"], logits.argmax(-1))
    assert (~MODEL_CORRECT).sum() < moved.broken.sum() < own.broken.sum()
    assert not (moved.broken & ~own.broken).any()  # the white box finds all that is there, see above
    assert moved.attack.all_settings()["source"] == "other"


def random_point(logits_fn, images, labels, threat, *, key):
    """An attack whose outcome depends on nothing but the drawn numbers."""
    delta = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:], minval=-1))(key)
    delta = delta * threat.radius
    return SimpleNamespace(images=images + delta, delta=delta)


@pytest.mark.parametrize("size", [7, 90, 200])
def test_the_cut_into_batches_and_the_other_attacks_do_not_change_the_draw(size):
    attack = Attack(random_point, ThreatModel("additive", "linf", 0.2))
    other = Attack(random_point, ThreatModel("additive", "linf", 0.1))
    reference = robustness(MODEL, cut(30), {"a": attack}, key=jax.random.key(1)).attacks["a"]
    again = robustness(MODEL, cut(size), {"b": other, "a": attack}, key=jax.random.key(1)).attacks
    np.testing.assert_allclose(again["a"].loss, reference.loss, rtol=1e-5)
    np.testing.assert_array_equal(again["a"].broken, reference.broken)
    elsewhere = robustness(MODEL, cut(30), {"a": attack}, key=jax.random.key(2)).attacks["a"]
    assert not np.allclose(elsewhere.loss, reference.loss)
    assert not np.allclose(again["b"].size, reference.size)  # a name has a draw of its own


def test_one_compilation_for_all_radii_step_sizes_and_weights():
    traces = []

    def counted(weights, images):
        traces.append(1)
        return linear(weights, images)

    seen = []
    for seed in range(3):
        model = rj.model(counted, jnp.asarray(WEIGHTS) * (1 + seed))
        for radius, step_size in ((0.1, 0.02), (0.2, 0.01)):
            settings = dict(steps=3, step_size=step_size)
            attack = Attack(pgd, ThreatModel("additive", "linf", radius), settings, (0.5, 2.0))
            robustness(model, cut(30), {"a": attack}, key=jax.random.key(0))
            seen.append(len(traces))
    assert set(np.diff(seen)) == {3}  # each of three batches asks for the shape of its logits


def test_an_attack_of_ones_own_compiles_once_for_a_curve_and_all_batches():
    traces = []

    def counted(logits_fn, images, labels, threat, *, key, steps):
        traces.append(1)
        return pgd(logits_fn, images, labels, threat, key=key, steps=steps)

    attack = Attack(counted, ThreatModel("additive", "linf", 0.1), dict(steps=3), (0.5, 2.0))
    robustness(MODEL, cut(30), {"a": attack}, key=jax.random.key(0))
    assert len(traces) == 1


def test_the_step_scales_with_the_radius_along_a_curve():
    threat = ThreatModel("additive", "linf", 0.1)
    settings = dict(steps=1, step_size=0.05, random_start=False, keep="last")
    attack = Attack(pgd, threat, settings, curve=(0.1, 1, 1.5))
    measured = robustness(MODEL, cut(30), {"a": attack}, key=jax.random.key(0))
    # One step of half the radius from 0 ends at half the radius, whatever the radius.
    np.testing.assert_allclose(measured.attacks["a"].size, 0.5, rtol=1e-5)


def test_images_are_measured_not_believed():
    def liar(logits_fn, images, labels, threat, *, key, push, claim):
        delta = jnp.full_like(images, claim)
        return SimpleNamespace(images=images + push, delta=delta, success=jnp.ones(len(images), bool))

    def warnings(**settings):
        attack = Attack(liar, ThreatModel("additive", "linf", 0.1), settings)
        measured = robustness(MODEL, cut(30), {"liar": attack}, key=jax.random.key(0))
        # It claims success everywhere; a constant shift of a few is what counts.
        shifted = (IMAGES + settings["push"]).reshape(N, -1) @ WEIGHTS
        expected = (shifted.argmax(1) != LABELS) | (MARGINS.argmax(1) != LABELS)
        np.testing.assert_array_equal(measured.attacks["liar"].broken, expected)
        return summarise(measured)["warnings"]

    assert warnings(push=0.1, claim=0.1) == []
    assert "left its ball" in warnings(push=0.15, claim=0.15)[0]
    assert "differs" in warnings(push=0.2, claim=0.1)[0]


def test_non_finite_logits_count_as_wrong_and_are_reported():
    def broken_model(images):
        logits = linear(WEIGHTS, images)
        return jnp.where(images[:, 0, 0] > 0.5, jnp.nan, logits)

    bad = IMAGES[:, 0, 0, 0] > 0.5
    measured = robustness(broken_model, cut(30), {}, key=jax.random.key(0))
    assert bad.any() and not measured.correct[bad].any()
    assert (measured.prediction[bad] == -1).all()
    assert f"{bad.sum()} examples have non-finite logits" in summarise(measured)["warnings"][0]


def test_attacks_call_broken_what_robustness_counts_as_broken():
    model = lambda images: jnp.full((len(images), CLASSES), jnp.nan)  # noqa: E731
    attack, ball = dict(steps=2, restarts=1), ThreatModel("additive", "linf", 0.1)
    images, labels = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    found = pgd(model, images, labels, ball, key=jax.random.key(0), **attack)
    measured = robustness(model, cut(N), {"a": Attack(pgd, ball, attack)}, key=jax.random.key(0))
    np.testing.assert_array_equal(found.success, measured.attacks["a"].broken)
    assert found.success.all() and not measured.correct.any() and set(LABELS.tolist()) == set(range(CLASSES))
    aimed = pgd(model, images, labels, ball, key=jax.random.key(0), targeted=True, **attack)
    assert not aimed.success.any() and np.isfinite(aimed.images).all()


def test_bytes_and_defaults_of_a_batch():
    images = np.rint(IMAGES * 255).astype(np.uint8)
    calls = []
    measured = robustness(
        MODEL,
        [{"image": images[:50], "label": LABELS[:50]}, {"image": images[50:], "label": LABELS[50:]}],
        {},
        key=jax.random.key(0),
        progress=lambda *call: calls.append(call),
    )
    np.testing.assert_array_equal(measured.id, np.arange(N))
    expected = (images.reshape(N, -1) / 255 @ WEIGHTS).argmax(1)
    np.testing.assert_array_equal(measured.prediction, expected)
    assert [call[2] for call in calls] == [50, N - 50]
    assert sum(call[1] for call in calls) == measured.correct.sum()


def test_sample_shows_the_first_example_of_each_class():
    measured = robustness(MODEL, cut(32), {"a": margin_attack(0.01)}, key=jax.random.key(0))
    sample = measured.attacks["a"].sample
    np.testing.assert_array_equal(sample["labels"], np.arange(CLASSES))
    first = [int(np.flatnonzero(k == LABELS)[0]) for k in range(CLASSES)]
    np.testing.assert_array_equal(sample["clean"], IMAGES[first])
    np.testing.assert_allclose(sample["adversarial"], IMAGES[first] + sample["delta"], atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="no example"):
        robustness(MODEL, [], {}, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        robustness(MODEL, cut(30, images=IMAGES * 255), {}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="attacks.clean: .*another"):
        robustness(MODEL, cut(30), {"clean": margin_attack(0.01)}, key=jax.random.key(0))
    ball = ThreatModel("additive", "linf", 0.1)
    with pytest.raises(ValueError, match=r"curve=\(-1.0,\): give multiples >= 0"):
        Attack(pgd, ball, {}, (-1.0,))
    # What a config refuses an Attack refuses too.
    for settings, message in (
        ({"targeted": True}, "targeted=True: .*true labels only, which are no targets"),
        ({"step": 3}, r"pgd has no option \['step'\]: valid are .*'restarts'.*'steps'"),
        ({"steps": 2.5}, "pgd: steps=2.5"),
        ({"steps": 0}, "pgd: steps=0 must be at least 1"),
        ({"keep": "bset"}, "pgd: keep='bset'.*Did you mean 'best'"),
    ):
        with pytest.raises(ValueError, match=message):
            Attack(pgd, ball, settings)
    with pytest.raises(ValueError, match="carlini_wagner: norm='linf'"):
        Attack(carlini_wagner, ball)
    assert Attack(pgd, ball, {"targeted": False}).settings == {"targeted": False}
    with pytest.raises(ValueError, match="targeted=True: .*true labels only"):
        Attack(lambda *a, **b: pgd(*a, **b), ball, {"targeted": True})


def test_an_attack_of_ones_own_returns_a_result():
    def mine(logits_fn, images, labels, threat, *, key):
        return images, jnp.zeros_like(images)

    with pytest.raises(
        ValueError, match=r"mine returned a tuple: return robust_jax.attacks.AttackResult\(images, delta"
    ):
        robustness(MODEL, cut(30), {"mine": Attack(mine, ThreatModel("additive", "linf", 0.1))}, key=jax.random.key(0))


def test_arrays_round_trip(tmp_path):
    measured = robustness(MODEL, cut(32), {"a": margin_attack(0.01)}, key=jax.random.key(0))
    np.savez(tmp_path / "x.npz", **measured.arrays())
    with np.load(tmp_path / "x.npz") as stored:
        np.testing.assert_array_equal(stored["a/broken"], measured.attacks["a"].broken)
        np.testing.assert_array_equal(stored["a/curve_multiple"], [0, 0.5, 1, 2])
        assert stored["a/curve_broken"].shape == (4, N)


def test_takes_plain_functions_and_pytrees_alike():
    plain = robustness(partial(linear, WEIGHTS), cut(30), {}, key=jax.random.key(0))
    tree = robustness(MODEL, cut(30), {}, key=jax.random.key(0))
    np.testing.assert_array_equal(plain.prediction, tree.prediction)


@pytest.mark.parametrize("size", [16, 90])
def test_the_worst_case_alone_is_the_same_and_shows_each_attack_what_is_left(size):
    attacks = {"small": margin_attack(0.04), "large": margin_attack(0.08), "tiny": margin_attack(0.01)}
    calls = []
    every = robustness(MODEL, cut(size), attacks, key=jax.random.key(0))
    short = robustness(
        MODEL, cut(size), attacks, key=jax.random.key(0), worst_case_only=True, progress=lambda *c: calls.append(c)
    )
    assert summarise(short)["worst_case"] == summarise(every)["worst_case"]
    small, large = exact_robust(0.04), exact_robust(0.08)
    entries = summarise(short)["attacks"]
    seen = [every.correct.sum(), small.sum(), large.sum()]
    assert [e["seen"] for e in entries.values()] == seen and 0 < seen[2] < seen[1] < seen[0] < N
    assert [e["after"] for e in entries.values()] == [[], ["small"], ["small", "large"]]
    assert [e["n"] for e in entries.values()] == [N] * 3
    # Under it and those before it: the last one, which breaks nothing more, has the worst case's.
    assert [e["accuracy"] for e in entries.values()] == [small.mean(), large.mean(), large.mean()]
    assert "curve" not in entries["small"] and summarise(short)["warnings"] == []
    # What was seen is as in the whole evaluation; the rest is as it is clean.
    one, other = short.attacks["large"], every.attacks["large"]
    np.testing.assert_allclose(one.loss[small], other.loss[small], rtol=1e-4)
    np.testing.assert_array_equal(one.loss[~small], short.loss[~small])
    assert (one.size[~small] == 0).all() and one.broken[~small].all()
    np.testing.assert_array_equal(short.arrays()["large/seen"], small)
    assert sum(call[2] for call in calls) == 4 * N


def test_an_attack_that_has_nothing_left_to_see():
    attacks = {"all": margin_attack(0.3), "none": margin_attack(0.3)}
    measured = robustness(MODEL, cut(32), attacks, key=jax.random.key(0), worst_case_only=True)
    entry = summarise(measured)["attacks"]["none"]
    assert (entry["seen"], entry["accuracy"], entry["largest"]["size"]) == (0, 0, 0)
    assert measured.attacks["none"].sample == {}


def test_numbers_do_not_depend_on_the_memory(monkeypatch):
    module = sys.modules["robust_jax.evaluation.robustness"]  # the package has the function under that name
    expected = robustness(MODEL, cut(32), {"a": margin_attack(0.08)}, key=jax.random.key(0))
    attacked, clean, sizes = trial.attacked, module._clean, []

    def small(original):
        def run(*given):
            images = given[1]["image"] if isinstance(given[1], dict) else given[1]
            sizes.append(len(images))
            if sizes[-1] > 10:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
            return original(*given)

        return run

    monkeypatch.setattr(trial, "attacked", small(attacked))
    monkeypatch.setattr(module, "_clean", small(clean))
    found = robustness(MODEL, cut(32), {"a": margin_attack(0.08)}, key=jax.random.key(0))
    assert sizes[:3] == [32, 16, 8] and sizes.count(32) == sizes.count(16) == 2  # clean, attacked
    for name, array in expected.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], array, rtol=1e-5, atol=1e-6)
    assert summarise(found)["attacks"]["a"]["curve"] == summarise(expected)["attacks"]["a"]["curve"]
    assert len(found.attacks["a"].sample["clean"]) == len(found.attacks["a"].sample["clean_predictions"]) > 0


@pytest.mark.parametrize("of_images, of_logits", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)])
def test_half_precision_is_measured_in_single(of_images, of_logits):
    model = jax.tree_util.Partial(lambda w, x: (x.reshape(len(x), -1) @ w).astype(of_logits), jnp.asarray(WEIGHTS))
    images = jnp.asarray(IMAGES[:30], of_images)
    measured = robustness(model, (images, LABELS[:30]), {"a": margin_attack(0.05)}, key=jax.random.key(0))
    outcome = measured.attacks["a"]
    assert measured.loss.dtype == outcome.loss.dtype == np.float32
    # A few roundings of single precision, not the 0.4% of half.
    assert outcome.size.max() <= 1 + 1e-5 and outcome.size.max() > 0.99


def test_radii_of_single_examples_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1, 1, 1\).*one radius, or one per entry"):
        Attack(pgd, ThreatModel("additive", "linf", np.full((4, 1, 1, 1), 0.1)))


def test_steps_per_axis_and_per_part():
    affine = ThreatModel("affine", "linf", (30.0, 1.0, 1.0))
    both = ThreatModel(("affine", "additive"), "linf", ((30.0, 1.0, 1.0), 0.05))
    attacks = {
        "axes": Attack(pgd, affine, {"steps": 2, "step_size": (5.0, 0.5, 0.5)}),
        "parts": Attack(pgd, both, {"steps": 2, "step_size": ((5.0, 0.5, 0.5), 0.01)}, np.array([0.5, 1.0])),
    }
    measured = robustness(MODEL, (IMAGES[:8], LABELS[:8]), attacks, key=jax.random.key(0))
    assert all(outcome.size.max() > 0.1 for outcome in measured.attacks.values())
    assert sorted(measured.attacks["parts"].curve) == [0.5, 1.0]


@pytest.mark.parametrize("adapted", [False, True])
def test_what_a_function_reads_is_read_at_each_evaluation(adapted):
    state = {"weights": WEIGHTS}

    def logits_fn(images):
        return linear(state["weights"], images)

    model = rj.model(logits_fn) if adapted else logits_fn
    attacks = {"a": margin_attack(0.02)}
    before = robustness(model, (IMAGES, LABELS), attacks, key=jax.random.key(0))
    state["weights"] = -WEIGHTS
    after = robustness(model, (IMAGES, LABELS), attacks, key=jax.random.key(0))
    np.testing.assert_array_equal(before.prediction, MARGINS.argmax(1))
    np.testing.assert_array_equal(after.prediction, MARGINS.argmin(1))
    assert (after.attacks["a"].broken != before.attacks["a"].broken).any()


def test_what_a_perturbation_or_attack_of_ones_own_reads_is_read_at_each_evaluation():
    strength = {"now": 0.0}

    def darkened(images, delta):
        return images * (1 - strength["now"] * jnp.abs(delta)[:, :, None, None])

    shade = Perturbation(lambda images: jnp.zeros((len(images), 1)), darkened, name="shade")

    def constant(logits_fn, images, labels, threat, *, key):
        delta = jnp.full_like(threat.perturbation.zeros(images), strength["now"])
        return AttackResult(images + delta, delta, jnp.zeros(len(images), bool))

    attacks = {
        "space": Attack(pgd, ThreatModel(shade, "linf", 1.0), {"steps": 1, "keep": "last"}),
        "attack": Attack(constant, ThreatModel("additive", "linf", 1.0)),
    }
    largest = []
    for strength["now"] in (0.0, 0.3):
        found = robustness(MODEL, (IMAGES, LABELS), attacks, key=jax.random.key(0)).attacks
        largest.append((found["space"].loss, found["attack"].size))
    (before, still), (after, moved) = largest
    assert (before != after).any() and (still == 0).all()
    np.testing.assert_allclose(moved, 0.3, rtol=1e-6)


def test_a_norm_may_be_a_whole_number_and_a_curve_an_array():
    threat = ThreatModel("additive", 2, 0.2)
    attack = Attack(pgd, threat, {"steps": 2}, curve=np.array([0.0, 1.0]))
    measured = robustness(MODEL, (IMAGES, LABELS), {"a": attack}, key=jax.random.key(0))
    found = summarise(measured)["attacks"]["a"]
    assert threat_of(found) == "additive l2 0.2" and attack_of(attack)["curve"] == [0.0, 1.0]


def test_attacks_may_come_from_a_config():
    config = ConfigDict({"shift": dict(kind="fgsm", perturbation="additive", norm="linf", radius=0.05)})
    found = robustness(MODEL, (IMAGES, LABELS), config, key=jax.random.key(0)).attacks["shift"]
    given = Attack(rj.attacks.fgsm, ThreatModel("additive", "linf", 0.05))
    again = robustness(MODEL, (IMAGES, LABELS), {"shift": given}, key=jax.random.key(0)).attacks["shift"]
    np.testing.assert_array_equal(found.broken, again.broken)


def test_attacks_whose_pictures_would_be_one_file_are_refused():
    two = {"r < 1": margin_attack(0.1), "r > 1": margin_attack(0.2)}
    with pytest.raises(ValueError, match="would write the same files"):
        robustness(MODEL, (IMAGES, LABELS), two, key=jax.random.key(0))


def test_options_that_are_partial_functions_tell_attacks_apart():
    threat = ThreatModel("additive", "linf", 0.1)
    one, two = (Attack(pgd, threat, {"optimizer": partial(optax.sgd, momentum=m)}) for m in (0.9, 0.1))
    assert attack_of(one) != attack_of(two)
    assert attack_of(one)["settings"]["optimizer"] == "sgd(momentum=0.9)"


def test_what_is_not_the_same_in_every_pass_is_refused():
    class Shuffled:
        """A loader that shuffles anew, as PyTorch's does."""

        draw = np.random.default_rng(0)

        def __iter__(self):
            order = self.draw.permutation(N)
            return iter([(IMAGES[order], LABELS[order])])

    attacks = {"pgd": Attack(pgd, ThreatModel("additive", "linf", 0.01), {"steps": 1})}
    with pytest.raises(ValueError, match="the second pass has other examples than the first: turn shuffling"):
        robustness(MODEL, Shuffled(), attacks, key=jax.random.key(0))

    class Augmented:
        """A loader that moves its images, in the same order."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(np.roll(IMAGES, self.passes, axis=2), LABELS)])

    with pytest.raises(ValueError, match="the second pass has other examples than the first: .* random augmentation"):
        robustness(MODEL, Augmented(), attacks, key=jax.random.key(0))
    twice = [{"image": IMAGES[:9], "label": LABELS[:9], "id": np.arange(9)}] * 2
    with pytest.raises(ValueError, match="two examples have the same id"):
        robustness(MODEL, twice, attacks, key=jax.random.key(0))


def test_an_outcome_of_another_attack_is_not_taken_for_this_one(caplog):
    def measured(radius, **more):
        attacks = {"pgd": Attack(pgd, ThreatModel("additive", "linf", radius), {"steps": 3})}
        return robustness(MODEL, (IMAGES, LABELS), attacks, key=jax.random.key(0), **more).attacks["pgd"]

    weak, strong = measured(1e-3), measured(0.2)
    again = measured(0.2, finished={"pgd": weak})
    np.testing.assert_array_equal(again.broken, strong.broken)
    assert "The stored outcome of pgd does not fit (it is of Attack(pgd" in caplog.text
    assert measured(0.2, finished={"pgd": dataclasses.replace(strong, seconds=99.0)}).seconds == 99.0
    caplog.clear()
    other = robustness(rj.model(linear, jnp.asarray(1.5 * WEIGHTS)), (IMAGES, LABELS), {"pgd": strong.attack},
                       key=jax.random.key(0), finished={"pgd": strong}).attacks["pgd"]  # fmt: skip
    assert "of a network with other weights" in caplog.text and (other.loss != strong.loss).any()


def test_a_source_with_other_classes_is_refused():
    fewer = rj.model(linear, jnp.asarray(WEIGHTS[:, :2]))
    attack = Attack(pgd, ThreatModel("additive", "linf", 0.2), {"steps": 3}, source=Source("fewer", fewer))
    with pytest.raises(ValueError, match="attacks.t: source='fewer' has 2 classes, and the model 3"):
        robustness(MODEL, (IMAGES, LABELS), {"t": attack}, key=jax.random.key(0))


def test_a_partial_function_is_its_function_and_settings():
    threat = ThreatModel("additive", "linf", 0.2)
    given = Attack(partial(partial(pgd, steps=5), restarts=2), threat, {"steps": 3})
    assert given == Attack(pgd, threat, {"steps": 3, "restarts": 2})
    assert given.all_settings()["attack"] == "pgd"
    with pytest.raises(ValueError, match="targeted=True"):
        Attack(partial(pgd, targeted=True), threat)
    assert Attack(rj.attacks.grid, ThreatModel("affine", "linf", (9, 1, 1)), {"points": [3, 3, 3]}).settings == {
        "points": (3, 3, 3)
    }
