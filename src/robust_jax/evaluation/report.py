"""The output of an evaluation: JSON, arrays, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robust_jax.evaluation import curves, landscape_files, pictures
from robust_jax.evaluation import drawn as drawn_examples
from robust_jax.evaluation.drawing import png
from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.stored import EXAMPLES, REPORT
from robust_jax.evaluation.summary import Summary
from robust_jax.evaluation.table import Reports, alike, effort_of, images_of, labels_of, space_of, threat_of
from robust_jax.files import file_name, printable, write_atomically


def write(
    folder: Path,
    report: Mapping[str, Any],
    measured: PerExample,
    drawn: int,
    label: str = "model",
    surfaces: int = 0,
) -> Summary:
    """Writes the files of one evaluation; the JSON comes last, so that if it exists all others do.

    Args:
      folder: of the evaluation.
      report: the content of evaluation.json.
      measured: the results per example.
      drawn: the number of examples drawn per attack; 0: none.
      label: of the model, in its curves.
      surfaces: the number of examples per attack around which the loss is drawn; 0: none.

    Returns:
      The report with the names of its pictures.
    """
    table = io.BytesIO()
    np.savez_compressed(table, **measured.arrays())  # type: ignore[arg-type]
    write_atomically(folder / EXAMPLES, table.getvalue())
    drawn_now = draw_curves({label: report}, folder)
    drawn_examples.write(folder, measured, drawn)
    for name, outcome in measured.attacks.items():
        if drawn and outcome.sample and outcome.sample["clean"].shape[-1] in (1, 3):
            examples = jax.tree.map(lambda leaf: leaf[:drawn], outcome.sample)
            title = f"{name}: {threat_of(report['attacks'][name])}, {effort_of(report['attacks'][name])}"
            names = [drawable(name) for name in report.get("class_names") or ()]
            figure = pictures.adversarial_grid(**examples, title=drawable(title), class_names=names)
            drawn_now.append(picture_of("adversarial", name))
            write_atomically(folder / drawn_now[-1], png(figure))
    for kind, name, picture in landscape_files.drawn(measured, surfaces, jax.random.key(report.get("seed", 0))):
        drawn_now.append(picture_of(kind, name) if name else f"{kind}.png")
        write_atomically(folder / drawn_now[-1], picture)
    whole = Summary({**report, "pictures": drawn_now})
    write_json(folder / REPORT, whole)
    return whole


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, with the keys in their order."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def draw_curves(reports: Reports, folder: Path) -> list[str]:
    """Draws one chart per attack that has a curve and that all workdirs were evaluated with in the same way.

    Returns:
      The names of the files.
    """
    drawn = []
    for name, same in shared_attacks(reports).items():
        attack = same[0]
        if not all("curve" in a for a in same):
            continue
        radius = attack["threat"]["radius"]
        by_radius = isinstance(radius, (int, float))
        unit = attack["threat"].get("unit", "")
        figure = curves.accuracy_curves(
            {
                drawable(label): a["curve"] if by_radius else a["curve"] | {"radius": a["curve"]["multiple"]}
                for label, a in zip(labels_of(reports), same, strict=True)
            },
            title=drawable(f"{name}: {space_of(attack)}, {effort_of(attack)}, {counted(same)}"),
            xlabel=f"radius{f' ({unit})' if unit else ''}" if by_radius else f"radius / {radius}",
            highlight=radius if by_radius else 1.0,
        )
        drawn.append(picture_of("robustness", name))
        write_atomically(folder / drawn[-1], png(figure))
    return drawn


def counted(entries: Sequence[Mapping[str, Any]]) -> str:
    """The number of examples, or the numbers, that accuracies of one picture are of."""
    return "n = " + " and ".join(dict.fromkeys(str(entry["n"]) for entry in entries))


def shared_attacks(reports: Reports) -> dict[str, list[Mapping[str, Any]]]:
    """The attacks that all workdirs were evaluated with in the same way: name -> one entry per workdir.

    None if the images are not the same: of another split or dataset, or more of them.
    """
    if len(set(map(images_of, reports.values()))) > 1:
        return {}
    first, *others = [r["attacks"] for r in reports.values()]
    return {
        name: [attack, *(other[name] for other in others)]
        for name, attack in first.items()
        if all(name in other and alike(other[name], attack) for other in others)
    }


def drawable(text: str) -> str:
    """Text for a picture, in which matplotlib finds no formula, and which it does not leave out of a legend."""
    shown = printable(text).replace("$", r"\$")
    return rf"$\_${shown[1:]}" if shown.startswith("_") else shown


def picture_of(kind: str, name: str) -> str:
    """The name of the file of an attack's picture."""
    return f"{kind}_{file_name(name)}.png"
