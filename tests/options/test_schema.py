"""A signature is the schema of its options: with and without postponed annotations, and with errors that say it all."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax.options import (
    REQUIRED,
    Convert,
    Count,
    Length,
    PathError,
    Positive,
    Range,
    Spread,
    arguments,
    arguments_of,
    check_call,
    check_options,
    function_of,
    options_of,
    with_path,
)


def doubled(name):
    if name not in ("one", "two"):
        raise ValueError(f"{name!r} is neither 'one' nor 'two'.")
    return name * 2


def pair(left: Positive, right: Annotated[Any, Range(least=0, tuples=True, required=True)] = 0.0):
    return left, right


Pair = Annotated[tuple, Spread(pair)]


def part(
    images,
    *,
    key=None,
    memory=None,
    steps_done=None,
    both: Pair,
    steps: Count = 3,
    size: Length | None = None,
    share: Annotated[float, Range(above=0, below=1, schedule=True)] = 0.5,
    mode: Literal["eval", "train"] = "eval",
    norm: Literal["l1", "l2"] | float = "l2",
    name: Annotated[str, Convert(doubled)] = "one",
    flag: bool = False,
    anything: Any = None,
):
    return images


GIVEN = {"kind": "part", "left": 1.0, "right": 0.1}


def check(**options):
    check_options("parts.mine", GIVEN | options, part)


def test_options_are_keyword_only_parameters_with_spread_ones_in_place():
    assert list(options_of(part)) == [
        "left", "right", "steps", "size", "share", "mode", "norm", "name", "flag", "anything"
    ]  # fmt: skip
    assert "both" in arguments_of(part) and "key" not in arguments_of(part)
    assert options_of(part)["left"].default is REQUIRED and options_of(part)["right"].default is REQUIRED
    assert options_of(part)["steps"].is_whole and options_of(part)["flag"].is_whole
    assert not options_of(part)["share"].is_whole
    assert options_of(part)["size"].range == Range(above=0, tuples=True)


def test_arguments_are_converted_and_put_together():
    assert arguments(part, {"left": 1.0, "right": 2.0, "name": "two", "steps": 5}) == {
        "both": (1.0, 2.0), "name": "twotwo", "steps": 5
    }  # fmt: skip
    assert arguments(part, {"left": 1.0, "right": 2.0})["name"] == "oneone"  # the default is a name too


@pytest.mark.parametrize(
    "options",
    [
        dict(steps=7), dict(steps=np.int32(7)), dict(size=None), dict(size=(1, 0.5)), dict(size=((1.0, 2.0), 3)),
        dict(share=np.float32(0.3)), dict(share=dict(start=0.1, end=0.2, epochs=1)), dict(mode="train"),
        dict(norm="l1"), dict(norm=1.5), dict(norm=3), dict(name="two"), dict(flag=True), dict(anything={"a": 1}),
        dict(right=(0.0, 1.0)), dict(right=np.array([0.0, 1.0])),
    ],
    ids=str,
)  # fmt: skip
def test_valid_options(options):
    check(**options)


MISTAKES = [
    (dict(steps=0), r"^parts.mine.steps=0 must be at least 1\."),
    (dict(steps=2.5), r"^parts.mine.steps=2.5 is of type float, not int\."),
    (dict(steps=True), r"^parts.mine.steps=True is of type bool, not int\."),
    (dict(steps=None), "^parts.mine.steps=None is of type NoneType, not int"),
    (dict(size=-1.0), "^parts.mine.size=-1.0 must be above 0"),
    (dict(size=(1.0, 0)), "^parts.mine.size=0 must be above 0"),
    (dict(size="wide"), "^parts.mine.size='wide': give a finite number, or one as 8/255, or a tuple"),
    (dict(share=1.0), "^parts.mine.share=1.0 must be below 1"),
    (dict(share=math.nan), "^parts.mine.share=nan: give a finite number, or one as 8/255[.]"),
    (dict(share=(0.1, 0.2)), "^parts.mine.share=.*: give a finite number, or one as 8/255[.]"),
    (dict(share="half"), "^parts.mine.share='half': give a finite number"),
    (dict(share={"start": 0.1}), "^parts.mine.share=.*a schedule has the numbers .*'start', 'end', 'epochs'"),
    (dict(share=dict(start=0.1, end=2.0, epochs=1)), "^parts.mine.share.end=2.0 must be below 1"),
    (dict(share=dict(start=0.1, end=0.2, epochs=0)), "epochs is above 0"),
    (dict(right=dict(start=0.1, end=0.2, epochs=1)), "^parts.mine.right=.*no schedule"),
    (dict(steps=dict(start=1, end=2, epochs=1)), "^parts.mine.steps=.*no schedule"),
    (dict(mode="evl"), "^parts.mine.mode='evl' is unknown: choose one of .*'eval', 'train'.*Did you mean 'eval'"),
    (dict(mode=1), "^parts.mine.mode=1 is unknown"),
    (dict(norm="l3"), "^parts.mine.norm='l3' is of type str, not 'l1' or 'l2' or float"),
    (dict(name="three"), "^parts.mine.name: 'three' is neither"),
    (dict(name=3), "^parts.mine.name=3 is of type int, not str"),
    (dict(flag=1), "^parts.mine.flag=1 is of type int, not bool"),
    (dict(left=0), "^parts.mine.left=0 must be above 0"),
    (dict(stpes=3), r"^parts.mine \(kind part\) has no option \['stpes'\]: valid are .*'kind', 'left'.*'steps'"),
    (dict(key=3), r"has no option \['key'\]"),
]


@pytest.mark.parametrize("options, message", MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        check(**options)


def test_missing_options_are_named():
    with pytest.raises(ValueError, match=r"^parts.mine \(kind part\) lacks \['right'\]: valid options are .*'right'"):
        check_options("parts.mine", {"kind": "part", "left": 1.0}, part)


def test_the_bounds_of_a_range():
    bounds = Range(least=0, most=1)
    for value in (0, 1, 0.5, np.float32(1), jnp.float32(0.5)):
        bounds.check("x", value)
    for value in (-0.1, 1.1, math.inf, 10**400, None, True, "1", (0.5,), np.array([0.5, 0.5])):
        with pytest.raises(ValueError, match="^x="):
            bounds.check("x", value)
    with pytest.raises(ValueError, match="at most 4294967295[.]"):  # every digit of it
        Range(most=2**32 - 1).check("x", 2**32)


def test_traced_values_pass():
    jax.eval_shape(lambda x: check(share=x, steps=x) or x, jnp.float32(7))


def test_arguments_of_a_call():
    check_call("part", part, dict(steps=2, both=None))
    with pytest.raises(ValueError, match="^part: steps=0 must be at least 1"):
        check_call("part", part, dict(steps=0))


def test_hints_that_cannot_be_resolved_are_an_error():
    def broken(x, *, option: NoSuchType = 3):  # noqa: F821
        return x

    with pytest.raises(ValueError, match="hints of .*broken cannot be resolved.*NoSuchType.*Import or define"):
        options_of(broken)
    with pytest.raises(PathError, match="^parts.mine: the type hints"):
        check_options("parts.mine", {"kind": "broken"}, broken)


def test_partials_and_callable_objects_have_options():
    class Model:
        def __call__(self, x, *, steps: Count = 2):
            return x

    assert options_of(Model())["steps"].range == Range(least=1)
    assert options_of(functools.partial(part, steps=9))["steps"].default == 9


@pytest.mark.parametrize("postponed", [True, False])
def test_files_with_and_without_postponed_annotations_are_read_alike(postponed, tmp_path, monkeypatch):
    name = f"options_postponed_{postponed}"
    source = (
        "from typing import Annotated, Literal\nfrom robust_jax.options import Range\n"
        "def mine(x, *, a: Literal['b', 'c'] = 'b', n: int = 1, w: Annotated[float, Range(below=2)] = 1.0): pass\n"
    )
    (tmp_path / f"{name}.py").write_text("from __future__ import annotations\n" * postponed + source)
    monkeypatch.syspath_prepend(tmp_path)
    mine = function_of("kind", f"{name}:mine", {})
    for options, message in (
        ({"a": "d"}, "p.a='d' is unknown: choose one of .*'b', 'c'"),
        ({"n": 1.5}, "p.n=1.5 is of type float, not int"),
        ({"w": 2.0}, "p.w=2.0 must be below 2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_options("p", options, mine)


def test_a_name_of_something_that_is_no_function(tmp_path, monkeypatch):
    (tmp_path / "options_no_function.py").write_text("three = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="points.p.kind='options_no_function:three' is of type int, not a function"):
        function_of("points.p.kind", "options_no_function:three", {})


def test_own_errors_get_a_path_and_those_of_libraries_keep_their_traceback():
    def own():
        raise ValueError("too small")

    with pytest.raises(PathError, match="^terms.a: too small"):
        with_path("terms.a", own)
    with pytest.raises(TypeError):
        with_path("terms.a", lambda: None + 1)

    def shapes(x):
        return with_path("terms.a", jnp.broadcast_to, x, (2, 2))

    with pytest.raises(ValueError) as error:
        jax.eval_shape(shapes, jnp.zeros(3))
    assert not isinstance(error.value, PathError)
