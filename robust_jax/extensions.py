"""Names of parts: of built-in ones, and ``module:name`` of the user's own, resolved alike for every kind of part.

A perturbation, point, term, attack, model, dataset or sign of masked gradients that a config names may lie in any
module that Python finds: ``kind="my_terms:entropy"`` is the function ``entropy`` of ``my_terms.py``, in the current
folder or on PYTHONPATH.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Part = TypeVar("Part")


def choose(what: str, value: Any, choices: Iterable[Any], or_else: str = "") -> None:
    """Raises ValueError, with all choices and the likeliest, unless value is one of them.

    Args:
      what: is chosen, as the message names it: "evaluation.split".
      value: the choice.
      choices: all there are.
      or_else: how the message ends: another way to choose.
    """
    choices = sorted(choices)
    if isinstance(value, str | int | float) and value in choices:
        return
    near = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}={value!r} is unknown: choose one of {choices}{or_else}.{hint}")


def find(what: str, name: Any, known: Mapping[str, Part]) -> Part:
    """The part of that name: a built-in one, or what ``module:name`` leads to.

    Args:
      what: is looked for, as messages name it: "terms.fgr.kind".
      name: a key of ``known``, or ``module:name``.
      known: the built-in parts.

    Raises:
      ValueError: an unknown name, listing all; a module that cannot be imported, or lacks the name.
    """
    if not (isinstance(name, str) and ":" in name):
        choose(what, name, known, ", or 'module:name' of your own")
        return known[name]
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what}={name!r} cannot be imported: {error}. The module must lie in the current folder or on PYTHONPATH."
        ) from error
    return found  # type: ignore[return-value]


def collect(package: str, folder: Iterable[str], wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """All wanted objects that the modules of a package define, by name: a part is listed by being there.

    Args:
      package: its ``__name__``.
      folder: its ``__path__``.
      wanted: whether an object is a part.
    """
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(folder)]
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if wanted(value) and getattr(value, "__module__", None) in (module.__name__, type(value).__module__)
    }
    return dict(sorted(found.items()))
