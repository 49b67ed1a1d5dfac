"""Commands: ``python -m robust_jax prepare NAME`` and ``python -m robust_jax list KIND``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from robust_jax.data import originals, prepare

# What a config can name: kind -> the table of its parts, MODULE:NAME.
KINDS = {
    "attacks": "robust_jax.attacks:ATTACKS",
    "points": "robust_jax.objectives.points:POINTS",
    "terms": "robust_jax.objectives.terms:TERMS",
    "methods": "robust_jax.config.methods:METHODS",
    "models": "robust_jax.models:MODELS",
    "datasets": "robust_jax.data.known:KNOWN",
    "perturbations": "robust_jax.spaces.registry:built_in",
}


def listed(kind: str) -> Iterable[tuple[str, str]]:
    """The name of every built-in part of a kind, and the first sentence of what it says about itself."""
    module, _, name = KINDS[kind].partition(":")
    parts = getattr(importlib.import_module(module), name)
    for name, part in sorted((parts() if callable(parts) else parts).items()):
        yield name, _described(kind, name, part)


def _described(kind: str, name: str, part: Any) -> str:
    if kind == "datasets":
        shape, names = "x".join(map(str, part.image_shape)), ", ".join(part.class_names[:3])
        return f"{shape}, {part.num_classes} classes: {names}, ..."
    if kind == "perturbations":
        homes = (importlib.import_module(f"robust_jax.spaces.{home}") for home in ("additive", "affine", "flow"))
        home = next(module for module in homes if hasattr(module, name))
        return " ".join((home.__doc__ or "").split("\n\n")[0].split())
    settings = part.keywords if isinstance(part, partial) else {}
    text = inspect.getdoc(part.func if isinstance(part, partial) else part) or ""
    shown = " ".join(text.split("\n\n")[0].split())
    return f"{shown} ({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a mistake is one message, and 1."""
    parser = argparse.ArgumentParser(prog="python -m robust_jax")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="prepares a dataset from its original files, which it may download")
    one.add_argument("name", help=f"one of {', '.join(originals.ORIGINALS)}")
    one.add_argument(
        "--from", nargs="+", default=(), dest="source", metavar="FILE", help="the original files, or a folder of them"
    )
    one.add_argument("--data_dir", default=None, help="of prepared datasets; default: that of TFDS")
    one.add_argument("--unverified", action="store_true", help="takes files with another checksum than the published")
    one = commands.add_parser("list", help="lists what a config can name")
    one.add_argument("kind", choices=KINDS, help=f"one of {', '.join(KINDS)}", metavar="KIND")
    given = parser.parse_args(arguments)
    if given.command == "list":
        lines = list(listed(given.kind))
        width = max(len(name) for name, _ in lines)
        print("\n".join(f"{name:{width}}  {text}" for name, text in lines))
        return 0
    try:
        prepare.prepare(given.name, given.source, given.data_dir, unverified=given.unverified)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
