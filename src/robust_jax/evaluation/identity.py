"""What distinguishes evaluations: weights and attacks in a form that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from robust_jax.evaluation.attack import Attack
from robust_jax.files import plain

LONGEST = 80


def attacks_of(attacks: Mapping[str, Attack], in_turn: bool = False) -> dict[str, Any]:
    """The attacks of an evaluation as they are compared: threat model, settings, multiples of the radius.

    Functions of your own are told apart by their names.

    Args:
      attacks: NAME -> attack.
      in_turn: whether each attack sees only what those before it left: then no curve is measured.
    """
    found = {name: attack_of(attack, in_turn) for name, attack in attacks.items()}
    for name, attack in attacks.items():
        if attack.source:
            found[name]["source_weights"] = attack.source.weights
    return found


def attack_of(attack: Attack, in_turn: bool = False) -> dict[str, Any]:
    """One attack, see `attacks_of`, without the weights of another model that it attacks."""
    function = attack.function
    name = getattr(function, "__qualname__", type(function).__name__)
    multiples = sorted({1.0, *map(float, attack.curve)}) if len(attack.curve) and not in_turn else []
    return {
        "function": f"{getattr(function, '__module__', '')}:{name}",
        "threat": attack.described_threat(),
        "settings": plain(attack.all_settings()),
        "curve": plain(multiples),
    }


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def shortened(name: str, identity: Mapping[str, Any]) -> str:
    """A name of at most `LONGEST` characters; what is longer is cut, and a checksum of the identity follows."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}_{digest(identity)}"
