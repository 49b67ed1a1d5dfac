"""What distinguishes evaluations: weights and attacks in a form that can be compared."""

from __future__ import annotations

import hashlib
import inspect
import json
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from robust_jax.evaluation.attack import Attack
from robust_jax.files import plain
from robust_jax.losses import LOSSES

LONGEST = 80


def checksum(weights: Any) -> str:
    """Eight hexadecimal digits that depend on every bit of the arrays of a pytree."""
    total = 0
    for leaf in jax.tree.leaves(weights):
        total = zlib.crc32(np.asarray(leaf).tobytes(), total)
    return f"{total:08x}"


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
            found[name]["source_weights"] = checksum(attack.source.logits_fn)
    return found


def attack_of(attack: Attack, in_turn: bool = False) -> dict[str, Any]:
    """One attack, see `attacks_of`, without the weights of another model that it attacks."""
    function = attack.function
    name = getattr(function, "__qualname__", type(function).__name__)
    multiples = sorted({1.0, *map(float, attack.curve)}) if len(attack.curve) and not in_turn else []
    return {
        "function": f"{getattr(function, '__module__', '')}:{name}",
        "threat": attack.described_threat(),
        "settings": {key: plain(_named(v) if key == "loss" else v) for key, v in attack.all_settings().items()},
        "curve": plain(multiples),
    }


def _named(value: Any) -> Any:
    """A loss of the user's own by its module too: its name may be that of a built-in one."""
    if not callable(value) or value in LOSSES.values():
        return value
    value = inspect.unwrap(value)
    if isinstance(value, partial):
        given = [*map(_named, value.args), *(f"{key}={_named(one)}" for key, one in value.keywords.items())]
        return f"{_named(value.func)}({', '.join(map(str, given))})"
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', type(value).__name__)}"


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def shortened(name: str, identity: Mapping[str, Any]) -> str:
    """A name of at most `LONGEST` characters; what is longer is cut, and a checksum of the identity follows."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}_{digest(identity)}"
