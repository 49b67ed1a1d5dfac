"""The name of an evaluation: readable words for what it is of, which differ where evaluations do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from robust_jax.config.build import build_attack
from robust_jax.evaluation.attack import Attack, Source
from robust_jax.evaluation.identity import attack_of, attacks_of, digest, shortened
from robust_jax.evaluation.settings import Settings
from robust_jax.files import checksum, file_name, plain

_AS_SUCH = ("radius", "norm", "perturbation")  # of a threat model, in names


def identity_of(
    settings: Settings, attacks: Mapping[str, Attack], first: Any, n: int, variables: Any, step: int
) -> dict[str, Any]:
    """What distinguishes an evaluation of a workdir from its others: everything that its numbers and warnings follow.

    Evaluations that differ in nothing but the size of batches, the number of pictures or the versions of packages are
    the same.

    Args:
      settings: how it is measured.
      attacks: NAME -> attack.
      first: the first of the examples.
      n: their number.
      variables: of the model.
      step: of the checkpoint.
    """
    order = {"order": list(attacks)} if settings.worst_case_only else {}
    found: dict[str, Any] = json.loads(json.dumps(plain({
        "split": settings.split, "n": n, "examples": checksum(first), "seed": settings.seed,
        "precision": settings.precision, "checkpoint_step": int(step), "weights": checksum(variables),
        "worst_case_only": settings.worst_case_only, "checks": min(settings.checks, n), "signs": settings.signs,
        "attacks": attacks_of(attacks, settings.worst_case_only), **order,
    })))  # fmt: skip
    return found


def names_of(
    identity: Mapping[str, Any],
    settings: Settings,
    config: ConfigDict,
    available: int,
    own_attacks: bool = True,
) -> tuple[str, ...]:
    """Names for an evaluation, the best first: its split, then words for what is not as the workdir's config says.

    A later one is taken if an earlier one is that of another evaluation: it has the checkpoint's step, or a checksum.

    Args:
      identity: of the evaluation.
      settings: how it is measured.
      config: of the workdir.
      available: the number of examples of the split.
      own_attacks: whether the attacks are left to the config.
    """
    own = Settings.of(config, {})
    n = int(identity["n"])
    words = [settings.split]
    if n != min(own.limit or available, available):
        words.append("all" if n == available else f"first_{n}")
    if settings.seed != own.seed:
        words.append(f"seed_{settings.seed}")
    if settings.checkpoint != own.checkpoint:
        words.append(settings.checkpoint)
    if settings.worst_case_only != own.worst_case_only:
        words.append("worst_case_only" if settings.worst_case_only else "each_attack_alone")
    if identity["checks"] != min(own.checks, n):
        words.append(f"checks_{identity['checks']}")
    if tuple(settings.signs) != tuple(own.signs):
        words += [str(sign).rpartition(":")[2] for sign in settings.signs] or ["no_signs"]
    if not own_attacks:
        words += _of_attacks(identity["attacks"], _own_attacks(config, settings.worst_case_only))
    name = shortened(file_name("-".join(words)), identity)
    return (name, f"{name}-step_{identity['checkpoint_step']}", f"{name}-{digest(identity)}")


def _own_attacks(config: ConfigDict, in_turn: bool) -> dict[str, Any]:
    """The attacks of a config as they are compared; those that cannot be built are left out."""
    found = {}
    for name, spec in config.attacks.items():
        try:
            built = build_attack(f"attacks.{name}", spec)
            source = Source(str(built.source), len) if built.source else None  # any function: it is not called
            found[name] = attack_of(Attack(built.function, built.threat, built.settings, built.curve, source), in_turn)
        except ValueError:
            continue
    return found


def _of_attacks(attacks: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Words for attacks that are not those of the config."""
    changed = [name for name in attacks if _changes(attacks[name], own.get(name))]
    if changed:
        return [_words_for(name, _changes(attacks[name], own.get(name))) for name in changed]
    if attacks.keys() == own.keys():
        return []
    return [f"only_{name}" for name in attacks] or ["no_attacks"]


def _changes(attack: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """What in an attack is not as in the config's attack of that name."""
    new, old = ({} if a is None else _flat(a) for a in (attack, own))
    return {key: new.get(key) for key in (*new, *old) if new.get(key) != old.get(key)}


def _flat(attack: Mapping[str, Any]) -> dict[str, Any]:
    # The source's weights are unknown to the config.
    rest = {key: attack[key] for key in ("function", "curve")}
    return rest | {k: v for k, v in attack["threat"].items() if k in _AS_SUCH} | attack["settings"]


def _words_for(name: str, changes: Mapping[str, Any]) -> str:
    """The attack's name, with what has changed in it if that is little."""
    if len(changes) > 2 or any(isinstance(value, list | dict) for value in changes.values()):
        return name
    short = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in changes.items()}
    return "-".join([name, *(f"{key}_{value}" for key, value in short.items())])
