"""Intervals against published values, and the accounting of hand-made outcomes."""

import json

import numpy as np
import pytest

from robust_jax import losses
from robust_jax.attacks import pgd
from robust_jax.evaluation.robustness import Attack, Outcome, PerExample
from robust_jax.evaluation.statistics import wilson_interval
from robust_jax.evaluation.summary import summarise
from robust_jax.spaces.threat_models import ThreatModel


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Table I, method 3 (the score interval without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(successes, n, low, high):
    np.testing.assert_allclose(wilson_interval(successes, n), (low, high), atol=5.1e-5)
    mirrored = wilson_interval(n - successes, n)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=5.1e-5)


def test_wilson_interval_solves_the_score_equation():
    # Its ends are the p with |p̂ - p| = z sqrt(p (1 - p) / n).
    for end in wilson_interval(30, 100, confidence=0.99):
        assert abs(0.3 - end) == pytest.approx(2.5758293 * (end * (1 - end) / 100) ** 0.5, rel=1e-6)


def test_wilson_interval_is_the_formula():
    z = 1.959963984540054
    for successes, n in ((0, 1), (1, 1), (3, 7), (0, 50), (999, 1000), (5000, 10_000)):
        p = successes / n
        half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        expected = [(p + z * z / (2 * n) + side) / (1 + z * z / n) for side in (-half, half)]
        np.testing.assert_allclose(wilson_interval(successes, n), expected, rtol=0, atol=1e-12)


def test_wilson_interval_edges():
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(7, 7)[1] == 1
    for bad in ((5, 4), (-1, 4), (1, 4, 1.0)):
        with pytest.raises(ValueError, match="wilson_interval"):
            wilson_interval(*bad)


def outcome(broken, threat=None, curve=None, settings=None, size=1.0, excess=0.0):
    n = len(broken)
    threat = threat or ThreatModel("flow", "linf", 0.155)
    broken = np.asarray(broken, bool)
    curve = {m: np.asarray(b, bool) for m, b in (curve or {}).items()}
    attack = Attack(pgd, threat, settings or {}, tuple(curve))
    constant = [np.full(n, v) for v in (0, 1.0, size, excess)]
    return Outcome(attack, broken, *constant, curve=curve, seconds=1.0, sample={})


def measured(correct, attacks):
    n = len(correct)
    label = np.arange(n) % 2
    prediction = np.where(np.asarray(correct, bool), label, label + 1)
    return PerExample(np.arange(n), label, prediction, np.zeros(n), attacks)


def test_worst_case_is_point_wise():
    # Each attack leaves half of the examples, and together they leave one in six.
    one = outcome([1, 1, 1, 0, 0, 0])
    two = outcome([1, 0, 0, 1, 1, 0])
    summary = summarise(measured([0, 1, 1, 1, 1, 1], {"one": one, "two": two}))
    assert summary["clean"]["accuracy"] == pytest.approx(5 / 6)
    assert [a["accuracy"] for a in summary["attacks"].values()] == [0.5, 0.5]
    assert summary["worst_case"]["accuracy"] == pytest.approx(1 / 6)
    assert summary["worst_case"]["attacks"] == ["one", "two"]
    # Labels alternate 0, 1, and the last one, which survives, has label 1.
    per_class = summary["worst_case"]["per_class"]
    assert (per_class["0"]["accuracy"], per_class["1"]["accuracy"]) == (0, pytest.approx(1 / 3))
    assert per_class["0"]["n"] == per_class["1"]["n"] == 3
    np.testing.assert_allclose(summary["worst_case"]["interval"], wilson_interval(1, 6))


def test_without_attacks_the_worst_case_is_clean():
    summary = summarise(measured([1, 1, 0, 1], {}))
    assert summary["worst_case"]["accuracy"] == summary["clean"]["accuracy"] == 0.75


def test_layout_and_settings_as_json():
    curve = {0.0: [0, 0, 1, 0], 1.0: [0, 1, 1, 0], 1.5: [1, 1, 1, 0]}
    attacks = {
        "flow": outcome(curve[1.0], curve=curve, settings=dict(steps=20, restarts=3)),
        "turn": outcome(curve[1.0], ThreatModel("affine", float("inf"), (30.0, 3.0, 3.0))),
    }
    summary = json.loads(json.dumps(summarise(measured([1, 1, 0, 1], attacks)), allow_nan=False))
    assert set(summary) == {"clean", "attacks", "worst_case", "warnings"}
    assert {"accuracy", "interval", "n", "per_class"} <= set(summary["clean"])
    flow, turn = summary["attacks"]["flow"], summary["attacks"]["turn"]
    wanted = {"accuracy", "interval", "n", "per_class", "threat", "settings", "seconds", "largest"}
    assert set(flow) == wanted | {"curve"} and set(turn) == wanted
    assert flow["threat"] == {"perturbation": "flow", "norm": "linf", "radius": 0.155, "unit": "px per axis"}
    assert turn["threat"]["norm"] == "linf" and turn["threat"]["radius"] == [30, 3, 3]
    # What was not set is there with its default.
    assert (flow["settings"]["steps"], flow["settings"]["restarts"]) == (20, 3)
    assert flow["settings"]["loss"] == losses.cross_entropy.__name__
    assert flow["settings"]["random_start"] is True and flow["settings"]["attack"] == "pgd"
    assert turn["settings"]["steps"] == 40
    assert flow["curve"]["radius"] == [0, 0.155, 0.2325]
    assert flow["curve"]["accuracy"] == [0.75, 0.5, 0.25]
    assert flow["curve"]["accuracy"][0] == summary["clean"]["accuracy"]
    np.testing.assert_allclose(flow["curve"]["interval"][1], wilson_interval(2, 4))


def test_a_curve_that_rises_beyond_noise_is_reported():
    n = 100
    correct = np.ones(n)

    def warnings(won, lost):
        low, high = np.zeros((2, n), bool)
        low[:won] = True
        high[won : won + lost] = True
        curve = {1.0: low, 2.0: high}
        return summarise(measured(correct, {"a": outcome(low, curve=curve)}))["warnings"]

    assert "2 x the radius breaks 10 examples fewer than 1 x" in warnings(won=10, lost=0)[0]
    assert warnings(won=10, lost=9) == []  # noise
    assert warnings(won=3, lost=0) == []  # too few to tell
    assert warnings(won=0, lost=50) == []  # as it should be


def test_budget_and_box_are_guarded():
    assert summarise(measured([1, 1], {"a": outcome([0, 0], size=1.00005)}))["warnings"] == []
    for bad in (dict(size=1.01), dict(size=np.nan), dict(excess=0.01), dict(excess=np.nan)):
        (warning,) = summarise(measured([1, 1], {"a": outcome([0, 0], **bad)}))["warnings"]
        assert warning.startswith("a: ")
