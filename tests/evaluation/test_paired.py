"""Two methods are compared on the same images, and over seeds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import robust_jax as rj
from robust_jax import commands
from robust_jax.evaluation.statistics import mcnemar

ATTACKS = {
    "step": dict(kind="fgsm", perturbation="additive", radius=0.05),
    "steps": dict(kind="pgd", perturbation="additive", radius=0.05, steps=3),
    "bend": dict(kind="pgd", perturbation="flow", radius=0.2, steps=3),
}


@pytest.fixture
def runs(workdirs):
    """Two runs of each of two methods; the second of each is a copy of the first with a few images exchanged."""
    rj.evaluate(workdirs, ATTACKS, limit=150, pictures=0, progress=False)
    found = []
    for workdir in workdirs:
        again = shutil.copytree(workdir, workdir.with_name(f"{workdir.name}_1"))
        (path,) = again.glob("evaluations/*/per_example.npz")
        arrays = dict(np.load(path))
        arrays["bend/broken"] = np.roll(arrays["bend/broken"], 7) | (arrays["clean/prediction"] != arrays["label"])
        np.savez(path, **{name: array[::-1] for name, array in arrays.items() if array.ndim == 1})
        found.append([workdir, again])
    return found


def right(workdir, *attacks):
    (path,) = workdir.glob("evaluations/*/per_example.npz")
    arrays = np.load(path)
    order = np.argsort(arrays["id"])
    correct = arrays["clean/prediction"] == arrays["label"]
    return (correct & ~np.any([arrays[f"{name}/broken"] for name in attacks] or [~correct], axis=0))[order]


def test_numbers_are_those_of_the_examples(runs, capsys):
    found = rj.compare(*runs, worst={"worst additive": ("step", "steps")})
    assert list(found) == ["clean", *ATTACKS, "worst additive", "worst case"]
    of_row = {"clean": (), "worst additive": ("step", "steps"), "worst case": tuple(ATTACKS)} | {
        n: (n,) for n in ATTACKS
    }
    for row, entry in found.items():
        for pair in (0, 1):
            one, other = (right(side[pair], *of_row[row]) for side in runs)
            assert (entry["one"][pair], entry["other"][pair]) == (one.mean(), other.mean())
            plus, minus = int((one & ~other).sum()), int((other & ~one).sum())
            assert (entry["only_one"][pair], entry["only_other"][pair]) == (plus, minus)
            assert entry["p"][pair] == mcnemar(plus, minus)
    shown = " ".join(capsys.readouterr().out.split())
    first = found["steps"]
    assert f"{100 * np.mean(first['one']):.1f} ± {100 * np.std(first['one'], ddof=1):.1f}" in shown
    assert f"+{first['only_one'][0]} −{first['only_other'][0]}, p" in shown
    assert sum(first["p"]) < 0.01 and "p < 1e-4" in shown  # the steep classifier is less robust


def test_the_test_is_exact():
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5) and mcnemar(1, 3) == pytest.approx(10 / 16)


def test_the_command(runs, capsys):
    (one, again), others = runs
    flags = [f"--against={','.join(map(str, others))}", "--worst=step,steps"]
    commands.main(["compare", str(one), str(again), *flags])
    assert "worst of step, steps" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        commands.main(["compare", str(one)])
    assert "compare needs two methods" in capsys.readouterr().err


def test_mistakes(runs, workdirs):
    (one, again), others = runs
    for given, options, message in (
        (([one], others), {}, "one has 1 workdirs and other has 2"),
        (([], others), {}, "one has no workdir"),
        ((one, others[0]), {"evaluation": "tset"}, "evaluation of .*smooth='tset' is unknown: choose one of"),
        ((one, others[0]), {"worst": {"a": ("stpe",)}}, "attack='stpe' is unknown: .* Did you mean 'step'"),
        ((one, others[0]), {"worst": {"step": ("step",)}}, "worst has a row 'step'"),
        ((one, one.parent), {}, "holds no evaluation"),
    ):
        with pytest.raises(ValueError, match=message):
            rj.compare(*given, **options)
    rj.evaluate(one, ATTACKS, limit=20, pictures=0, progress=False, out="few")
    rj.evaluate(others[0], ATTACKS, limit=10, pictures=0, progress=False, out="few")
    with pytest.raises(ValueError, match="'few' are not of the same images"):
        rj.compare(one, others[0], evaluation="few")
    with pytest.raises(ValueError, match=r"have in common are these: \['few', .*give one of them"):
        rj.compare(one, others[0])
