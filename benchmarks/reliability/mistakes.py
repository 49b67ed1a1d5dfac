"""A table of mistakes, generated over the public API: attacks and penalties here, the rest in the modules beside.

Every case is one call with one argument that is wrong. It should end in one error that the package raises itself and
that names the argument. What is wrong is found from values and shapes, so that nothing has to compile.
"""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from re import search
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import robust_jax as rj
from robust_jax import attacks
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel

CLEAR, RAW, SILENT = "clear", "raw", "silent"
PACKAGE = Path(rj.__file__).parent


class Accepted(Exception):
    """Stands in for the work that a call would begin if nothing were wrong."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One call with a mistake.

    Attributes:
      group: of the table, such as "attacks".
      place: the function.
      mistake: what is wrong, in a few words.
      names: a regular expression that the message has to match: the argument.
      run: makes the call.
    """

    group: str
    place: str
    mistake: str
    names: str
    run: Callable[[], Any] = dataclasses.field(repr=False)


def outcome(case: Case) -> tuple[str, str]:
    """CLEAR, RAW or SILENT, and the error's type and message.

    An error is clear if it is a ValueError or TypeError of one line, the package's own code raises it, and its message
    names the argument.
    """
    try:
        case.run()
    except Accepted:
        return SILENT, ""
    except Exception as error:
        innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        own = isinstance(error, ValueError | TypeError) and not isinstance(error, jax.errors.JAXTypeError)
        own = own and innermost.is_relative_to(PACKAGE) and "\n" not in str(error) and str(error).isprintable()
        message = f"{type(error).__name__}: {error}"
        return (CLEAR if own and search(case.names, str(error)) else RAW), message
    return SILENT, ""


KEY = jax.random.key(0)
IMAGES, LABELS = np.full((2, 4, 4, 3), 0.5, np.float32), np.array([0, 1])
BALL = ThreatModel("additive", "linf", 0.1)
BALLS = {
    "carlini_wagner": ThreatModel("additive", "l2", 1.0), "ddn": ThreatModel("additive", "l2", 1.0),
    "ead": ThreatModel("additive", "l1", 1.0), "adef": ThreatModel("flow", "linf", 1.0),
    "stadv": ThreatModel("flow", "linf", 1.0), "grid": ThreatModel("affine", "linf", (30.0, 1.0, 1.0)),
}  # fmt: skip
UNIVERSAL = {name: getattr(attacks, name) for name in ("universal", "universal_gradient")}
ATTACKS = attacks.ATTACKS | UNIVERSAL


def model(images):
    return jnp.reshape(images, (len(images), -1))[:, :3]


class Plain(nn.Module):
    """A model that takes no ``train``."""

    @nn.compact
    def __call__(self, x):
        """Logits."""
        return nn.Dense(3)(x.reshape(len(x), -1))


