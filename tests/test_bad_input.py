"""A table of mistakes, generated over all attacks and penalties: each is one error of the package that names its place.

Nothing compiles: what is wrong is found before, from values and shapes.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_jax as rj
from robust_jax import attacks
from robust_jax.evaluation.robustness import Attack, robustness
from robust_jax.spaces.flow import flow
from robust_jax.spaces.threat_models import ThreatModel

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
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


PLAIN = rj.bind(Plain(), {"params": {"Dense_0": {"kernel": jnp.zeros((48, 3)), "bias": jnp.zeros(3)}}})
FUNCTIONS = {
    "no function": 3, "none": None, "module": Plain(), "no train": PLAIN,
    "returns a tuple": lambda x: (model(x), x), "returns a dict": lambda x: {"logits": model(x)},
    "returns None": lambda x: None, "returns integers": lambda x: model(x).astype(int),
    "returns classes": lambda x: model(x).argmax(-1), "numpy": lambda x: jnp.asarray(np.asarray(x)[:, 0, 0]),
    "if": lambda x: model(x) if x.sum() > 0 else -model(x), "one logit": lambda x: model(x)[:, :1],
    "fewer rows": lambda x: model(x)[:1], "a row": lambda x: model(x)[0],
    "wrong shapes": lambda x: model(x) @ jnp.ones((7, 2)),
    "bug": lambda x: x.no_such_attribute,
}  # fmt: skip
MISTAKES = (
    {f"logits_fn {name}": (dict(logits_fn=value), "logits_fn") for name, value in FUNCTIONS.items()}
    | {
        f"images {name}": (dict(images=value), "images")
        for name, value in {
            "None": None,
            "list": IMAGES.tolist(),
            "text": "images",
            "bytes": IMAGES.astype(np.uint8),
            "integers": IMAGES.astype(int),
            "one image": IMAGES[0],
            "empty": IMAGES[:0],
            "no pixels": IMAGES[:, :0],
            "too large": IMAGES * 255,
            "negative": -IMAGES,
            "NaN": IMAGES * np.nan,
            "strings": np.array([["x"]]),
        }.items()
    }  # fmt: skip
    | {
        f"labels {name}": (dict(labels=value), "labels")
        for name, value in {
            "None": None,
            "list": [0, 1],
            "floats": LABELS * 1.0,
            "one hot": np.eye(3)[LABELS],
            "fewer": LABELS[:1],
            "too large": LABELS + 2,
            "negative": LABELS - 1,
            "bools": LABELS > 0,
            "number": 1,
        }.items()
    }  # fmt: skip
    | {
        f"threat {name}": (dict(threat=value), "threat|radius|perturbation|norm")
        for name, value in {
            "None": None,
            "text": "flow",
            "number": 0.1,
            "perturbation": flow,
            "radius of another shape": ThreatModel("additive", "linf", (0.1,) * 7),
        }.items()
    }  # fmt: skip
    | {
        f"key {name}": (dict(key=value), "key")
        for name, value in {
            "None": None,
            "number": 0,
            "raw": jax.random.PRNGKey(0),
            "too many": jax.random.split(KEY, 3),
            "grid": jax.random.split(KEY, (2, 2)),
        }.items()
    }  # fmt: skip
)
OPTIONS = {
    "loss": ["crossentropy", 3, lambda z, y: z.mean(), lambda z, y: z, lambda z, y: None],
    "step_size": [0, -0.1, np.nan, "big", (0.1, 0.2)],
    "optimizer": ["adm", 3, lambda rate: rate],
    "points": [3, (3,), (0, 1, 1), (2.5, 1, 1)],
}


def option_mistakes(function):
    """Values that no option of the function takes, from the kind of its default and from `OPTIONS`."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name == "key":
            continue
        values = OPTIONS.get(name, [])
        if isinstance(parameter.default, bool):
            values = ["yes", 2]
        elif isinstance(parameter.default, int | float) and np.isfinite(parameter.default):
            values = [-1, np.nan, "3", [1]]
        elif isinstance(parameter.default, str) and name != "loss":
            values = ["nonsense", 3]
        yield from ((name, value) for value in values)


def call(function, name, **wrong):
    given = dict(logits_fn=model, images=IMAGES, labels=LABELS, threat=BALLS.get(name, BALL), key=KEY) | wrong
    return partial(
        function, given.pop("logits_fn"), given.pop("images"), given.pop("labels"), given.pop("threat"), **given
    )


def check(run, names):
    """The call raises a ValueError or TypeError of the package, whose message names the place."""
    with pytest.raises((ValueError, TypeError), match=names) as raised:
        run()
    assert raised.traceback[-1].path.is_relative_to(rj.__path__[0]), raised.getrepr(style="short")
    assert not isinstance(raised.value, jax.errors.JAXTypeError)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_names_the_argument_that_is_wrong(name):
    for wrong, names in MISTAKES.values():
        if name == "auto_attack" and wrong.get("logits_fn") is None and "logits_fn" in wrong:
            names = "logits_fn"
        check(call(ATTACKS[name], name, **wrong), names)
    for option, value in option_mistakes(ATTACKS[name]):
        check(call(ATTACKS[name], name, **{option: value}), option)


