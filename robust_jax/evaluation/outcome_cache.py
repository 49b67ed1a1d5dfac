"""Outcomes of finished attacks on disk, so that an interrupted evaluation continues after the last one.

One file per attack, named after a fingerprint of everything that the outcome depends on: an outcome that no longer
applies is not found.
"""

from __future__ import annotations

import hashlib
import inspect
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
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.outcomes import Outcome
from robust_jax.files import plain, write_atomically
from robust_jax.losses import LOSSES
from robust_jax.models import BoundModel
from robust_jax.spaces.registry import built_in

ARRAYS = ("broken", "prediction", "loss", "size", "excess", "seen")
FOLDER = "evaluation_unfinished"
PACKAGE = Path(__file__).parents[1]


def fingerprints(attacks: Mapping[str, Attack], variables: Any, rest: Any, in_turn: bool) -> dict[str, str]:
    """One fingerprint per attack: of its name, threat and settings, the weights, the library's code, and the rest.

    An attack gets none if it, its loss or its perturbation is not the library's own: a change of the user's code would
    go unnoticed.

    Args:
      attacks: NAME -> attack.
      variables: of the model.
      rest: everything else that outcomes depend on.
      in_turn: whether an outcome depends on the attacks before it.
    """
    code = max(file.stat().st_mtime_ns for file in PACKAGE.rglob("*.py"))
    common: list[Any] = [_checksum(variables), code, plain(rest), in_turn]
    prints: dict[str, str] = {}
    for name, attack in attacks.items():
        if _is_built_in(attack):
            threat = attack.threat.perturbation.name, attack.threat.norm, attack.threat.radius
            own = plain((name, threat, attack.all_settings(), attack.curve))
            if attack.source:
                own += [_checksum(attack.source.logits_fn), code_changed(attack.source.logits_fn.model)]  # type: ignore[attr-defined]
            prints[name] = hashlib.sha256(json.dumps([common, own]).encode()).hexdigest()[:32]
        if in_turn and name not in prints:
            break
        if in_turn:
            common.append(prints[name])
    return prints


def code_changed(model: Any) -> int:
    """When the file that defines the class of a model was changed last, in nanoseconds; 0 if it has no file."""
    try:
        return Path(inspect.getfile(type(model))).stat().st_mtime_ns
    except (OSError, TypeError):
        return 0


def _checksum(weights: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(weights):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum


def _is_built_in(attack: Attack) -> bool:
    """Whether the attack, its loss and its perturbation are the library's own, and its source a bound model.

    Functions are compared by identity: one that wraps an attack may do anything, even if it carries the attack's name
    and module, as `functools.wraps` makes it do.
    """
    functions = [attack.function, *(v for v in attack.settings.values() if callable(v))]
    parts = attack.threat.perturbation.parts or (attack.threat.perturbation,)
    if attack.source and not isinstance(attack.source.logits_fn, BoundModel):
        return False
    own_functions = (*ATTACKS.values(), *LOSSES.values())
    return all(any(f is known for known in own_functions) for f in functions) and all(
        built_in().get(part.name) is part for part in parts
    )


def load(workdir: Path, attacks: Mapping[str, Attack], prints: Mapping[str, str]) -> dict[str, Outcome]:
    """The outcomes that are stored already, by the names of their attacks."""
    paths = {name: _path(workdir, fingerprint) for name, fingerprint in prints.items()}
    return {name: _read(path, attacks[name]) for name, path in paths.items() if path.is_file()}


def saver(workdir: Path, prints: Mapping[str, str]) -> Callable[[str, Outcome], None]:
    """A function ``(name, outcome)`` that stores the outcome of an attack with a fingerprint, atomically."""

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
        write_atomically(_path(workdir, prints[name]), content.getvalue())

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
    """Removes all stored outcomes."""
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
