"""What a page shows, as plain data: from the files of workdirs to sections, each of which may be missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from robust_jax.evaluation.page import advice, details, images, reproduce, sources, tables, words
from robust_jax.evaluation.page.sources import Evaluation, Run
from robust_jax.evaluation.table import ALIKE, images_of
from robust_jax.files import printable


def collect(workdirs: Sequence[Any]) -> dict[str, Any]:
    """Everything that a page shows.

    Args:
      workdirs: folders that train or `robust_jax.show` wrote; all their evaluations are taken.

    Returns:
      columns (one per evaluation), rows (of the table), and one list per section of the page; what is missing, or
      cannot be read, is said in ``notes``.

    Raises:
      ValueError: no workdir, or a folder that is none.
    """
    runs, notes = sources.read(workdirs)
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    columns = [_column(i, run, evaluation) for i, (run, evaluation) in enumerate(pairs)]
    if len({images_of(column["report"]) for column in columns}) > 1:
        notes.append(tables.OTHERS)

    def each(what: str, function: Callable[..., Any]) -> list[Any]:
        """The results of a section for each evaluation, with a note in place of one that cannot be shown."""
        found = []
        for column, (run, evaluation) in zip(columns, pairs, strict=True):
            where = f"{column['label']}: {what}"
            value = sources.tried(where, lambda r=run, e=evaluation: function(r, e), None, notes)  # type: ignore[misc]
            if value:
                found.append({"column": column, "value": value})
        return found

    def once(what: str, function: Callable[..., Any], *given: Any) -> Any:
        return sources.tried(what, lambda: function(*given), [], notes)

    return {
        "title": _title([printable(run.label) for run in runs]),
        "runs": [{"label": printable(run.label), "folder": printable(str(run.folder))} for run in runs],
        "columns": columns,
        "rows": tables.rows([c["report"] for c in columns]),
        "warnings": each("the warnings", lambda _, e: [advice.advise(printable(w)) for w in e.report["warnings"]]),
        "curves": once("the curves", _curves, columns),
        "trade_off": once("the trade-off", _trade_off, columns),
        "training": once("the training curves", _training, runs),
        "classes": each("the accuracies per class", lambda _, e: details.per_class(e)),
        "confusions": each("the confusion matrices", lambda _, e: details.confusions(e)),
        "gallery": each("the adversarial examples", lambda _, e: details.gallery(e)),
        "hardest": each("the worst examples", lambda _, e: details.hardest(e)),
        "universal": once("the universal perturbations", _universal, runs),
        "surfaces": each("the loss surface", _surfaces),
        "reproduce": each("how to measure it again", _reproduce),
        "training_again": once("how to train it again", _training_again, runs),
        "notes": list(map(printable, notes)),
    }  # fmt: skip


def _title(labels: Sequence[str]) -> str:
    if len(labels) > 3:
        return f"Robustness of {len(labels)} runs"
    return "Robustness of " + " and ".join([", ".join(labels[:-1]), labels[-1]] if labels[1:] else labels)


def _column(index: int, run: Run, evaluation: Evaluation) -> dict[str, Any]:
    several = len(run.evaluations) > 1
    name = evaluation.name or "evaluation.json"
    data, model = (run.config.get(key) for key in ("data", "model"))
    report = evaluation.report
    return {
        "index": index,
        "label": printable(f"{run.label} / {name}" if several else run.label),
        "run": printable(run.label),
        "evaluation": printable(evaluation.name),
        "folder": printable(str(run.folder)),
        "dataset": printable(str(data.get("name", ""))) if isinstance(data, Mapping) else "",
        "model": printable(str(model.get("name", ""))) if isinstance(model, Mapping) else "",
        "split": printable(str(report.get("split") or "")),
        "report": report,
    }


def _curves(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chart per attack with a curve; evaluations that ran it in the same way, on the same images, share it."""
    charts: dict[Any, dict[str, Any]] = {}
    for column in columns:
        for name, attack in column["report"]["attacks"].items():
            if "curve" not in attack:
                continue
            curve, radius = attack["curve"], attack["threat"]["radius"]
            single = isinstance(radius, int | float)
            unit = attack["threat"].get("unit") or ""
            about = ", ".join((words.threat(attack), words.effort(attack), _examples(column)))
            chart = charts.setdefault(
                (name, about, images_of(column["report"]), _setting(attack)),
                {"title": printable(name), "about": about, "series": [],
                 "x_label": (f"radius ({unit})" if unit else "radius") if single else "multiple of the radius",
                 "mark": float(radius) if single else 1.0},
            )  # fmt: skip
            points = [
                (float(x), float(y), float(low), float(high))
                for x, y, (low, high) in zip(
                    curve["radius" if single else "multiple"], curve["accuracy"], curve["interval"], strict=True
                )
            ]
            chart["series"].append(
                {"name": column["label"], "colour": column["index"], "points": sorted(points), "dots": True}
            )
    return list(charts.values())