PLAIN = rj.bind(Plain(), {"params": {"Dense_0": {"kernel": jnp.zeros((48, 3)), "bias": jnp.zeros(3)}}})
FUNCTIONS = {
    "no function": 3, "none": None, "text": "model", "a list": [model], "module": Plain(), "no train": PLAIN,
    "returns a tuple": lambda x: (model(x), x), "returns a dict": lambda x: {"logits": model(x)},
    "returns None": lambda x: None, "returns a number": lambda x: 1.0, "returns text": lambda x: "logits",
    "returns integers": lambda x: model(x).astype(int), "returns bools": lambda x: model(x) > 0,
    "returns classes": lambda x: model(x).argmax(-1), "numpy": lambda x: jnp.asarray(np.asarray(x)[:, 0, 0]),
    "if": lambda x: model(x) if x.sum() > 0 else -model(x), "one logit": lambda x: model(x)[:, :1],
    "no logit": lambda x: model(x)[:, :0], "fewer rows": lambda x: model(x)[:1], "a row": lambda x: model(x)[0],
    "rank 3": lambda x: model(x)[..., None], "wrong shapes": lambda x: model(x) @ jnp.ones((7, 2)),
    "bug": lambda x: x.no_such_attribute, "no argument": lambda: None, "two arguments": lambda x, y: model(x),
}  # fmt: skip
WRONG_IMAGES = {
    "None": None, "list": IMAGES.tolist(), "text": "images", "number": 0.5, "bytes": IMAGES.astype(np.uint8),
    "integers": IMAGES.astype(int), "bools": IMAGES > 0, "complex": IMAGES.astype(np.complex64),
    "objects": IMAGES.astype(object), "dict": {"image": IMAGES}, "one image": IMAGES[0], "rank 5": IMAGES[None],
    "vectors": IMAGES.reshape(2, -1), "empty": IMAGES[:0], "no pixels": IMAGES[:, :0], "no channel": IMAGES[..., :0],
    "too large": IMAGES * 255, "a little too large": np.full_like(IMAGES, 1.0000002), "negative": -IMAGES,
    "NaN": IMAGES * np.nan, "infinite": IMAGES * np.inf, "strings": np.array([["x"]]),
}  # fmt: skip
WRONG_LABELS = {
    "None": None, "list": [0, 1], "text": "cat", "floats": LABELS * 1.0, "one hot": np.eye(3)[LABELS],
    "one hot integers": np.eye(3, dtype=int)[LABELS], "fewer": LABELS[:1], "more": np.zeros(3, int),
    "too large": LABELS + 2, "huge": LABELS + 2**40, "negative": LABELS - 1, "bools": LABELS > 0, "number": 1,
    "column": LABELS[:, None], "strings": np.array(["a", "b"]),
}  # fmt: skip
WRONG_THREATS = {
    "None": None, "text": "flow", "number": 0.1, "perturbation": flow, "dict": dict(perturbation="flow", radius=1.0),
    "class": ThreatModel, "radius of another shape": ThreatModel("additive", "linf", (0.1,) * 7),
}  # fmt: skip
WRONG_KEYS = {
    "None": None, "number": 0, "float": 0.5, "text": "key", "raw": jax.random.PRNGKey(0),
    "too many": jax.random.split(KEY, 3), "grid": jax.random.split(KEY, (2, 2)),
}  # fmt: skip
ARGUMENTS = {
    "logits_fn": (FUNCTIONS, "logits_fn"), "images": (WRONG_IMAGES, "images"), "labels": (WRONG_LABELS, "labels"),
    "threat": (WRONG_THREATS, "threat|radius|perturbation|norm"), "key": (WRONG_KEYS, "key"),
}  # fmt: skip
OPTIONS = {
    "loss": ["crossentropy", 3, lambda z, y: z.mean(), lambda z, y: z, lambda z, y: None],
    "step_size": [0, -0.1, np.nan, "big", (0.1, 0.2)],
    "optimizer": ["adm", 3, lambda rate: rate],
    "points": [3, (3,), (0, 1, 1), (2.5, 1, 1)],
}


