"""Outcomes of finished attacks on disk, so that an interrupted evaluation continues after the last one.

One file per attack, named after a fingerprint of everything that the outcome depends on: an outcome that no longer
applies is not found. A file is believed only if its content has the checksum that it was written with, for this
fingerprint, and the shapes that the attack gives; and `robustness` compares it with the examples. Otherwise a warning
names the file, and the attack runs again.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from robust_jax.attacks import ATTACKS
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.outcomes import Outcome
from robust_jax.files import checksum, plain, read_arrays, refuse_link, write_atomically
from robust_jax.losses import LOSSES
from robust_jax.models import BoundModel
from robust_jax.models.network import code_of
from robust_jax.spaces.registry import built_in

# The arrays of an outcome, one entry per example, with the kinds of their types: bool, int, float.
KINDS = {"broken": "b", "prediction": "i", "loss": "f", "size": "f", "excess": "f", "seen": "b"}
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
    common: list[Any] = [checksum(variables), _newest_code(), plain(rest), in_turn]
    prints: dict[str, str] = {}
    for name, attack in attacks.items():
        if _is_built_in(attack):
            threat = attack.threat.perturbation.name, attack.threat.norm, attack.threat.radius
            own = plain((name, threat, attack.all_settings(), attack.curve))
            if attack.source:
                own += [attack.source.weights, code_changed(attack.source.logits_fn.model)]  # type: ignore[attr-defined]
            prints[name] = hashlib.sha256(json.dumps([common, own]).encode()).hexdigest()[:32]
        if in_turn and name not in prints:
            break
        if in_turn:
            common.append(prints[name])
    return prints


def code_changed(model: Any) -> int:
    """When the file that defines a model was changed last, in nanoseconds; 0 if it has no file."""
    try:
        return Path(inspect.getfile(code_of(model))).stat().st_mtime_ns
    except (OSError, TypeError):
        return 0


def _newest_code() -> int:
    """When the package was changed last, in nanoseconds."""
    return max(file.stat().st_mtime_ns for file in PACKAGE.rglob("*.py"))


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
    """The outcomes that are stored already, by the names of their attacks; of a file that is damaged it warns."""
    found = {}
    for name, fingerprint in prints.items():
        path = _path(workdir, fingerprint)
        if not os.path.lexists(path):
            continue
        try:
            found[name] = _read(path, attacks[name])
        except ValueError as error:
            logging.warning("%s The attack %s runs again.", error, name)
    return found


def saver(workdir: Path, prints: Mapping[str, str]) -> Callable[[str, Outcome], None]:
    """A function ``(name, outcome)`` that stores the outcome of an attack with a fingerprint, atomically.

    Where it cannot be stored a warning says so, and the evaluation goes on.
    """

    def save(name: str, outcome: Outcome) -> None:
        if name not in prints:
            return
        path = _path(workdir, prints[name])
        arrays = {k: np.asarray(getattr(outcome, k)) for k in KINDS}
        arrays |= {"seconds": np.asarray(outcome.seconds), "multiples": np.asarray(list(outcome.curve), float)}
        arrays |= {f"curve/{i}": broken for i, broken in enumerate(outcome.curve.values())}
        for kind, examples in (("sample", outcome.sample), ("hardest", outcome.hardest)):
            arrays |= {f"{kind}/{k}": np.asarray(v) for k, v in examples.items() if k != "delta"}
            leaves = jax.tree.leaves(examples.get("delta", ()))
            arrays |= {f"{kind}_delta/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        content = io.BytesIO()
        np.savez(content, checksum=_digest(arrays, prints[name]), **arrays)  # type: ignore[arg-type]
        try:
            refuse_link(path.parent)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content.getvalue())
        except (OSError, ValueError) as error:
            logging.warning("The outcome of %s cannot be kept for an evaluation that is interrupted: %s", name, error)

    return save


def _path(workdir: Path, fingerprint: str) -> Path:
    return workdir / FOLDER / f"{fingerprint}.npz"


def _digest(arrays: Mapping[str, np.ndarray], fingerprint: str) -> np.ndarray:
    """A checksum of arrays with their names, types and shapes, and of the fingerprint that they are stored under."""
    digest = hashlib.sha256(fingerprint.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _read(path: Path, attack: Attack) -> Outcome:
    """The outcome that a file holds.

    Raises:
      ValueError: a file that is damaged or not of this attack; names it.
    """
    arrays = read_arrays(path)
    checksum = arrays.pop("checksum", None)
    if checksum is None or not np.array_equal(checksum, _digest(arrays, path.stem)):
        raise ValueError(f"{path}: its content is not what was written.")
    try:
        sample, hardest = (_examples(kind, attack, arrays) for kind in ("sample", "hardest"))
        curve = {float(m): arrays[f"curve/{i}"] for i, m in enumerate(arrays["multiples"])}
        kept: dict[str, Any] = {k: arrays[k] for k in KINDS}
        seconds = float(arrays["seconds"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: it is not what an outcome of this attack is ({error}).") from error
    if [array.dtype.kind for array in (*curve.values(), *kept.values())] != ["b"] * len(curve) + [*KINDS.values()]:
        raise ValueError(f"{path}: its arrays are not of the types that outcomes have.")
    return Outcome(attack, **kept, curve=curve, seconds=seconds, sample=sample, hardest=hardest)


def _examples(kind: str, attack: Attack, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The examples of a kind, with δ in the structure that the attack's perturbation gives it.

    Raises:
      KeyError, TypeError: an array is missing, or of another shape.
    """
    examples: dict[str, Any] = {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(f"{kind}/")}
    if not examples:
        return {}
    zeros = jax.eval_shape(attack.threat.perturbation.zeros, examples["clean"])
    leaves = [arrays[f"{kind}_delta/{i}"] for i in range(len(jax.tree.leaves(zeros)))]
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(zeros)]:
        raise TypeError(f"δ of shapes {[leaf.shape for leaf in leaves]}")
    return examples | {"delta": jax.tree.unflatten(jax.tree.structure(zeros), leaves)}


def clear(workdir: Path, prints: Mapping[str, str]) -> None:
    """Removes the outcomes of an evaluation that is finished, and those that are older than the package's code.

    Those of other evaluations, which may have been interrupted too, stay.

    Args:
      workdir: that was evaluated.
      prints: the fingerprints of the attacks.
    """
    folder = workdir / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return
    own, newest = set(prints.values()), _newest_code()
    for path in folder.iterdir():
        with suppress(OSError):
            if path.name.lstrip(".").split(".")[0] not in own and path.lstat().st_mtime_ns >= newest:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with suppress(OSError):
        folder.rmdir()
