"""How to make the numbers again: Python, the config's differences from the defaults, versions, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from robust_jax.attacks import ATTACKS
from robust_jax.config import base
from robust_jax.evaluation.table import not_by_default
from robust_jax.files import plain, printable
from robust_jax.objectives.points import POINTS
from robust_jax.objectives.terms import TERMS

PARTS: dict[str, Mapping[str, Any]] = {"points": POINTS, "terms": TERMS, "attacks": ATTACKS}
"""The groups of a config whose entries are the user's: kind -> the built-in parts."""


def training(folder: Path, config: Mapping[str, Any]) -> str:
    """Python that trains the run again, in another workdir."""
    again = f"{folder}_again"
    return printable(
        "import robust_jax as rj\nfrom robust_jax.workdir.saved_config import read_config\n\n"
        f"rj.train(read_config({str(folder)!r}), {again!r})  # seed {config.get('seed', 0)!r}"
    )


def evaluation(folder: Path, report: Mapping[str, Any]) -> str:
    """Python that measures the same again."""
    known = report.get("identity", {}).get("attacks") or {}
    functions = {name: str((known.get(name) or {}).get("function", "")) for name in report["attacks"]}
    attacks = {name: _attack(entry, functions[name]) for name, entry in report["attacks"].items()}
    lines = [f"    {name!r}: {spec},\n" for name, spec in attacks.items()]
    given: dict[str, Any] = {"split": report.get("split"), "limit": report["clean"]["n"]}
    given |= {key: report.get(key) for key in ("checkpoint", "seed", "checks")}
    given |= {"signs": tuple(signs)} if (signs := report.get("identity", {}).get("signs")) else {}
    given |= {"worst_case_only": True} if any("after" in entry for entry in report["attacks"].values()) else {}
    options = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
    call = f"rj.evaluate({str(folder)!r}, attacks{options})"
    return printable(f"import robust_jax as rj\n\nattacks = {{\n{''.join(lines)}}}\n{call}")


def _attack(entry: Mapping[str, Any], function: str) -> str:
    """The entry of an attack in a config, what is not by default; ``function`` is ``module:name`` of one's own."""
    threat, settings = entry.get("threat") or {}, dict(entry.get("settings") or {})
    kind = settings.pop("attack", "?")
    kind = function if kind not in ATTACKS and function else kind
    spec: dict[str, Any] = {"perturbation": _perturbation(threat.get("perturbation", "?"))}
    spec |= {key: _tuples(threat[key]) for key in ("norm", "radius") if key in threat}
    if "curve" in entry:
        spec["curve"] = tuple(entry["curve"].get("multiple", ()))
    return f"dict({_options({'kind': kind} | spec | settings, ATTACKS)})"


def _options(spec: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The options of a part that are not by default, as keyword arguments."""
    part = known.get(str(spec.get("kind")))
    shown = spec if part is None else not_by_default(part, spec)
    # Of a stranger's file other keys might be code.
    return ", ".join(f"{k}={_tuples(v)!r}" for k, v in shown.items() if str(k).isidentifier())


def _perturbation(name: str) -> Any:
    return tuple(name.split("+")) if "+" in name else name


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """The keys of a config that are not as `robust_jax.config.base` has them: key, value, default."""
    data, model = config.get("data") or {}, config.get("model") or {}
    standard = base(str(data.get("name")), str(model.get("name"))).to_dict()
    own, default = (_flat({k: v for k, v in c.items() if k not in PARTS}) for c in (config, plain(standard)))
    keys = [key for key in own if key in ("data.name", "model.name") or own[key] != default.get(key)]
    rows = [(key, _shown(own[key]), _shown(default[key]) if key in default else "") for key in keys]
    for kind, known in PARTS.items():
        entries = config.get(kind) or {}
        rows += [(f"{kind}.{name}", _options(spec, known)[:500], "") for name, spec in entries.items()]
    return [dict(zip(("key", "value", "default"), map(printable, row), strict=True)) for row in rows]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten_dict(dict(config), sep="."))


def _shown(value: Any) -> str:
    return (value if isinstance(value, str) and value else json.dumps(value))[:200]


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The circumstances of an evaluation, in a line each."""
    versions = report.get("versions") or {}
    found = [("images", f"{report['clean']['n']} of the {report.get('split', 'given')} split")]
    known = {"checkpoint_step": "checkpoint", "seed": "seed", "precision": "precision", "checks": "masking checks"}
    found += [(text, str(report[key])) for key, text in known.items() if key in report]
    found[1:] = [(k, f"step {v}" if k == "checkpoint" else f"{v} images" if k == "masking checks" else v)
                 for k, v in found[1:]]  # fmt: skip
    if "device" in versions:
        found.append(("hardware", str(versions["device"])))
    packages = [f"{name} {version}" for name, version in versions.items() if name != "device"]
    seconds = sum(e["seconds"] for e in report["attacks"].values() if isinstance(e.get("seconds"), int | float))
    found += [("versions", ", ".join(packages))] * bool(packages)
    found += [("time under attack", f"{seconds:.0f} s")] * bool(seconds)
    return [(key, printable(value)) for key, value in found]
