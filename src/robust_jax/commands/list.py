"""Lists what a config can name, and the configs of the package, with a line each.

robust-jax list KIND
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import partial
from typing import Any

from absl import flags

from robust_jax import cli, spaces
from robust_jax.extensions import choose

POSITIONAL = ("kind",)

# What a config can name: kind -> the table of its parts, MODULE:NAME.
KINDS = {
    "attacks": "robust_jax.attacks:ATTACKS",
    "configs": "robust_jax.cli:config_names",
    "datasets": "robust_jax.data.known:KNOWN",
    "methods": "robust_jax.config.methods:METHODS",
    "models": "robust_jax.models:MODELS",
    "optimizers": "robust_jax.config.optimizers:known_optimizers",
    "perturbations": "robust_jax.spaces.registry:built_in",
    "points": "robust_jax.objectives.points:POINTS",
    "terms": "robust_jax.objectives.terms:TERMS",
    "writers": "robust_jax.training.writers:built_in",
}


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("kind", "", f"One of {', '.join(KINDS)}.", flag_values=options)


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Prints the names of a kind."""
    cli.refuse_overrides("list", overrides)
    choose("list", options.kind, KINDS)
    lines = list(listed(options.kind))
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:{width}}  {text}" for name, text in lines))


def listed(kind: str) -> Iterable[tuple[str, str]]:
    """The name of every built-in part of a kind, and the first sentence of what it says about itself."""
    if kind == "configs":
        for name in cli.config_names():
            yield name, _first_paragraph(ast.get_docstring(ast.parse(cli.config_file(name).read_text())))
        return
    module, _, name = KINDS[kind].partition(":")
    parts = getattr(importlib.import_module(module), name)
    for name, part in sorted((parts() if callable(parts) else parts).items()):
        yield name, _described(kind, name, part)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _described(kind: str, name: str, part: Any) -> str:
    if kind == "datasets":
        shape, names = "x".join(map(str, part.image_shape)), ", ".join(part.class_names[:3])
        return f"{shape}, {part.num_classes} classes: {names}, ..."
    if kind == "perturbations":
        paths = (f"{spaces.__name__}.{module.name}" for module in pkgutil.iter_modules(spaces.__path__))
        home = next(m for m in map(importlib.import_module, paths) if any(value is part for value in vars(m).values()))
        return _first_paragraph(home.__doc__)
    settings = part.keywords if isinstance(part, partial) else {}
    shown = _first_paragraph(inspect.getdoc(part.func if isinstance(part, partial) else part))
    return f"{shown} ({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else shown
