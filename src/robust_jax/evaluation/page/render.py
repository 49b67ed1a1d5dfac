"""Plain data to HTML, by the templates beside this file."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from robust_jax.evaluation.page import charts


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robust_jax.evaluation", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    environment.globals |= {
        "line_chart": charts.line_chart, "confusion": charts.confusion, "shape": charts.shape, "marks": charts.MARKS,
    }  # fmt: skip
    return environment


def page(data: dict[str, Any]) -> str:
    """The whole page: one HTML document that loads nothing."""
    return _environment().get_template("page.html").render(page=data, version=version("robust_jax"))


def table(data: dict[str, Any]) -> str:
    """The table of accuracies alone, for a notebook."""
    return _environment().get_template("table.html").render(page=data)
