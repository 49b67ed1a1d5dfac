"""Thousands of random overrides of configs: each is refused in one message, or taken as it was written.

    python -m benchmarks.reliability.overrides [--overrides=10000] [--seed=0] [--out=FILE]

A config file of the repository is drawn, and one to three overrides ``--config.KEY=TEXT``: keys that exist, are
misspelled, or name groups; texts that are numbers in many ways of writing, names, tuples, nothing, or nonsense. An
override is taken as it was written if the key's value is what Python's own parsers read in the text (the text itself,
where the key holds text), no other key has changed, and the config reads back from its config.json as the same. Any
other outcome than that or one message that names the key is listed.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import math
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from benchmarks.reliability import results
from benchmarks.reliability.mistakes import PACKAGE
from robust_jax import cli
from robust_jax.config import complete
from robust_jax.config.command_line import overridden
from robust_jax.files import printable
from robust_jax.workdir import saved_config

CONFIGS = ("digits_fgr", "digits_igr", "digits_rat", "digits_standard", "mnist_adt", "mnist_maxout", "mnist_standard")
TAKEN, REFUSED, RAW, SILENT = "taken as written", "refused in one message", "raw error", "silently something else"
COLUMNS = ("overrides of", "commands", TAKEN, REFUSED, RAW, SILENT)

NUMBERS = [
    "0", "1", "2", "7", "10", "128", "-1", "0.5", "0.1", ".5", "5.", "1e-3", "1E2", "8/255", "-8/255", "1/3", "0/1",
    "1/0", "1.5/255", "+2", " 3 ", "1_000", "0x10", "0b1", "007", "1e400", "1e-400", "-0", "-0.0", "nan", "NaN",
    "inf", "-inf", "1e17", "99999999999999999999", "4294967295", "4294967296", "2**3", "1,5", "1.5.2", "1/2/3", "٣",
    "½", "1j", "1e", "9" * 400, "0.30000000000000004", "1e-45",
]  # fmt: skip
WORDS = [
    "", " ", "true", "false", "True", "False", "yes", "no", "none", "None", "null", "x", "flow", "additive", "linf",
    "l2", "L2", "pgd", "sgd", "adam", "constant", "cosine", "best", "latest", "test", "digits", "mnist", "float32",
    "bfloat16", "2024/05", "3", "1.0", "/data/1", "~/data", "a b", "a=b", "--x", "-", "é", "日本", "\x1b[31m", "\n",
    "\0", "[/x]", "'x'", '"x"', "a" * 300, "no_such:part", "os:system", ":", "a:", "../x", "__import__('os')",
    "lambda: 0", "config", "{}",
]  # fmt: skip
TUPLES = [
    "()", "(1,)", "(1, 2)", "(0.5, 1)", "[1, 2]", "(8/255,)", "(8/255, 0.1)", "(1/0,)", "(1, 'x')", "(nan,)", "(-1, 1)",
    "((1, 2),)", "(1, 2", "1, 2", "('my_parts:sign',)", "(" * 300 + ")" * 300, "{'a': 1}", "{1, 2}", "b'x'", "(1e400,)",
    "(None,)", "(True,)",
]  # fmt: skip


def fuzzed(draw: random.Random, text: str) -> str:
    """A text with one character removed, doubled or replaced."""
    i = draw.randrange(len(text) + 1)
    return draw.choice(
        (text[: max(i - 1, 0)] + text[i:], text[:i] + text[i : i + 1] + text[i:], text[:i] + "x" + text[i + 1 :])
    )


def drawn(draw: random.Random, config: Mapping[str, Any]) -> tuple[str, str]:
    """A key, and a text for it."""
    flat = flatten_dict(config, sep=".")
    key = draw.choice(sorted(flat))
    alike = [value for value in flat.values() if type(value) is type(flat[key])]
    own = [str(draw.choice(alike)), str(flat[key])]
    if isinstance(flat[key], int | float):
        own += [repr(type(flat[key])(flat[key] * draw.choice((0.1, 0.5, 2, 3)))), f"{draw.randint(1, 255)}/255"]
    text = draw.choice(draw.choice((NUMBERS, WORDS, TUPLES, own, own, own)))
    if draw.random() < 0.15:
        text = fuzzed(draw, text)
    where = draw.random()
    if where < 0.1:
        key = fuzzed(draw, key)
    elif where < 0.15:
        key = key.rpartition(".")[0] or key
    return key, text


def readings(text: str) -> list[Any]:
    """What Python's own parsers read in a text: all ways to take it."""
    found: list[Any] = [text]
    for read in (lambda t: float(Fraction(t.replace(" ", ""))), float, int, lambda t: int(t, 0), _with_fractions):
        try:
            found.append(read(text.strip()))
        except (ValueError, ZeroDivisionError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
            continue
    found += {"true": [True], "false": [False], "1": [True], "0": [False]}.get(text.lower(), [])
    return found


def _with_fractions(text: str) -> Any:
    """A Python literal in which ``a/b`` is a number."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return value(node.left) / value(node.right)
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(value(entry) for entry in node.elts)
        return ast.literal_eval(node)

    return value(ast.parse(text, mode="eval").body)


def same(value: Any, other: Any) -> bool:
    """Whether two values are the same number, text, or tuple of such; True is not 1, and "1" is not 1."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, bool) or isinstance(other, bool) or isinstance(value, str) or isinstance(other, str):
        return type(value) is type(other) and value == other
    if isinstance(value, int | float) and isinstance(other, int | float):
        return value == other or math.isnan(value) and math.isnan(other)
    return value is other or value == other


def as_written(before: Any, key: str, text: str, after: Any) -> bool:
    """Whether a key of that value may have that new one after an override by the text."""
    if isinstance(before, str) and not (key.endswith(".norm") and not isinstance(after, str)):  # "linf", or a p
        return same(after, text)
    if (
        isinstance(before, bool) != isinstance(after, bool)
        and before is not None
        and not key.startswith("model.options")
    ):
        return False
    alone = isinstance(before, tuple) and isinstance(after, tuple) and len(after) == 1  # one value for a tuple of one
    return any(same(after, reading) or alone and same(after[0], reading) for reading in readings(text))


def verdict(load: Callable[[], ConfigDict], given: Mapping[str, str], workdir: Path) -> tuple[str, str]:
    """How a command with these overrides ends, and what to say about it."""
    before = flatten_dict(load().to_dict(), sep=".")
    try:
        changed = overridden(load(), [f"--config.{key}={text}" for key, text in given.items()])
    except ValueError as error:
        innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        message = printable(str(error))
        named = any(part in message for key in given for part in (key, key.split(".")[-1], printable(key)))
        clear = innermost.is_relative_to(PACKAGE) and "\n" not in message and len(message) < 4000 and named
        return (REFUSED if clear else RAW), f"{type(error).__name__}: {error}"
    except Exception as error:
        return RAW, f"{type(error).__name__}: {error}"
    after = flatten_dict(changed.to_dict(), sep=".")
    for key, text in given.items():
        if key not in after or not as_written(before.get(key), key, text, after[key]):
            return SILENT, f"{key} is {after.get(key, 'gone')!r}"
    others = [key for key in {*before, *after} - {*given} if not same(before.get(key), after.get(key))]
    if others := [key for key in others if not any(key.startswith(f"{other}.") for other in given)]:
        return SILENT, f"{others[0]} was {before.get(others[0])!r} and is {after.get(others[0])!r}"
    (workdir / "config.json").write_text(json.dumps(saved_config.plain(changed)))
    if saved_config.plain(complete(saved_config.read_config(workdir))) != saved_config.plain(changed):
        return SILENT, "config.json reads back as another config"
    return TAKEN, ""


def tried(overrides: int, seed: int) -> tuple[dict[str, collections.Counter[str]], list[dict[str, Any]], int]:
    """The outcomes for each config, those that should not be, and the number of overrides that were tried."""
    draw = random.Random(seed)
    configs = {name: complete(cli.load_config(name)) for name in CONFIGS}
    counts = {name: collections.Counter[str]() for name in CONFIGS}
    done, listed = 0, []
    with tempfile.TemporaryDirectory() as workdir:
        while done < overrides:
            name = draw.choice(CONFIGS)
            given = dict(drawn(draw, configs[name].to_dict()) for _ in range(draw.choice((1, 1, 1, 2, 3))))
            done += len(given)
            found, why = verdict(configs[name].copy_and_resolve_references, given, Path(workdir))
            counts[name][found] += 1
            if found in (RAW, SILENT):
                listed.append({"config": name, "overrides": given, "outcome": found, "why": why[:500]})
    return counts, listed, done


def main() -> None:
    """Prints the table and what is listed; exit status 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overrides", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    counts, listed, done = tried(options.overrides, options.seed)
    rows = [[name, found.total(), *(found[end] for end in COLUMNS[2:])] for name, found in counts.items()]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(COLUMNS)))])
    results.report(COLUMNS, rows, options.out, options.seed, overrides=done, listed=listed)
    for entry in listed:
        print(json.dumps(entry), file=sys.stderr)
    sys.exit(bool(listed))


if __name__ == "__main__":
    main()
