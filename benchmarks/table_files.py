"""The file of a table: what it knows of runs, whether that is what is asked for today, and how it is added to.

{"title": ..., "rows": {ROW: {"label": ..., "seeds": {SEED: numbers}, "diverged": {SEED: error, settings}}},
"tried": {RUN: {"accuracy": ..., "settings": ...}}}
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock

from origin import keep, kept
from robust_jax.evaluation import identity
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.measure import chosen_attacks, versions
from robust_jax.files import plain
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
    today = chosen_attacks(table.attacks, trust=("tables",))
    return {name for name, attack in today.items() if name in measured and _same(measured[name], attack)}


def unchanged(known: Mapping[str, Any] | None, today: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Of the numbers of a run those that are of today's weights, and of today's columns; empty if none is.

    Args:
      known: what the file has of the run.
      today: the ``settings`` and ``weights`` of the run.
      table: whose columns they are.
    """
    if not known or known.get("weights") != today["weights"]:
        return {}
    columns = todays(known, today["settings"], table)
    if not columns:
        return {}
    report = known["evaluation"]
    gone = report["attacks"].keys() - columns
    attacks = {name: report["attacks"][name] for name in table.attacks if name in columns}
    warnings = [w for w in report["warnings"] if not any(re.search(rf"\b{name}\b", w) for name in gone)]
    kept_balls = {name: ball for name, ball in balls(table).items() if known["balls"].get(name) == ball}
    return dict(known) | {
        "evaluation": report | {"attacks": attacks, "warnings": warnings},
        "broken": {name: known["broken"][name] for name in attacks},
        "universal": {name: known["universal"][name] for name in kept_balls},
        "balls": kept_balls,
    }


def with_attacks(
    found: Mapping[str, Any], report: Mapping[str, Any], broken: Mapping[str, str], table: Table,
    source: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Numbers of a run with attacks that it lacked; ``later`` says where those come from that are newer than others."""
    old = found.get("evaluation", report)
    attacks = old["attacks"] | report["attacks"]
    evaluation = old | {
        "attacks": {name: attacks[name] for name in table.attacks},
        "warnings": list(dict.fromkeys([*old["warnings"], *report["warnings"]])),
    }
    both = found.get("broken", {}) | broken
    whole = {"universal": {}, "balls": {}} | dict(found)
    whole |= {"evaluation": evaluation, "broken": {name: both[name] for name in table.attacks}}
    return _with_source(whole, broken, source)


def with_universal(
    found: Mapping[str, Any], name: str, rates: Mapping[str, float], table: Table, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Numbers of a run with those of one δ for all images."""
    universal, made = found["universal"] | {name: rates}, found["balls"] | {name: balls(table)[name]}
    order = [ball for ball in table.universal if ball in universal]
    whole = dict(found) | {"universal": {n: universal[n] for n in order}, "balls": {n: made[n] for n in order}}
    return _with_source(whole, [name], source)


def _with_source(found: dict[str, Any], names: Iterable[str], source: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers with where some of them come from, if that is not where the others do."""
    today = dict(source) | {"versions": versions()}
    first = {key: found[key] for key in source} | {"versions": found["evaluation"]["versions"]}
    later = {name: one for name, one in found.get("later", {}).items() if name in found["broken"] | found["universal"]}
    for name in names:
        later.pop(name, None)
        later |= {name: today} if today != first else {}
    found.pop("later", None)
    return found | ({"later": later} if later else {})


def _same(measured: Mapping[str, Any], today: Attack) -> bool:
    """Whether a measured attack is that of today; an option that is newer than it was then at its default."""
    old, new = compared(measured), compared(identity.attack_of(today))
    defaults = {name: plain(p.default) for name, p in inspect.signature(today.function).parameters.items()}
    return old.keys() <= new.keys() and all(
        value == (old[key] if key in old else defaults.get(key)) for key, value in new.items()
    )


def compared(attack: Mapping[str, Any]) -> dict[str, Any]:
    """What says whether two described attacks are one: their balls and options, not how a unit is called."""
    return {**attack["threat"], **attack["settings"], "unit": ""}


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


def refresh(path: Path, table: Table) -> None:
    """Writes today's title, columns, pairs and labels of rows into the file."""

    def named(rows: Mapping[str, Any]) -> dict[str, Any]:
        return {name: dict(rows[name]) | {"label": row.label} for name, row in table.rows.items() if name in rows}

    _change(path, table, "rows", named)


def _change(path: Path, table: Table, part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes a part of the file as it is now: another process may have written other rows."""
    whole: dict[str, Any] = {"title": table.title, "pairs": table.pairs, "columns": list(table.attacks)}
    attacks = identity.attacks_of(chosen_attacks(table.attacks, trust=("tables",)))
    whole |= {"attacks": attacks, "worst": table.worst, "universal": balls(table)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        found = kept(path, {"rows": {}})
        keep(path, found | whole | {part: change(found.get(part, {}))})
