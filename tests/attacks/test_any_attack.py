"""What every attack promises, whatever the image, model, radius and norm: drawn by hypothesis.

Weights, images, labels and radii are traced, so that one compilation serves all that is drawn of them. A `Case` is
what compiles anew: by default an attack has one or two, with the profile "thorough" all that it takes.
"""

from __future__ import annotations

import inspect
import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from properties import KEY, check_result
from robust_jax import attacks
from robust_jax.models import bind
from robust_jax.spaces.threat_models import ThreatModel
from simple_models import Net

pytestmark = pytest.mark.usefixtures("quick_compile")

UNIVERSAL = {name: getattr(attacks, name) for name in ("universal", "universal_gradient", "universal_targeted")}
STOPPING = {f"{name} early_stop": partial(attacks.ATTACKS[name], early_stop=True) for name in ("pgd", "apgd")}
FUNCTIONS = attacks.ATTACKS | UNIVERSAL | STOPPING
# Small, but every loop is entered, and most of them again.
EFFORT = dict(
    steps=3, restarts=2, samples=3, queries=8, draws=2, levels=3, points=(3, 2, 1), binary_search_steps=2,
    max_pixels=4, epochs=2,
)  # fmt: skip

SIZES = [((3, 4, 4, 2), 3), ((1, 5, 3, 1), 11), ((2, 1, 6, 3), 2), ((1, 1, 1, 1), 3)]
FLOW_AND_INTENSITY, AFFINE_AND_INTENSITY = ("flow", "additive"), ("affine", "additive")
ANY = [
    ("additive", "linf"), ("flow", "l2inf"), ("affine", "linf"), ("additive", "l1"), ("additive", "l2"),
    (FLOW_AND_INTENSITY, ("l2", "linf")), ("flow", "l2"), ("flow", "l21"), ("affine", "l2"), ("additive", 3.0),
    (AFFINE_AND_INTENSITY, ("linf", "l1")), ("flow", 1.5), ("additive", "l21"),
]  # fmt: skip
TAKES = {
    "adef": [pair for pair in ANY if pair[0] == "flow"],
    "carlini_wagner": [("additive", "l2"), ("flow", "l2"), ("affine", "l2"), (FLOW_AND_INTENSITY, "l2")],
    "ead": [("additive", "l1"), ("flow", "l1"), ("affine", "l1"), (AFFINE_AND_INTENSITY, "l1")],
    "grid": [("affine", norm) for norm in ("linf", "l2", "l1", "l21")],
    "jsma": [("additive", "linf")] * len(SIZES),
}
TAKES |= {"ddn": TAKES["carlini_wagner"], "stadv": TAKES["adef"]} | dict.fromkeys(
    ("pointwise", "sigma_zero"), TAKES["jsma"]
)
# Those that return a failure, and what was a success before, as it was.
MINIMAL = {
    "adef", "carlini_wagner", "ddn", "deepfool", "ead", "fab", "fab_targeted", "fmn", "jsma", "pointwise",
    "sigma_zero", "stadv",
}  # fmt: skip
TWICE = {"gaussian_noise", "pgd"}  # quick to compile
UNITS = {"additive": 1.0, "flow": 3.0, "affine": np.array([30, 3, 3])}


class Case(NamedTuple):
    """What an attack compiles for."""

    name: str
    perturbation: Any
    norm: Any
    shape: tuple[int, ...]
    classes: int
    targeted: bool


def cases() -> list[Case]:
    thorough = settings.default is settings.get_profile("thorough")
    found = []
    for i, (name, function) in enumerate(FUNCTIONS.items()):
        takes = TAKES.get(name, ANY)
        can_target = "targeted" in inspect.signature(function).parameters
        for j in range(i, i + (len(takes) if thorough else 2 if name in TWICE else 1)):
            shape, classes = SIZES[j % len(SIZES)]
            classes = max(classes, 3) if name in ("apgd_dlr", "apgd_targeted") else classes
            found.append(Case(name, *takes[j % len(takes)], shape, classes, can_target and j % 2 == 1))
    return found