def option_mistakes(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Values that no option of the function takes, from the kind of its default and from `OPTIONS`."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name == "key":
            continue
        values = OPTIONS.get(name, [])
        if isinstance(parameter.default, bool):
            values = ["yes", 2, np.nan]
        elif isinstance(parameter.default, int | float) and np.isfinite(parameter.default):
            values = [-1, np.nan, np.inf, "3", [1], True]
        elif isinstance(parameter.default, str) and name != "loss":
            values = ["nonsense", 3, ["nonsense"]]
        yield from ((name, value) for value in values)


def call(function: Callable[..., Any], name: str, **wrong: Any) -> Callable[[], Any]:
    """A call of an attack whose arguments are right but for the given ones."""
    given = dict(logits_fn=model, images=IMAGES, labels=LABELS, threat=BALLS.get(name, BALL), key=KEY) | wrong
    places = [given.pop(place) for place in ("logits_fn", "images", "labels", "threat")]
    return partial(function, *places, **given)


def abstract(run: Callable[[], Any]) -> Callable[[], Any]:
    """The call without its computation: what is accepted compiles nothing."""

    def traced():
        run()
        return ()

    return lambda: jax.eval_shape(traced)


def of_attacks(names: Iterable[str] = tuple(ATTACKS)) -> Iterator[Case]:
    """Every argument and option of these attacks."""
    for name, function in ((name, ATTACKS[name]) for name in names):
        for argument, (values, names) in ARGUMENTS.items():
            for mistake, value in values.items():
                wrong = {argument: value}
                yield Case("attacks", name, f"{argument}: {mistake}", names, abstract(call(function, name, **wrong)))
        for option, value in option_mistakes(function):
            wrong = {option: value}
            yield Case("attacks", name, f"{option}={value!r}", option, abstract(call(function, name, **wrong)))
        yield Case("attacks", name, "unknown option", "nonsense", abstract(call(function, name, nonsense=1)))


LOSSES = {
    "no function": 3, "none": None, "text": "loss", "mean": lambda x: x.mean(), "logits": model,
    "column": lambda x: model(x)[:, :1], "tuple": lambda x: (x.mean((1, 2, 3)), x), "dict": lambda x: {"loss": x},
    "None": lambda x: None, "number": lambda x: 1.0, "integers": lambda x: x.sum((1, 2, 3)).astype(int),
    "numpy": lambda x: np.asarray(x).mean((1, 2, 3)), "fewer": lambda x: x[:1].mean((1, 2, 3)),
    "bug": lambda x: x.no_such_attribute, "no argument": lambda: None,
}  # fmt: skip
PENALTIES = {
    "gradient_norm": lambda f, x, threat: rj.gradient_norm(f, x, threat.perturbation),
    "value_and_gradient_norm": lambda f, x, threat: rj.value_and_gradient_norm(f, x, threat.perturbation),
    "first_order_gain": rj.first_order_gain,
    "steepest": rj.steepest,
    "local_flatness": partial(rj.local_flatness, key=KEY),
}
PENALTY_OPTIONS = [
    ("perturbation", "flwo"), ("perturbation", None), ("perturbation", 3), ("norm", "l0"), ("norm", 0.5),
    ("norm", None), ("norm", np.nan), ("power", 0), ("power", -1), ("power", "two"), ("power", np.nan),
    ("method", "double"), ("method", None), ("step", 0), ("step", np.nan), ("scale", np.nan), ("scale", "big"),
    ("scale", (1, 2)), ("has_aux", True), ("has_aux", "yes"),
]  # fmt: skip
FLATNESS_OPTIONS = [
    ("steps", 0), ("steps", 2.5), ("steps", "ten"), ("step_size", -1), ("step_size", np.nan), ("norm", "l0"),
    ("random_start", "yes"), ("key", 0), ("key", None), ("key", jax.random.split(KEY, 3)),
]  # fmt: skip


def mean(images):
    """A loss per image."""
    return images.mean((1, 2, 3))


def of_penalties() -> Iterator[Case]:
    """Every argument and option of every penalty."""
    whatever = {"too large", "a little too large", "negative", "NaN", "infinite", "empty"}
    for name, penalty in PENALTIES.items():
        boxed = name == "local_flatness"
        wrong = {m: v for m, v in WRONG_IMAGES.items() if m not in whatever or boxed and m != "empty"}
        for mistake, value in LOSSES.items():
            yield Case("rest", name, f"loss_fn: {mistake}", "loss_fn", abstract(partial(penalty, value, IMAGES, BALL)))
        for mistake, value in wrong.items():
            yield Case("rest", name, f"images: {mistake}", "images", abstract(partial(penalty, mean, value, BALL)))
        for mistake, value in WRONG_THREATS.items() if "norm" not in name else ():
            names = ARGUMENTS["threat"][1]
            yield Case("rest", name, f"threat: {mistake}", names, abstract(partial(penalty, mean, IMAGES, value)))
    for option, value in PENALTY_OPTIONS:
        for name in ("value_and_gradient_norm", "gradient_norm"):
            given = {"perturbation": "additive"} | {option: value}
            if (name, option) != ("gradient_norm", "has_aux"):
                run = abstract(partial(getattr(rj, name), mean, IMAGES, **given))
                yield Case("rest", name, f"{option}={value!r}", option, run)
    for option, value in FLATNESS_OPTIONS:
        run = abstract(partial(rj.local_flatness, mean, IMAGES, BALL, **{"key": KEY} | {option: value}))
        yield Case("rest", "local_flatness", f"{option}={value!r}", option, run)
