"""The accuracies of all evaluations, as rows for the page and as CSV, LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from robust_jax.evaluation.page import words
from robust_jax.evaluation.table import Row, by_row, entries_of, images_of
from robust_jax.files import printable

OTHERS = "These are not the same images: the columns do not compare."
FIELDS = (
    "workdir", "evaluation", "attack", "accuracy", "low", "high", "n", "perturbation", "norm", "radius", "unit", "kind",
    "steps", "restarts", "seed", "split", "checkpoint_step", "effort", "after",
)  # fmt: skip


def entries(report: Mapping[str, Any]) -> list[tuple[Row, Mapping[str, Any]]]:
    """The rows of one evaluation, see `table.entries_of`, in words that can be printed."""
    return [((printable(name), words.tidy(threat), printable(effort)), entry)
            for (name, threat, effort), entry in entries_of(report)]  # fmt: skip


def rows(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per attack that any evaluation has, with a cell per evaluation, None where it lacks the attack."""
    return [
        {"name": name, "threat": threat, "effort": effort,
         "cells": [_cell(cells.get(column)) for column in range(len(reports))]}
        for (name, threat, effort), cells in by_row(dict(enumerate(map(entries, reports)))).items()
    ]  # fmt: skip


def _cell(entry: Mapping[str, Any] | None) -> dict[str, float] | None:
    if entry is None:
        return None
    low, high = entry["interval"]
    return {"accuracy": entry["accuracy"], "low": low, "high": high, "n": entry["n"]}


def as_csv(columns: Sequence[Mapping[str, Any]]) -> str:
    """A row per workdir, evaluation and attack; numbers are plain, and several of one field are JSON."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n", restval="")
    writer.writeheader()
    for column in columns:
        report = column["report"]
        common = {"workdir": column["folder"], "evaluation": column["evaluation"]}
        common |= {key: report.get(key, "") for key in ("seed", "split", "checkpoint_step")}
        names = ("clean", *report["attacks"], "worst_case")
        for name, ((*_, effort), entry) in zip(names, entries(report), strict=False):
            threat, settings = entry.get("threat") or {}, entry.get("settings") or {}
            low, high = entry["interval"]
            row = {"attack": printable(name), "accuracy": entry["accuracy"]}
            row |= {"low": low, "high": high, "n": entry["n"], "kind": settings.get("attack", "")}
            row |= {key: _flat(threat.get(key, "")) for key in ("perturbation", "norm", "radius", "unit")}
            row |= {key: _flat(settings.get(key, "")) for key in ("steps", "restarts")}
            row |= {"effort": effort, "after": ", ".join(map(str, entry.get("after") or ()))}
            writer.writerow({key: printable(v) if isinstance(v, str) else v for key, v in (common | row).items()})
    return out.getvalue()


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def as_markdown(columns: Sequence[Mapping[str, Any]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [["attack", "threat", "effort", *(c["label"] for c in columns)], ["---"] * 3 + ["---:"] * len(columns)]
    for row in rows([c["report"] for c in columns]):
        lines.append([row["name"], row["threat"], row["effort"], *map(_percent, row["cells"])])
    table = "".join("| " + " | ".join(map(_markdown, line)) + " |\n" for line in lines)
    return f"{table}\n{_markdown(_caption(columns))}\n"


def as_latex(columns: Sequence[Mapping[str, Any]]) -> str:
    """A table for the package booktabs."""
    head = " & ".join(["attack", "threat", "effort", *(_latex(c["label"]) for c in columns)])
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{lll{'r' * len(columns)}}}", r"\toprule"]
    lines += [rf"{head} \\", r"\midrule"]
    for row in rows([c["report"] for c in columns]):
        cells = [_latex(row[key]) for key in ("name", "threat", "effort")]
        cells += [_latex(_percent(cell, "--")) for cell in row["cells"]]
        apart = "{}" if cells[0].startswith(("[", "*")) else ""  # from the \\ before, whose argument it would be
        lines.append(rf"{apart}{' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {_latex(_caption(columns))}", ""])


def _caption(columns: Sequence[Mapping[str, Any]]) -> str:
    sizes = sorted({column["report"]["clean"]["n"] for column in columns})
    splits = sorted({str(column["report"].get("split") or "") for column in columns} - {""})
    where = printable(f" on the {' and '.join(splits)} split" if splits else "")
    caption = f"Accuracy in per cent{where} with 95% Wilson intervals, n = {' and '.join(map(str, sizes))}."
    return f"{caption} {OTHERS}" if len({images_of(column["report"]) for column in columns}) > 1 else caption


def _percent(cell: Mapping[str, float] | None, nothing: str = "") -> str:
    if cell is None:
        return nothing
    return f"{100 * cell['accuracy']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _markdown(text: str) -> str:
    """Text that Markdown and the HTML within it leave alone."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split())) if set(text) - set("-:") else text


_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "‖": r"$\|$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
} | {character: rf"\{character}" for character in "&%$#_{}"}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
