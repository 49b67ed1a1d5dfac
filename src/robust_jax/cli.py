"""Command lines: config files, overrides, and one message for each mistake."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_dict
from ml_collections.config_flags import config_flags

from robust_jax import configs, extensions, parallel
from robust_jax.config.validation import complete
from robust_jax.config.values import number
from robust_jax.files import printable
from robust_jax.options import SCHEDULE
from robust_jax.training.stopping import Stopped

OVERRIDE = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)


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


class _NumberParser(flags.ArgumentParser):
    """A number, or a fraction such as 8/255."""

    def parse(self, argument: str | float) -> float:
        value = number(argument)
        if isinstance(value, str):
            raise ValueError(f"{argument!r} is not a number, nor a fraction such as 8/255")
        return float(value)


class _LiteralParser(flags.ArgumentParser):
    """A Python literal whose numbers may be fractions, "(8/255, 0.1)"; any other text is a string."""

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        try:
            return _literal(ast.parse(argument.strip(), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError):
            return {"true": True, "false": False}.get(argument, argument)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _literal(node.left) / _literal(node.right)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(map(_literal, node.elts))
    return ast.literal_eval(node)


def literal(text: str) -> Any:
    """The value of a text on a command line: a number, a fraction, a tuple of them, true, false, or else the text."""
    return _LiteralParser().parse(text)


class _TupleParser(_LiteralParser):
    """A tuple of numbers or texts, "(0.5, 8/255)", "tensorboard,wandb"; a single one is a tuple of it."""

    def parse(self, argument: Any) -> Any:
        value = super().parse(argument)
        if isinstance(value, dict | set | bytes):
            raise ValueError(f"{argument!r} is no tuple, such as (0.5, 8/255)")
        if isinstance(value, str):
            return tuple(part.strip() for part in value.strip("()[]").split(",") if part.strip())
        return value if isinstance(value, tuple) else (value,)


# Keys of type float take fractions, keys without a type (None, or a number that may be a tuple) any literal.
config_flags.register_flag_parser_for_type(float, _NumberParser())
config_flags.register_flag_parser_for_type(object, _LiteralParser())
config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def overridden(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """The config with every ``--config.a.b=value`` of the arguments applied, completed and checked.

    A value has the type of the key; a number may be written as a fraction such as 8/255.

    Raises:
      ValueError: an unknown key, listing the valid ones; a value of the wrong type; what `complete` raises.
    """
    config = complete(config)  # before as well as after: a workdir of an earlier version lacks the newest options
    for argument in arguments:
        path, value = _path_and_value(argument)
        _make_room_for_another_type(config, path, value)
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=parsed, sys_argv=["", *arguments])
    try:
        parsed(["", *arguments])
    except (flags.Error, ValueError, TypeError) as error:
        raise ValueError(str(error).removeprefix("flag ").replace("\n", "\\n")) from None
    return complete(parsed.config)


def _path_and_value(argument: str) -> tuple[str, str | None]:
    match = OVERRIDE.fullmatch(argument)
    assert match, argument
    return match[1], match[2]


def _make_room_for_another_type(config: ConfigDict, path: str, value: str | None) -> None:
    """Frees the type of a key where an override may change it: None, an option of the model, a schedule, a tuple.

    Raises:
      ValueError: the key does not exist, or is a group of keys.
    """
    section, _, name = path.partition(".options.")
    if section in ("model", "optimizer") and name:  # whichever options the model or the optimiser has
        group, current = config[section].options, None
    else:
        group, name, current = _at(config, path)
    if isinstance(current, ConfigDict) and sorted(current) == sorted(SCHEDULE):
        with group.ignore_type():
            group[name] = current = 0.0  # a number replaces the schedule
    if isinstance(current, ConfigDict):
        raise ValueError(f"--config.{path} is a group: override one of its keys, {sorted(current)}.")
    tuple_for_number = isinstance(current, float) and str(value).startswith(("(", "["))
    if current is None or tuple_for_number:
        group[name] = config_dict.placeholder(object)


def _at(config: ConfigDict, path: str) -> tuple[ConfigDict, str, Any]:
    """The group that holds the key, the key's own name, and its value."""
    group = here = config
    for i, name in enumerate(names := path.split(".")):
        if not isinstance(here, ConfigDict) or name not in here:
            where = ".".join(["config", *names[:i]])
            valid = f"valid keys are {sorted(here)}" if isinstance(here, ConfigDict) else "it is a value, no group"
            raise ValueError(f"--config.{path}: {where} has no key {name!r}; {valid}.")
        group, here = here, here[name]
    return group, names[-1], here


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
        _, *rest = options(arguments)
        for name, value in zip(positional, rest, strict=False):
            options[name].parse(value)
        if positional and len(rest) > len(positional) and isinstance(options[positional[-1]].value, list):
            options[positional[-1]].parse(rest[len(positional) - 1 :])
            rest = []
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
