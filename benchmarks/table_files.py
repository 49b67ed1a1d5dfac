"""The file of a table: what it knows of runs, whether that is what is asked for today, and how it is added to.

{"title": ..., "rows": {ROW: {"label": ..., "seeds": {SEED: numbers}, "diverged": {SEED: error, settings}}},
"tried": {RUN: {"accuracy": ..., "settings": ...}}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock

from origin import keep, kept
from robust_jax.evaluation import identity
from robust_jax.evaluation.measure import chosen_attacks
from robust_jax.workdir import saved_config
from table_types import Table

# None of these changes a number.
FREE = ("writers", "log_every_steps", "checkpoint_every_", "keep_checkpoints", "evaluation.batch_size",
        "evaluation.pictures", "attacks")  # fmt: skip


def stored(path: Path, row: str, seed: int, part: str = "seeds") -> dict[str, Any] | None:
    """What the file has of a run: its numbers, or with ``part="diverged"`` that it diverged."""
    found: dict[str, Any] | None = kept(path, {}).get("rows", {}).get(row, {}).get(part, {}).get(str(seed))
    return found


def tried(path: Path, run: str, settings: Mapping[str, Any]) -> float | None:
    """The validation accuracy of a run that was trained to choose a weight."""
    found = kept(path, {}).get("tried", {}).get(run)
    return float(found["accuracy"]) if found and same_weights(found["settings"], settings) else None


def same_weights(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two configs train the same network and choose the same checkpoint."""
    return not saved_config.changed(old, new)


def same_numbers(run: Mapping[str, Any], settings: Mapping[str, Any], table: Table) -> bool:
    """Whether numbers of a run are those of a config today, with all columns."""
    same_attacks = run["evaluation"]["attacks"].keys() == table.attacks.keys() == todays(run, settings, table)
    return bool(same_attacks and run.get("balls", {}) == balls(table))


def todays(run: Mapping[str, Any], settings: Mapping[str, Any], table: Table) -> set[str]:
    """The attacks of today whose numbers a run has, if they are of the network and the images of a config today.

    Attacks are compared with all their settings: a default may have changed since.
    """
    differing = saved_config.differing(run["settings"], settings)
    if any(not key.startswith(FREE) for key in differing) or not same_weights(run["settings"], settings):
        return set()
    measured = run["evaluation"]["attacks"]
    today = identity.attacks_of(chosen_attacks(table.attacks, trust=("tables",)))
    return {name for name, attack in today.items() if name in measured and _same(measured[name], attack)}


def joined(known: Mapping[str, Any], new: Mapping[str, Any], table: Table, columns: set[str]) -> dict[str, Any]:
    """Numbers of a run with columns that were measured later, of the same network and images.

    Args:
      known: the numbers of the run; ``later`` says where those come from that are newer than the others.
      new: the numbers of the attacks and universal perturbations that it lacked.
      table: whose columns they are.
      columns: the attacks of which ``known`` has the numbers of today.
    """
    old, added = known["evaluation"], new["evaluation"]
    gone = (old["attacks"].keys() | added["attacks"].keys()) - columns
    warnings = [w for w in old["warnings"] if not any(re.search(rf"\b{name}\b", w) for name in gone)]
    source = {key: new[key] for key in ("command", "revision", "hardware")}
    merged = dict(known) | {key: new[key] for key in ("settings", "balls")}
    for key in ("broken", "universal"):
        merged[key] = known[key] | new[key]
    attacks = old["attacks"] | added["attacks"]
    merged["evaluation"] = old | {
        "attacks": {name: attacks[name] for name in table.attacks},
        "warnings": list(dict.fromkeys([*warnings, *added["warnings"]])),
    }
    merged["broken"] = {name: merged["broken"][name] for name in table.attacks}
    merged["universal"] = {name: merged["universal"][name] for name in table.universal}
    later = {name: source for name in (*added["attacks"], *new["universal"])}
    return merged | {"later": known.get("later", {}) | later}


def _same(measured: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    """Whether a measured attack is that of today; an option that is newer than it has not changed since."""
    old, new = ({**attack["threat"], **attack["settings"], "unit": ""} for attack in (measured, today))
    return all(key in new and value == new[key] for key, value in old.items())


def balls(table: Table) -> dict[str, Any]:
    """The universal perturbations of a table, as they are stored."""
    return {name: ball._asdict() for name, ball in table.universal.items()}


def slim(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a run without what they say twice, or what its workdir keeps.

    Its report has the attacks; of the settings, that which selects. The worst case follows from what each broke.
    """
    settings, report = numbers["settings"], numbers["evaluation"]
    selects = {name: attack for name, attack in settings["attacks"].items() if name == settings["select_by"]}
    dropped = ("identity", "class_names", "name", "pictures", "worst_case")
    thin = {key: value for key, value in report.items() if key not in dropped}
    thin["attacks"] = {name: _whole(attack) for name, attack in report["attacks"].items()}
    thin["clean"] = _whole(report["clean"])
    return dict(numbers) | {"settings": dict(settings) | {"attacks": selects}, "evaluation": thin}


def _whole(accuracies: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies without those of each class."""
    return {key: value for key, value in accuracies.items() if key != "per_class"}


def add(path: Path, table: Table, row: str, seed: int, numbers: Mapping[str, Any], part: str = "seeds") -> None:
    """Adds the numbers of a run, or that it diverged; rows stay in the order of the table, and seeds in theirs."""

    def with_run(rows: Mapping[str, Any]) -> dict[str, Any]:
        empty: dict[str, Any] = {"seeds": {}, "diverged": {}}
        found = {"label": table.rows[row].label} | {k: dict(rows.get(row, {}).get(k, {})) for k in empty}
        for other in empty:
            found[other].pop(str(seed), None)
        kept_now = slim(numbers) if part == "seeds" else numbers
        found[part] = dict(sorted((found[part] | {str(seed): kept_now}).items(), key=lambda entry: int(entry[0])))
        more = dict(rows) | {row: found}
        return {name: more[name] for name in table.rows if name in more}

    _change(path, table, "rows", with_run)


def add_tried(path: Path, table: Table, run: str, accuracy: float, settings: Mapping[str, Any]) -> None:
    """Adds the validation accuracy of a run that was trained to choose a weight."""
    found = {run: {"accuracy": accuracy, "settings": settings}}
    _change(path, table, "tried", lambda known: dict(known) | found)


def _change(path: Path, table: Table, part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes a part of the file as it is now: another process may have written other rows."""
    whole: dict[str, Any] = {"title": table.title, "pairs": table.pairs, "columns": list(table.attacks)}
    whole |= {"worst": table.worst, "universal": balls(table)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        found = kept(path, {"rows": {}})
        keep(path, found | whole | {part: change(found.get(part, {}))})
