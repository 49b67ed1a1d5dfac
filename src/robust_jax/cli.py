"""Command lines: config files, flags, and one message for each mistake."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from robust_jax import configs, extensions, parallel
from robust_jax.config.command_line import OVERRIDE
from robust_jax.files import printable
from robust_jax.training.stopping import Stopped


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in Path(configs.__file__).parent.glob("*.py") if path.stem != "__init__")


def config_file(name: str) -> Path:
    """The file of a config that comes with the package."""
    return Path(configs.__file__).parent / f"{name}.py"


def load_config(name: str) -> ConfigDict:
    """The result of ``get_config()`` in a Python file, or in a config of the package.

    Args:
      name: ``FILE.py``, or one of `config_names`; with ``:ARGUMENT``, ``get_config(ARGUMENT)`` is called.

    Raises:
      ValueError: no such file or name, no such function in it, or what it raises.
    """
    path, argument, own = _located(name)
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    if own:
        search_current_folder()  # for modules of the user's own, beside the file
        # Configs build on each other: `from my_configs.first import ...`.
        sys.path.insert(0, str(path.parent.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        if own:
            sys.path.pop(0)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={name}: the file defines no get_config().")
    try:
        return module.get_config(*[argument][: bool(argument)])
    except (AttributeError, KeyError, TypeError, OverflowError) as error:  # how a ConfigDict refuses a key or a value
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == path.parent]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else path
        raise ValueError(f"{where}: {error}") from error


def _located(name: str) -> tuple[Path, str, bool]:
    """The file of a config, the argument of its get_config, and whether it is the user's own.

    Raises:
      ValueError: there is no such config.
    """
    file, _, argument = name.partition(".py:")
    if argument or name.endswith(".py"):
        path = Path(file if file.endswith(".py") else f"{file}.py").absolute()
        if not path.is_file():
            beside = sorted(str(p) for p in path.parent.glob("*.py"))
            raise ValueError(
                f"--config={name}: there is no such file. There are: {beside}; with the package come: {config_names()}."
            )
        return path, argument, True
    stem, _, argument = name.partition(":")
    extensions.choose("--config", stem, config_names(), ", or FILE.py of your own")
    return config_file(stem), argument, False


def run(
    main: Callable[[flags.FlagValues, list[str]], None],
    arguments: Sequence[str] | None = None,
    *,
    options: flags.FlagValues = flags.FLAGS,
    positional: Sequence[str] = (),
    about: str | None = None,
) -> None:
    """Parses flags, calls ``main(options, overrides)``, and exits.

    A ValueError that this package raises, which is a mistake that the user can correct, becomes one message on stderr
    and exit status 2. Compiled programs are kept for the next run, see `keep_compiled`.

    Args:
      main: the program.
      arguments: of the command line, the name of the program first; those of this process unless given.
      options: the flags that the program defined.
      positional: the flags that arguments without a name are values of, in order; the last one takes all others too.
      about: what ``--help`` prints before the flags; the docstring of the module that was started unless given.
    """
    keep_compiled()
    given = list(sys.argv if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(about or sys.modules["__main__"].__doc__, _help_of(options), sep="\n")
        return
    overrides = [a for a in given if OVERRIDE.fullmatch(a)]
    if any(":" in override for override in overrides):  # one may name a part
        search_current_folder()
    try:
        _parse(options, [a for a in given if a not in overrides], positional)
        main(options, overrides)
    except ValueError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parent not in raised_in.parents and raised_in.name != Path(given[0]).name:
            _leave_with_traceback()  # not raised by this package: the traceback is needed
        print(printable(f"{Path(given[0]).name}: {error}"), file=sys.stderr)
        parallel.leave(2)
    except Stopped as stop:  # all hosts do
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("Interrupted; start again to resume.", file=sys.stderr)
        parallel.leave(130)
    except Exception:
        _leave_with_traceback()


def _parse(options: flags.FlagValues, arguments: list[str], positional: Sequence[str]) -> None:
    """Sets the flags by the arguments.

    Raises:
      ValueError: an unknown flag, a value that does not fit, an argument too many.
    """
    known = f"Flags: {_own_flags(options)}, and --config.KEY=VALUE"
    try:
        options.set_gnu_getopt()  # flags may come after arguments without a name
        rest: list[Any] = options(arguments)[1:]
        last = len(positional) - 1
        if len(rest) > last >= 0 and isinstance(options[positional[last]].value, list):
            rest = [*rest[:last], rest[last:]]  # a list takes all that follow
        for name, value in zip(positional, rest, strict=False):
            flag = options[name]
            if flag.present and not isinstance(value, list):
                raise ValueError(f"{name} is given twice, {flag.value!r} and {value!r}. {known}.")
            flag.parse([*(flag.value or ()), *value] if flag.present else value)
        options.validate_all_flags()
    except flags.Error as error:
        raise ValueError(f"{error}. {known}.") from None
    if rest[len(positional) :]:
        raise ValueError(f"unexpected {rest[len(positional) :]}: overrides are written --config.KEY=VALUE. {known}.")


def _help_of(options: flags.FlagValues) -> str:
    return options.main_module_help() if options is flags.FLAGS else options.get_help()


def _leave_with_traceback() -> None:
    traceback.print_exc()
    parallel.leave(1)


def search_current_folder() -> None:
    """Lets Python find modules in the current folder, last of all: where a part ``module:name`` may lie.

    Only for names that the user wrote and modules that the user trusts. Otherwise a file of the current folder, which
    may be a download, would be taken for a package that is asked for but not installed, such as TensorFlow.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def refuse_overrides(command: str, overrides: Sequence[str], remedy: str = "") -> None:
    """Raises ValueError for overrides of a config that a command does not have."""
    if overrides:
        raise ValueError(f"unexpected {overrides}: {command} has no config.{remedy}")


def trusted(modules: Sequence[str]) -> tuple[str, ...]:
    """The modules of the flag ``--trust``, which may lie in the current folder.

    Raises:
      ValueError: what is no name of a module.
    """
    names = tuple(module.strip().removesuffix(".py") for module in modules)
    for name in names:
        if not extensions.module_of(f"{name}:part"):
            raise ValueError(f"--trust={','.join(modules)}: {name!r} is no module. Give names, such as my_parts.")
    if names:
        search_current_folder()
    return names


def keep_compiled() -> None:
    """Keeps programs that took over a second to compile in the user's cache folder, at most a GiB.

    JAX's own setting has precedence: JAX_COMPILATION_CACHE_DIR=FOLDER, or empty for no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robust_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 2**30)


def _own_flags(options: flags.FlagValues) -> list[str]:
    known = options.flags_by_module_dict()
    return sorted(f"--{flag.name}" for module in known if not module.startswith("absl.") for flag in known[module])


def default_workdir(config: str) -> str:
    """``runs/`` and the config's name, with its argument if it has one."""
    path, _, argument = config.replace(".py:", ":").partition(":")
    return f"runs/{Path(path).stem}" + (f"_{argument}" if argument else "")