class Scene(NamedTuple):
    """What it does not compile for: images, labels and the Gaussian weights are drawn from the seed."""

    seed: int
    levels: tuple[float, float]  # of images, before they are clipped
    scale: float  # of the weights
    spoilt: float  # one of the weights, or 0
    radius: float
    held: tuple[bool, bool, bool]  # parts, or entries of δ's last axis, of radius 0


SCENES = st.builds(
    Scene,
    seed=st.integers(0, 2**16),
    levels=st.just((-0.2, 1.2)) | st.sampled_from([(0.0, 1.0), (-4.0, 5.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]),
    scale=st.just(1.0) | st.sampled_from([0.0, 1e-4, 1e4, 1e30]),
    spoilt=st.just(0.0) | st.sampled_from([math.nan, math.inf, -math.inf]),
    radius=st.floats(0, 1, width=32) | st.sampled_from([0.1, 0.0, 1.0, 100.0]),
    held=st.just((False,) * 3) | st.tuples(*[st.booleans()] * 3),
)


def ordinary(radius: float) -> Any:
    """One scene in which attacks have to work, some in vain: few of the drawn ones are like it."""
    return example(scene=Scene(0, (-0.2, 1.2), 1.0, 0.0, radius, (False,) * 3))


def model_of(case: Case, scene: Scene) -> Any:
    weights, tree = jax.tree.flatten(_shapes(case.shape, case.classes))
    rng = np.random.default_rng(scene.seed)
    drawn = [np.asarray(scene.scale * rng.normal(size=w.shape) / w.shape[0] ** 0.5, np.float32) for w in weights]
    if scene.spoilt:
        leaf = drawn[rng.integers(len(drawn))]
        leaf.flat[rng.integers(leaf.size)] = scene.spoilt
    return bind(Net(case.classes), jax.tree.unflatten(tree, drawn))


@lru_cache
def _shapes(shape: tuple[int, ...], classes: int) -> Any:
    return jax.eval_shape(Net(classes).init, KEY, jnp.zeros(shape))


def threat_of(case: Case, scene: Scene) -> ThreatModel:
    def radius(name: str, held: Any) -> np.ndarray:
        return np.asarray(scene.radius * UNITS[name] * ~np.asarray(held), np.float32)

    if isinstance(case.perturbation, tuple):
        return ThreatModel(case.perturbation, case.norm, tuple(map(radius, case.perturbation, scene.held)))
    held = scene.held if case.perturbation == "affine" else False
    return ThreatModel(case.perturbation, case.norm, radius(case.perturbation, held))


@lru_cache
def compiled(name: str, targeted: bool) -> Any:
    known = inspect.signature(FUNCTIONS[name]).parameters
    options = {k: v for k, v in EFFORT.items() if k in known} | ({"targeted": True} if targeted else {})
    return jax.jit(partial(FUNCTIONS[name], **options))


logits = jax.jit(lambda model, images: model(images))


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
@given(scene=SCENES)
@ordinary(0.02)
@ordinary(0.1)
@ordinary(0.4)
def test_stays_in_ball_and_box_without_nan_and_tells_the_truth(case, scene):
    rng = np.random.default_rng(scene.seed)
    images = np.clip(rng.uniform(*scene.levels, size=case.shape), 0, 1).astype(np.float32)
    model, threat = model_of(case, scene), threat_of(case, scene)
    predicted = np.asarray(logits(model, images)).argmax(-1)
    # Some are right from the start, some wrong.
    labels = (predicted + rng.integers(2, size=len(images))) % case.classes
    targeted = case.targeted
    if case.name == "universal_targeted":
        labels, targeted = np.broadcast_to(labels[0], labels.shape), True
    result = compiled(case.name, case.targeted)(model, images, labels, threat, key=jax.random.key(scene.seed))
    check_result(
        partial(logits, model), jax.device_get(result), images, threat, labels, targeted,
        minimal=case.name in MINIMAL,
    )  # fmt: skip
