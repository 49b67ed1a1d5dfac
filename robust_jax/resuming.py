"""Outcomes of finished attacks on disk, so that an evaluation that was killed goes on where it was.

A file an attack, named after a fingerprint of all that the outcome depends on: what no longer applies is not found.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robust_jax.attacks import ATTACKS
from robust_jax.losses import LOSSES
from robust_jax.models import BoundModel
from robust_jax.perturbations import PERTURBATIONS
from robust_jax.reporting import replace
from robust_jax.robustness import Attack, Outcome
from robust_jax.summary import plain

ARRAYS = ("broken", "prediction", "loss", "size", "excess", "seen")
FOLDER = "evaluation_unfinished"


def fingerprints(attacks: Mapping[str, Attack], variables: Any, rest: Any, in_turn: bool) -> dict[str, str]:
    """One for each attack: of its name, threat and settings, the weights, the library's code, and the rest.

    Attacks, losses and perturbations of the user's own have none: their code is not seen here.

    Args:
      attacks: NAME -> attack.
      variables: of the model.
      rest: anything else that outcomes depend on.
      in_turn: whether an outcome depends on the attacks before it.
    """
    code = max(file.stat().st_mtime_ns for file in Path(__file__).parent.rglob("*.py"))
    common: list[Any] = [_checksum(variables), code, plain(rest), in_turn]
    prints: dict[str, str] = {}
    for name, attack in attacks.items():
        if _ours(attack):
            threat = attack.threat.perturbation.name, attack.threat.norm, attack.threat.radius
            told = plain((name, threat, attack.all_settings(), attack.curve))
            told += [_checksum(attack.source.logits_fn)] if attack.source else []
            prints[name] = hashlib.sha256(json.dumps([common, told]).encode()).hexdigest()[:32]
        if in_turn and name not in prints:
            break
        if in_turn:
            common.append(prints[name])
    return prints


def _checksum(weights: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(weights):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum


def _ours(attack: Attack) -> bool:
    functions = [attack.function, *(v for v in attack.settings.values() if callable(v))]
    parts = attack.threat.perturbation.parts or (attack.threat.perturbation,)
    if attack.source and not isinstance(attack.source.logits_fn, BoundModel):
        return False
    return all(f in (*ATTACKS.values(), *LOSSES.values()) for f in functions) and all(
        PERTURBATIONS.get(part.name) is part for part in parts
    )


def load(workdir: Path, attacks: Mapping[str, Attack], prints: Mapping[str, str]) -> dict[str, Outcome]:
    """The outcomes that are there already."""
    paths = {name: _path(workdir, fingerprint) for name, fingerprint in prints.items()}
    return {name: _read(path, attacks[name]) for name, path in paths.items() if path.is_file()}


def saver(workdir: Path, prints: Mapping[str, str]) -> Callable[[str, Outcome], None]:
    """What keeps an outcome as it comes, written whole or not at all."""

    def save(name: str, outcome: Outcome) -> None:
        if name not in prints:
            return
        (workdir / FOLDER).mkdir(exist_ok=True)
        arrays = {k: getattr(outcome, k) for k in ARRAYS}
        arrays |= {"seconds": np.asarray(outcome.seconds), "multiples": np.asarray(list(outcome.curve))}
        arrays |= {f"curve/{i}": broken for i, broken in enumerate(outcome.curve.values())}
        arrays |= {f"sample/{k}": v for k, v in outcome.sample.items() if k != "delta"}
        arrays |= {f"delta/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(outcome.sample.get("delta", ())))}
        content = io.BytesIO()
        np.savez(content, **arrays)
        replace(_path(workdir, prints[name]), content.getvalue())

    return save


def _path(workdir: Path, fingerprint: str) -> Path:
    return workdir / FOLDER / f"{fingerprint}.npz"


def _read(path: Path, attack: Attack) -> Outcome:
    with np.load(path) as file:
        arrays = dict(file)
    sample = {k.removeprefix("sample/"): v for k, v in arrays.items() if k.startswith("sample/")}
    if sample:
        tree = jax.tree.structure(jax.eval_shape(attack.threat.perturbation.zeros, sample["clean"]))
        leaves = sum(k.startswith("delta/") for k in arrays)
        sample["delta"] = jax.tree.unflatten(tree, [arrays[f"delta/{i}"] for i in range(leaves)])
    curve = {float(m): arrays[f"curve/{i}"] for i, m in enumerate(arrays["multiples"])}
    kept = {k: arrays[k] for k in ARRAYS}
    return Outcome(attack, **kept, curve=curve, seconds=float(arrays["seconds"]), sample=sample)


def clear(workdir: Path) -> None:
    """Removes them all."""
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
