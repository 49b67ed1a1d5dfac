"""Attacks trained workdirs with one attack, without a config; the result is stored as every evaluation.

robust-jax attack runs/digits_fgr --attack=auto_attack --perturbation=additive --norm=linf --radius=8/255
robust-jax attack runs/digits_fgr --attack=pgd --perturbation=flow,additive --radius=0.155,8/255

Every option of the attack is a flag, --KEY=VALUE, also written --option=KEY=VALUE; `robust-jax list attacks` names the
attacks. Several perturbations are their composition, with a radius for each. What is left out is as the
workdir's own config says: split, limit, seed, checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from absl import flags, logging

from robust_jax import cli
from robust_jax.attacks import ATTACKS
from robust_jax.config.command_line import literal
from robust_jax.evaluation import evaluate
from robust_jax.extensions import choose
from robust_jax.options import options_of

POSITIONAL = ("workdir",)


def define(options: flags.FlagValues) -> None:
    """Defines the flags."""
    text, number = (partial(f, default=None, flag_values=options) for f in (flags.DEFINE_string, flags.DEFINE_integer))
    flags.DEFINE_list("workdir", [], "What train wrote; several are compared.", flag_values=options)
    text("attack", help="One of `robust-jax list attacks`, or module:name of your own.")
    text("perturbation", help="One of `robust-jax list perturbations`, module:name, or several with commas.")
    text("norm", help="Of the ball, such as linf; several with commas for several perturbations.")
    text("radius", help="A number or a fraction such as 8/255; several with commas.")
    text("curve", help="Multiples of the radius to measure at too, such as 0,0.5,1,2.")
    text("name", help="Of the attack in tables and files; default: that of --attack.")
    flags.DEFINE_multi_string("option", [], "KEY=VALUE, an option of the attack.", flag_values=options)
    text("split", help="test, validation or train.")
    number("limit", help="The number of examples, the first ones; 0: all.")
    number("seed", help="Of the attack's random draws.")
    number("batch_size", help="Examples at a time.")
    number("checks", help="The number of images examined for signs of masked gradients; 0: none.")
    number("pictures", help="The number of examples drawn, at most 10; 0: none.")
    text("checkpoint", help="best or latest.")
    text("data_dir", help="Of the prepared datasets.")
    text("out", help="The name of the evaluation; of several workdirs, the folder of their comparison.")
    words = "Keeps adversarial images and δ in adversarial.npz."
    flags.DEFINE_bool("save_adversarial", False, words, flag_values=options)
    flags.DEFINE_list("trust", [], "The modules, with commas, that workdirs may name parts of.", flag_values=options)


def rewritten(arguments: Sequence[str], options: flags.FlagValues) -> list[str]:
    """The arguments with ``--KEY=VALUE`` and ``--KEY VALUE`` as ``--option=KEY=VALUE`` where KEY is no flag."""
    found: list[str] = []
    rest = list(arguments)
    switches = _switches(rest)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--") or name in (*options, "help") or not name.isidentifier():
            found.append(argument)
            takes_value = name in options and not options[name].boolean
            if argument.startswith("--") and not equals and takes_value and rest:
                found.append(rest.pop(0))  # the value of a flag
            continue
        if not equals:
            words = ["true", "True", "false", "False"] if name in switches else rest[:1]
            follows = bool(rest) and not rest[0].startswith("--") and rest[0] in words
            value = rest.pop(0) if follows else "true"
        found.append(f"--option={name}={value}")
    return found


def _switches(arguments: Sequence[str]) -> set[str]:
    """The options of the attack that the arguments name which are on or off: no value need follow."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--attack=")]
    apart = [value for flag, value in pairwise(arguments) if flag == "--attack"]
    function = ATTACKS.get(next(iter([*joined, *apart]), ""))
    return {name for name, option in options_of(function).items() if bool in option.kinds} if function else set()


def main(options: flags.FlagValues, overrides: list[str]) -> None:
    """Attacks the workdirs."""
    logging.set_verbosity(logging.WARNING)
    cli.refuse_overrides("attack", overrides, " Options of the attack are --KEY=VALUE.")
    workdirs = [workdir for workdir in options.workdir if workdir]
    if not workdirs:
        raise ValueError("attack needs a workdir: robust-jax attack runs/digits_fgr --attack=pgd ...")
    if ":" not in (options.attack or ""):
        choose("--attack", options.attack or "", ATTACKS, ", or module:name of your own")
    if ":" in f"{options.attack}{options.perturbation}{options.option}":
        cli.search_current_folder()  # the user names a part of a module
    name = options.name or options.attack.rpartition(":")[2]
    names = ("split", "limit", "seed", "batch_size", "checks", "pictures", "checkpoint", "data_dir", "out")
    given: dict[str, Any] = {key: options[key].value for key in names if options[key].value is not None}
    given |= {"save_adversarial": options.save_adversarial, "worst_case_only": False}  # of one attack it is the same
    evaluate(workdirs, {name: spec_of(options)}, **given, trust=cli.trusted(options.trust))


def spec_of(options: flags.FlagValues) -> dict[str, Any]:
    """The attack as its entry in a config.

    Raises:
      ValueError: no perturbation or radius; an option without a value, or one that is a flag of its own.
    """
    for flag in ("perturbation", "radius"):
        if not options[flag].value:
            raise ValueError(f"--{flag} is missing: give the ball, as in --perturbation=additive --radius=8/255.")
    spec: dict[str, Any] = {"kind": options.attack, "radius": literal(options.radius)}
    for key in ("perturbation", "norm"):
        if value := options[key].value:
            parts = tuple(part.strip() for part in value.strip("()").split(","))
            spec[key] = parts if len(parts) > 1 else parts[0]
    if options.curve:
        curve = literal(options.curve)
        spec["curve"] = curve if isinstance(curve, tuple) else (curve,)
    for option in options.option:
        key, equals, value = option.partition("=")
        if not equals or key in spec:
            raise ValueError(f"--option={option}: give KEY=VALUE of an option of {options.attack}, once.")
        spec[key] = literal(value)
    return spec