def _examples(column: Mapping[str, Any]) -> str:
    """The images of an evaluation: those of another split, or more of them, do not compare."""
    return f"{column['split'] or 'split not known'}, n = {column['report']['clean']['n']:,}"


def _setting(attack: Mapping[str, Any]) -> str:
    """All that says whether two attacks of a name are one, as `report.shared_attacks` has it."""
    return json.dumps([attack.get(key) for key in ALIKE], sort_keys=True, default=str)


def _trade_off(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Robust against clean accuracy, a chart per attack that two or more runs ran in the same way, on the same images.

    The rows are those of the table.
    """
    charts = []
    for row in tables.rows([c["report"] for c in columns]):
        alike: dict[Any, list[Any]] = {}
        for column, cell in zip(columns, row["cells"], strict=True):
            if cell and row["name"] != "clean":
                attacks = column["report"]["attacks"]  # the worst case is of all
                own = [attacks[row["name"]]] if row["name"] in attacks else attacks.values()
                alike.setdefault((_examples(column), images_of(column["report"]), *map(_setting, own)), []).append(
                    (column, cell)
                )
        charts += [_trade_off_of(row, images, known) for (images, *_), known in alike.items()
                   if len({c["folder"] for c, _ in known}) > 1]  # fmt: skip
    return charts


def _trade_off_of(row: Mapping[str, Any], images: str, known: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """The chart of one attack: a point per evaluation."""
    series = []
    for column, cell in known:
        clean = column["report"]["clean"]
        series.append(
            {"name": column["label"], "colour": column["index"], "line": False, "dots": True,
             "points": [(clean["accuracy"], cell["accuracy"], cell["low"], cell["high"])],
             "spread": [tuple(clean["interval"])]}
        )  # fmt: skip
    about = ", ".join(filter(None, (row["threat"], row["effort"], images)))
    return {"title": row["name"], "about": about, "series": series, "x_label": "clean accuracy"}


def _training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Accuracy while training and on validation of all runs; the loss and its terms, a chart per run."""
    charts = [*_training_accuracy(runs), *_validation(runs), *_losses(runs)]
    return [chart | {"x_label": "epoch"} for chart in charts]


def _training_accuracy(runs: Sequence[Run]) -> list[dict[str, Any]]:
    series = []
    for i, run in enumerate(runs):
        label = printable(run.label)
        series.append({"name": f"{label}, training", "colour": i, "faint": True, "points": _over(run, "accuracy")})
        series.append({"name": label, "colour": i, "dots": True, "points": _over(run, "validation/clean")})
    about = "Dots: clean validation images. Pale: training batches, at the points of the objective."
    known = _known(series)
    return [{"title": "Accuracy", "about": about, "percent": True, "series": known}] if known else []


def _validation(runs: Sequence[Run]) -> list[dict[str, Any]]:
    names = dict.fromkeys(k for run in runs for line in run.metrics for k in line if k.startswith("validation/"))
    charts = []
    for name in [name for name in names if name != "validation/clean"]:
        series = [{"name": printable(run.label), "colour": i, "dots": True, "points": _over(run, name)}
                  for i, run in enumerate(runs)]  # fmt: skip
        about = "Of the validation images."
        charts.append({"title": printable(name), "about": about, "percent": True, "series": _known(series)})
    return charts


def _losses(runs: Sequence[Run]) -> list[dict[str, Any]]:
    charts = []
    for run in runs:
        terms = dict.fromkeys(k for line in run.metrics for k in line if k.startswith("terms/"))
        keys = ["loss", *(terms if len(terms) > 1 else ())]
        series = [{"name": printable(key.removeprefix("terms/")), "colour": i, "points": _over(run, key)}
                  for i, key in enumerate(keys)]  # fmt: skip
        if series := _known(series):
            about = "The objective and its terms, before weights." if len(series) > 1 else "The objective."
            charts.append({"title": f"Loss: {printable(run.label)}", "about": about, "percent": False,
                           "series": series})  # fmt: skip
    return charts


def _over(run: Run, key: str) -> list[tuple[float, float, None, None]]:
    return [(line["epoch"], line[key], None, None) for line in run.metrics if key in line]


def _known(series: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in series if one["points"]]


def _universal(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        names = next((e.report.get("class_names") or () for e in run.evaluations), ())
        for point, memory in run.memory.items():
            spec = (run.config.get("points") or {}).get(point) or {}
            shown = details.universal(memory, spec, names)
            found.append({"label": printable(run.label), "point": printable(point), **shown})
    return found


def _surfaces(_: Run, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {"name": printable(name.replace("_", " ")), "src": images.data_uri(content)}
        for name, content in evaluation.landscapes.items()
    ]


def _reproduce(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    report = evaluation.report
    trained = bool(run.config)
    return {
        "python": reproduce.evaluation(run.folder, report) if trained else "",
        "facts": reproduce.facts(report),
    }


def _training_again(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {"label": printable(run.label), "python": reproduce.training(run.folder, run.config),
         "differences": reproduce.differences(run.config)}
        for run in runs if run.config
    ]  # fmt: skip