LOSSES = {
    "no function": 3, "none": None, "mean": lambda x: x.mean(), "logits": model, "column": lambda x: model(x)[:, :1],
    "tuple": lambda x: (x.mean((1, 2, 3)), x), "dict": lambda x: {"loss": x}, "None": lambda x: None,
    "number": lambda x: 1.0, "integers": lambda x: x.sum((1, 2, 3)).astype(int),
    "numpy": lambda x: np.asarray(x).mean((1, 2, 3)), "fewer": lambda x: x[:1].mean((1, 2, 3)),
}  # fmt: skip
FLOATS = {"None": None, "list": [0.0], "bytes": IMAGES.astype(np.uint8), "one image": IMAGES[0]}
PENALTIES = {
    "gradient_norm": lambda f, x, threat: rj.gradient_norm(f, x, threat.perturbation),
    "value_and_gradient_norm": lambda f, x, threat: rj.value_and_gradient_norm(f, x, threat.perturbation),
    "first_order_gain": rj.first_order_gain,
    "steepest": rj.steepest,
    "local_flatness": partial(rj.local_flatness, key=KEY),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_names_the_argument_that_is_wrong(name):
    penalty, good = PENALTIES[name], lambda x: x.mean((1, 2, 3))
    for wrong in LOSSES.values():
        check(partial(penalty, wrong, IMAGES, BALL), "loss_fn")
    for wrong in FLOATS.values():
        check(partial(penalty, good, wrong, BALL), "images")
    if "norm" not in name:
        for wrong in (None, "flow", 0.1):
            check(partial(penalty, good, IMAGES, wrong), "threat")


@pytest.mark.parametrize(
    "option, value",
    [
        ("perturbation", "flwo"), ("perturbation", None), ("perturbation", 3), ("norm", "l0"), ("norm", 0.5),
        ("power", 0), ("power", -1), ("power", "two"), ("method", "double"), ("step", 0),
        ("step", np.nan), ("has_aux", True),
    ],
)  # fmt: skip
def test_options_of_a_penalty(option, value):
    given = {"perturbation": "additive"} | {option: value}
    check(partial(rj.value_and_gradient_norm, lambda x: x.mean((1, 2, 3)), IMAGES, **given), option)


def test_messages_name_the_way_out():
    for wrong, message in (
        (dict(images=np.full((2, 4, 4, 3), 1.0000002, np.float32)), "1.00000024.*rounding.*clip"),
        (dict(images=IMAGES * 255), "divide bytes by 255"),
        (dict(images=IMAGES - 1), "mean and std"),
        (dict(logits_fn=lambda x: model(x)[:, :1]), r"sigmoid.*jnp.stack\(\[0 \* z, z\], -1\)"),
        (dict(logits_fn=FUNCTIONS["numpy"]), "black_box"),
        (dict(logits_fn=Plain()), "bind"),
        (dict(logits_fn=PLAIN), r"takes no train: give lambda images: module.apply\(variables, images\)"),
    ):
        check(call(attacks.pgd, "pgd", **wrong), message)


def test_what_a_model_returns_is_checked_under_jit_too():
    for name in ("returns a tuple", "one logit", "fewer rows"):
        run = jax.jit(lambda x, y, name=name: attacks.fgsm(FUNCTIONS[name], x, y, BALL, key=KEY).images)
        with pytest.raises(ValueError, match="logits_fn"):
            run.lower(IMAGES, LABELS)


def test_channels_first_is_refused_where_pixels_move_and_can_be_insisted_on():
    turned = np.full((2, 3, 16, 16), 0.5, np.float32)
    mean = lambda x: x.mean((1, 2, 3))  # noqa: E731
    radii = {"flow": 1.0, "affine": (30.0, 1.0, 1.0), ("additive", "flow"): (0.1, 1.0)}
    for space, radius in radii.items():
        check(
            call(attacks.pgd, "pgd", images=turned, threat=ThreatModel(space, "linf", radius)),
            "channels first.*moveaxis",
        )
        check(partial(rj.gradient_norm, mean, turned, space), "channels first.*moves_pixels=False")
    meant = dataclasses.replace(flow, moves_pixels=False)
    for space, images in ((meant, turned), ("additive", turned), ("flow", np.zeros((2, 1, 6, 3), np.float32))):
        lowered = jax.jit(partial(rj.gradient_norm, mean, perturbation=space)).lower(images)
        assert lowered.out_info.shape == (2,)


def test_a_universal_delta_of_one_channel_is_not_spread_over_three():
    check(partial(attacks.apply_universal, BALL, IMAGES, np.zeros((1, 4, 4, 1))), r"delta.*\(4, 4, 1\).*\(4, 4, 3\)")
    both = ThreatModel(("flow", "additive"), "linf", (1.0, 0.1))
    check(partial(attacks.apply_universal, both, IMAGES, np.zeros((1, 4, 4, 3))), "delta")
    for target in ("cat", 1.0, [0, 1]):
        check(partial(attacks.universal_targeted, model, IMAGES, target, BALL, key=KEY), "target")


def test_batches_and_attacks_of_an_evaluation():
    batch = {"image": IMAGES, "label": LABELS}
    for batches, given, key, names in (
        ([(IMAGES, LABELS)], {}, KEY, r"batches.*dict\(image=images, label=labels\)"),
        ([{"images": IMAGES, "labels": LABELS}], {}, KEY, "batches.*'images'"),
        ([batch], {"pgd": attacks.pgd}, KEY, r"attacks.pgd.*Attack\(function"),
        ([batch], {}, 0, "key"),
        ([batch | {"label": LABELS * 1.0}], {}, KEY, "labels"),
    ):
        check(partial(robustness, model, batches, given, key=key), names)
    for given, names in (
        (("pgd", BALL), "function"), ((attacks.pgd, "flow"), "threat"), ((attacks.pgd, BALL, [3]), "settings"),
        ((attacks.pgd, BALL, {}, ("x",)), "curve"),
    ):  # fmt: skip
        check(partial(Attack, *given), names)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_is_right_passes(dtype):
    images = jnp.asarray(IMAGES, dtype)
    run = partial(attacks.pgd, model, images, LABELS, BALL, key=KEY, steps=np.int64(2), restarts=np.int32(1))
    assert jax.eval_shape(run).images.dtype == dtype
