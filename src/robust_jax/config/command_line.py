"""``--config.KEY=VALUE``: keys of a config that a command line sets, in the type of the key."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict
from ml_collections.config_flags import config_flags

from robust_jax.config.validation import complete
from robust_jax.config.values import number
from robust_jax.options import SCHEDULE

OVERRIDE = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)


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
            new = f". New {names[0]} are added in a config file" if names[0] in ("points", "terms", "attacks") else ""
            new += "; robust-jax attack needs none" if names[0] == "attacks" else ""
            raise ValueError(f"--config.{path}: {where} has no key {name!r}; {valid}{new}.")
        group, here = here, here[name]
    return group, names[-1], here
