"""Names of parts: of built-in ones, and ``module:name`` of the user's own, resolved alike for every kind of part.

A perturbation, point, term, attack, model, dataset, optimiser, writer or sign of masked gradients that a config names
may lie in any module that Python finds: ``kind="my_terms:entropy"`` is the function ``entropy`` of ``my_terms.py``, in
the current folder or on PYTHONPATH.

Importing a module runs its code. A name that the user wrote is imported; one that a workdir's config.json holds, which
may come from anyone, only if the user says that its module is trusted: `check_trust`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Part = TypeVar("Part")

# Neither a path such as "C:\\runs" or "runs/a:b" nor a version such as "mnist:3.0.1" is one. A module's name is a plain
# word to a shell, into which a message may be pasted.
_OF_MODULE = re.compile(r"(\w[\w.-]{0,199}):([A-Za-z_][\w.]{0,199})")
# Keys whose text is never resolved to a part: folders, and the name of one of the config's attacks.
_TEXT = re.compile(r"data\.data_dir|attacks\.[^.]*\.source|select_by")
LONGEST_NAME = 100
# Optimisers of a library that the package needs anyway; no dots, which could lead on to other modules.
_OF_OPTAX = re.compile(r"optimizer\.name=optax\.contrib:\w+")
# ``data.name="folder:PATH"`` names files, and no module.
FILES = ("folder", "npz")
# ``data.name`` or ``model.name="object:NAME#FINGERPRINT"`` records a Python object that a run was given.
OBJECT = "object:"


def module_of(name: Any) -> str | None:
    """The module of a name ``module:name``; None of any other name."""
    match = _OF_MODULE.fullmatch(name) if isinstance(name, str) else None
    return match[1] if match and match[1] not in FILES and not is_object(name) else None


def is_object(name: str) -> bool:
    """Whether a name records a Python object that a run was given, which cannot be found by it."""
    return name.startswith(OBJECT)


def check_trust(where: Any, config: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Refuses a config that names modules which the user does not trust, before anything of them is imported.

    Args:
      where: the config lies, for the message.
      config: as nested mappings, not to be trusted.
      trust: modules; a package stands for its modules too.

    Raises:
      ValueError: a part of another module; names the parts, their keys, and how to trust the modules.
    """
    if isinstance(trust, str):
        raise ValueError(f"trust={trust!r}: give a tuple of modules, ({trust!r},).")
    wanted = [part for part in _parts(config) if not _is_trusted(part[2], trust)]
    if wanted:
        parts = ", ".join(f"{path[:200]}={name!r}" for path, name, _ in wanted[:5]) + ", ..." * (len(wanted) > 5)
        modules = list(dict.fromkeys([*trust, *(module for *_, module in wanted)]))
        raise ValueError(
            f"{where} names parts that robust_jax does not have: {parts}. To import them would run the code of their "
            f"modules. If you trust it, say so: --trust={','.join(modules)}, in Python trust={tuple(modules)!r}."
        )


def modules_of(config: Mapping[str, Any]) -> list[str]:
    """The modules of which a config names parts, sorted."""
    return sorted({module for *_, module in _parts(config)})


def _parts(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The path, name and module of every ``module:name`` in a config."""
    texts = [t for t in _texts(config) if not (_TEXT.fullmatch(t[0]) or _OF_OPTAX.fullmatch("=".join(t)))]
    found = [(path, name, module_of(name)) for path, name in texts]
    return [(path, name, module) for path, name, module in found if module]


def _is_trusted(module: str, trust: Sequence[str]) -> bool:
    return any(module == trusted or module.startswith(f"{trusted}.") for trusted in trust if trusted)


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config with their paths; those of a tuple have its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _texts(entry, path)


def check_name(what: str, name: Any) -> None:
    """Raises ValueError unless a name of the user's, such as that of an attack, can stand in files and on screens.

    Args:
      what: is named, as the message calls it: "attacks".
      name: 1 to 100 printable characters without slashes.
    """
    fits = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.strip()
    if not fits or not name.isprintable() or {"/", "\\"} & set(name):
        shown = f"{name[:LONGEST_NAME]!r}..." if isinstance(name, str) and len(name) > LONGEST_NAME else repr(name)
        raise ValueError(
            f"{what}: the name {shown} cannot be used: give 1 to {LONGEST_NAME} printable characters, without / and \\."
        )


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
    shown = repr(value) if "\n" not in repr(value) else f"a {type(value).__name__}"
    near = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}={shown} is unknown: choose one of {choices}{or_else}.{hint}")


def find(what: str, name: Any, known: Mapping[str, Part]) -> Part:
    """The part of that name: a built-in one, or what ``module:name`` leads to.

    Args:
      what: is looked for, as messages name it: "terms.fgr.kind".
      name: a key of ``known``, or ``module:name``.
      known: the built-in parts.

    Raises:
      ValueError: an unknown name, listing all; a module that cannot be imported, or lacks the name.
    """
    module = module_of(name)
    if module is None:
        choose(what, name, known, ", or 'module:name' of your own")
        return known[name]
    attribute = name.removeprefix(f"{module}:")
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
