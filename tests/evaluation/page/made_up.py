"""Workdirs as training and evaluation leave them, without training, with names that must not run."""

from __future__ import annotations

import json

import numpy as np

from robust_jax import attacks
from robust_jax.config import base
from robust_jax.evaluation import Attack, drawn, summarise
from robust_jax.evaluation import report as written
from robust_jax.evaluation.outcomes import Outcome, PerExample
from robust_jax.spaces import ThreatModel
from robust_jax.workdir import saved_config

N, EVIL = 40, "\"><script>document.title='ran'</script>"
CLASSES = [EVIL, "cat & dog", "owl"]
FLOW = Attack(attacks.pgd, ThreatModel("flow", "linf", 0.155), {"steps": 20, "restarts": 3}, curve=(0, 0.5, 1, 2))
BOTH = Attack(attacks.pgd, ThreatModel(("flow", "additive"), "linf", (0.25, 8 / 255)), {"steps": 5})


def examples_of(rng, label, before, after, delta):
    """Examples to draw, of the first images."""
    clean = rng.uniform(size=(3, 8, 8, 1)).astype(np.float32)
    return {
        "clean": clean, "adversarial": np.clip(clean + rng.normal(0, 0.05, clean.shape), 0, 1), "delta": delta,
        "labels": label[:3], "clean_predictions": before[:3], "adversarial_predictions": after[:3],
    }  # fmt: skip


def measurement(seed):
    """Made-up results of two attacks."""
    rng = np.random.default_rng(seed)
    label = np.arange(N) % 3
    clean = np.where(rng.uniform(size=N) < 0.9, label, (label + 1) % 3)
    outcomes = {}
    for name, attack, share in (("flow <b>", FLOW, 0.4), ("both_100%", BOTH, 0.8)):
        prediction = np.where(rng.uniform(size=N) < share, (label + 1) % 3, clean)
        broken = (prediction != label) | (clean != label)
        early = (clean != label) | (broken & (np.arange(N) < 9))
        at = {0: clean != label, 0.5: early, 1: broken, 2: np.ones(N, bool)}
        curve = {m: at[m] for m in attack.curve}
        flow = rng.normal(0, 0.1, (3, 8, 8, 2)).astype(np.float32)
        examples = examples_of(rng, label, clean, prediction, flow if name[0] == "f" else (flow, flow[..., :1]))
        losses, ones = rng.uniform(2, 9, N).astype(np.float32), np.ones(N)
        hardest = examples | {"id": np.array([101, 100, 102]), "rise": np.array([3.0, 2.0, 1.0])}
        outcomes[name] = Outcome(
            attack, broken, prediction, losses, ones, 0 * ones, curve, 1.5, examples, hardest=hardest
        )
    return PerExample(100 + np.arange(N), label, clean, rng.uniform(0, 1, N).astype(np.float32), outcomes)


def evaluate(folder, name, seed, warnings=()):
    """Writes an evaluation, and returns its report."""
    measured = measurement(seed)
    report = summarise(measured) | {
        "class_names": CLASSES, "split": "test", "checkpoint_step": 9, "seed": seed, "checks": 0, "precision": "?",
        "name": name, "versions": {"jax": "0", "device": EVIL},
    }  # fmt: skip
    report["warnings"] = list(warnings)
    place = folder / "evaluations" / name
    place.mkdir(parents=True)
    written.write(place, report, measured, 10 if seed == 0 else 0, folder.name)
    if seed:
        drawn.write(place, measured, 10)  # without the pictures, which take time
    return report


def trained(folder):
    """Writes what training leaves."""
    folder.mkdir()
    config = base()
    config.points.warped = dict(kind="random", perturbation="flow", sigma=0.2)
    config.terms.ce = dict(kind="cross_entropy", at=EVIL, weight=1.0)
    (folder / "config.json").write_text(json.dumps(saved_config.plain(config)))
    lines = [{"step": s, "epoch": s / 10, "accuracy": s / 400, "loss": 9 / (s + 1), f"terms/{EVIL}": 1.0, "terms/b": 2}
             for s in range(400)]  # fmt: skip
    lines += [{"step": s, "epoch": s / 10, "validation/clean": s / 400} for s in range(0, 400, 100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
