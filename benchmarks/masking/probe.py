"""Which signs of masked gradients are seen in planted defences and in honest models.

python -m benchmarks.masking.probe --out=docs/results/masking.json

About twenty minutes of a core. `python -m benchmarks.masking.page` puts the tables into docs/masking.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks.masking import honest, planted
from benchmarks.masking.networks import FEW, KEY, THEIRS, Model
from benchmarks.origin import also, keep, kept, source
from robust_jax.evaluation import masking
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.robustness import robustness
from robust_jax.evaluation.summary import summarise


def looked_at(
    model: Model, images: Array, labels: Array, attacks: Mapping[str, Attack], further: bool = True
) -> dict[str, Any]:
    """Accuracies, and all that an evaluation warns of."""
    start = time.perf_counter()
    batch = {"image": images, "label": labels, "id": np.arange(len(images))}
    measured = robustness(model, [batch], attacks, key=KEY)
    summary = summarise(measured)
    warnings = summary["warnings"]
    if further:
        warnings += masking.probe(model, images, labels, measured, key=KEY, needs=("attacks",))
    left = {name: entry["accuracy"] for name, entry in summary["attacks"].items()}
    return {
        "clean": summary["clean"]["accuracy"],
        "left": left,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - start, 1),
    }


def names(warnings: Sequence[str]) -> set[str]:
    """The signs that warnings begin with; "non_finite" for logits that are not finite."""
    return {"non_finite" if "non-finite logits" in warning else warning.split(":")[0] for warning in warnings}


def main() -> None:
    """Probes all models, or some, prints what is seen and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help="the JSON file; models that it has are not probed again")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="no further attacks on kinds that need none")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # the time is compilation
    chosen, path = [name for name in given.only.split(",") if name], Path(given.out)
    found = kept(path if given.out else None, {"planted": {}, "honest": {}}) | {"images": len(FEW)}
    origin = source(module="benchmarks.masking.probe")
    for group, models in (("planted", planted.KINDS | planted.LATER), ("honest", honest.MODELS)):
        for name, case in models.items():
            if name in found[group] or (chosen and name not in chosen):
                continue
            images, labels = getattr(case, "images", FEW), getattr(case, "labels", THEIRS)
            further = not given.quick or getattr(case, "needs", "attacks") == "attacks"
            found[group][name] = looked_at(case.model(), images, labels, case.attacks, further)
            found |= also(found, origin)
            jax.clear_caches()  # the programs of all models are more pieces of memory than Linux gives to a process
            print(group, name, json.dumps(found[group][name]), flush=True)
            if given.out:
                keep(path, found)


if __name__ == "__main__":
    main()
