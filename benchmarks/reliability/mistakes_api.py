"""Mistakes in calls of the rest of the public API: losses, spaces, models, objectives, evaluation, optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import robust_jax as rj
from benchmarks.reliability.mistakes import (
    BALL,
    IMAGES,
    KEY,
    LABELS,
    PLAIN,
    Accepted,
    Case,
    Plain,
    abstract,
    mean,
    model,
)  # fmt: skip
from robust_jax import attacks, losses, models, norms, objectives, perturbations, threat_models
from robust_jax.config.optimizers import bound_unit_norms, make_optimizer, make_schedule
from robust_jax.evaluation import Attack, Source, curves, masking, pictures, robustness, show, statistics, summarise
from robust_jax.evaluation.from_config import attack_from
from robust_jax.evaluation.outcomes import PerExample

# place -> (function, valid arguments, argument -> wrong values)
Table = dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]]

LOGITS = jnp.asarray([[2.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0]])
DELTA = np.zeros_like(IMAGES)
KEYS = jax.random.split(KEY, 2)
BOTH = rj.ThreatModel(("flow", "additive"), "linf", (1.0, 0.1))
FLOW = np.zeros((2, 4, 4, 2), np.float32)
VARIABLES = PLAIN.variables
STATE = {"layer.weight": np.zeros((3, 48), np.float32), "layer.bias": np.zeros(3, np.float32)}
RANDOM = dict(kind="random", perturbation="flow", sigma=0.1)
ENTROPY = dict(kind="cross_entropy")

# Wrong values of an argument by its kind.
LOGIT_LIKE = [None, "text", 3, [[1.0, 2.0]], LOGITS[0], LOGITS[None], LOGITS.astype(int), LOGITS > 0, {"z": LOGITS}]
LABEL_LIKE = [None, "cat", [0, 1], 1, LABELS * 1.0, LABELS[:1], LABELS[:, None], LABELS > 0, LABELS + 7, LABELS - 1]
ARRAY_LIKE = [None, "text", [[1.0]], IMAGES.astype(int), IMAGES > 0, {"x": IMAGES}]
NORM_LIKE = [None, "l0", 0.5, np.nan, True, -1, [2], "L2"]
IMAGE_LIKE = [None, "images", IMAGES.tolist(), IMAGES[0], IMAGES.astype(np.uint8)]
KEY_LIKE = [None, 0, "key", jax.random.PRNGKey(0), jax.random.split(KEY, 3)]
SPACE_LIKE = [None, "flwo", 3, (), ("flow", 3), np.zeros(2)]
THREAT_LIKE = [None, "flow", 0.1, perturbations.flow, {"perturbation": "flow"}]
NUMBER_LIKE = [None, "big", np.nan, np.inf, [1], True]
COUNT_LIKE = [None, "ten", 0, -1, 2.5, np.nan, [3]]
FUNCTION_LIKE = [None, 3, "function", [abs]]
MAPPING_LIKE = [None, 3, "text", [1]]
TEXT_LIKE = [None, 3, ["text"], "nonsense"]
ALONE_LIKE = [None, "text", 0.1, (DELTA, DELTA), DELTA.astype(int), np.float32(1)]
DELTA_LIKE = [*ALONE_LIKE, DELTA[:, :2], DELTA[..., :1]]


def _delta_functions() -> Table:
    """The functions of threat models and perturbations."""
    t, moves = threat_models, dict(gradient=DELTA, step_size=0.1)
    of = {"threat": THREAT_LIKE, "delta": ALONE_LIKE}
    table = {
        "size": (t.size, {}, {}), "project": (t.project, {}, {}), "in_radii": (t.in_radii, {}, {}),
        "move": (t.move, moves | dict(headroom=DELTA), {"gradient": DELTA_LIKE,
                 "headroom": [wrong for wrong in DELTA_LIKE if wrong is not None],
                                                        "step_size": [None, "big", (1, 2), -0.1, np.nan]}),
        "shift": (t.shift, dict(direction=DELTA, step_size=0.1), {"direction": DELTA_LIKE,
                                                                  "step_size": [None, "big", (1, 2), -0.1, np.nan]}),
    }  # fmt: skip
    found = {f"threat_models.{name}": (f, dict(threat=BALL, delta=DELTA) | more, of | wrong)
             for name, (f, more, wrong) in table.items()}  # fmt: skip
    for name, argument in (("gain", "gradient"), ("steepest", "gradient"), ("on_sphere", "direction")):
        valid = {"threat": BALL, argument: DELTA}
        found[f"threat_models.{name}"] = getattr(t, name), valid, {"threat": THREAT_LIKE, argument: ALONE_LIKE}
    random = dict(threat=BALL, keys=KEYS, images=IMAGES)
    found |= {
        "threat_models.random_delta": (t.random_delta, random, {
            "threat": THREAT_LIKE, "keys": [None, 0, KEY, jax.random.PRNGKey(0), KEYS[:1]], "images": IMAGE_LIKE}),
        "threat_models.scaled": (t.scaled, dict(threat=BALL, factor=2.0),
                                 {"threat": THREAT_LIKE, "factor": [None, "2", np.nan, -1, np.inf]}),
        "threat_models.size of a composition": (t.size, dict(threat=BOTH, delta=(FLOW, DELTA)), {
            "delta": [None, DELTA, (DELTA,),  (FLOW, DELTA, DELTA), [FLOW, None]]}),
        "ThreatModel": (rj.ThreatModel, dict(perturbation="flow", norm="linf", radius=0.1), {
            "perturbation": SPACE_LIKE, "norm": NORM_LIKE,
            "radius": [None, "big", -1, np.nan, np.inf, {}, (0.1, -1), [[0.1], [0.1, 0.2]]]}),
        "ThreatModel of a composition": (rj.ThreatModel, dict(perturbation=("flow", "additive"), radius=(1.0, 0.1)), {
            "radius": [0.1, (0.1,), None, (0.1, "x")], "norm": [("l2",), ("l2", "l0"), None]}),
    }  # fmt: skip
    return found


def _spaces() -> Table:
    p, flow, bad_flow = perturbations, perturbations.flow, [None, "flow", FLOW[0], FLOW[:, :2], DELTA, FLOW[:1]]
    own = dict(zeros=jnp.zeros_like, apply=lambda x, d: x + d, name="mine")
    size = [None, "32", 0, -1, np.nan, (32, 32, 3)]
    return {
        "Perturbation": (rj.Perturbation, own, {
            "zeros": FUNCTION_LIKE, "apply": FUNCTION_LIKE, "name": [None, 3], "parts": [3, ("flow",)],
            "confine": [3, "x"], "slope": [3, "x"], "pullback_at_zero": [3, "x"], "moves_pixels": ["yes", 2]}),
        "perturbations.get": (p.get, dict(perturbation="flow"), {"perturbation": SPACE_LIKE}),
        "perturbations.compose": (lambda part: p.compose(part, flow), dict(part=flow), {"part": [None, "flow", 3]}),
        "perturbations.pullback": (p.pullback, dict(perturbation=flow, images=IMAGES, gradient=IMAGES), {
            "perturbation": [None, "flow", 3], "images": IMAGE_LIKE, "gradient": [None, "x", IMAGES[:1], IMAGES[0]]}),
        "perturbations.apply_with_slope": (p.apply_with_slope, dict(perturbation=flow, images=IMAGES, delta=FLOW), {
            "perturbation": [None, "flow", 3], "images": IMAGE_LIKE, "delta": bad_flow}),
        "perturbations.confined": (p.confined, dict(perturbation=p.additive, images=IMAGES, delta=DELTA), {
            "perturbation": [None, "flow", 3], "images": IMAGE_LIKE, "delta": DELTA_LIKE}),
        "perturbations.headroom": (p.headroom, dict(perturbation=p.additive, images=IMAGES, delta=DELTA,
                                                    direction=DELTA), {
            "perturbation": [None, "flow", 3], "images": IMAGE_LIKE, "delta": DELTA_LIKE, "direction": DELTA_LIKE}),
        "perturbations.gaussian_delta": (p.gaussian_delta, dict(perturbation=flow, keys=KEYS, images=IMAGES,
                                                                sigma=0.1), {
            "perturbation": [None, "flow", 3], "keys": [None, 0, KEY, KEYS[:1]], "images": IMAGE_LIKE,
            "sigma": [None, "big", np.nan, -1, (0.1, 0.1, 0.1)]}),
        "warp": (rj.warp, dict(images=IMAGES, flow=FLOW), {"images": IMAGE_LIKE, "flow": bad_flow}),
        "normalized_to_pixels": (rj.normalized_to_pixels, dict(flow=FLOW, size=32), {
            "flow": [None, "text", DELTA, [0.1]], "size": size}),
        "dual": (rj.dual, dict(norm="l2"), {"norm": NORM_LIKE}),
        "norms.exponent": (norms.exponent, dict(norm="l2"), {"norm": NORM_LIKE}),
        "norms.norm": (norms.norm, dict(x=IMAGES, norm="l2", power=1.0), {
            "x": ARRAY_LIKE, "norm": NORM_LIKE, "power": [*NUMBER_LIKE, 0, -0.1]}),
        "norms.project": (norms.project, dict(x=IMAGES, norm="l2"), {"x": ARRAY_LIKE, "norm": NORM_LIKE}),
        "norms.steepest": (norms.steepest, dict(gradient=IMAGES, norm="l2", headroom=IMAGES), {
            "gradient": ARRAY_LIKE, "norm": NORM_LIKE, "headroom": ["x", IMAGES[:1], 3]}),
        "norms.random_point": (norms.random_point, dict(key=KEY, shape=(4, 4, 3), norm="l2"), {
            "key": KEY_LIKE, "shape": [None, "x", (-1, 2), (2.5,)], "norm": NORM_LIKE}),
    }  # fmt: skip


def _losses() -> Table:
    plain = dict(logits=LOGITS, labels=LABELS)
    wrong = {"logits": LOGIT_LIKE, "labels": LABEL_LIKE}
    names = ("cross_entropy", "margin", "dlr", "misclassified")
    found = {f"losses.{name}": (getattr(losses, name), plain, wrong) for name in names}
    return found | {
        "losses.dlr_targeted": (losses.dlr_targeted, plain | dict(targets=LABELS), wrong | {"targets": LABEL_LIKE}),
        "losses.kl_divergence": (
            losses.kl_divergence,
            dict(logits=LOGITS, reference_logits=LOGITS),
            {"logits": LOGIT_LIKE, "reference_logits": [*LOGIT_LIKE, LOGITS[:, :2], LOGITS[:1]]},
        ),
        "losses.rivals": (losses.rivals, plain | dict(count=2), wrong | {"count": COUNT_LIKE}),
        "losses.predicted": (losses.predicted, dict(logits=LOGITS), {"logits": LOGIT_LIKE}),
        "losses.get": (losses.get, dict(loss="margin"), {"loss": [None, 3, "hinge", ["margin"]]}),
    }


def _attack_helpers() -> Table:
    a = attacks
    targeted = dict(logits_fn=model, images=IMAGES, target=1, threat=BALL, key=KEY, method="sign_gradient", epochs=2)
    return {
        "attacks.apply_universal": (a.apply_universal, dict(threat=BALL, images=IMAGES, delta=DELTA[:1]), {
            "threat": THREAT_LIKE, "images": IMAGE_LIKE, "delta": DELTA_LIKE}),
        "attacks.universal_targeted": (a.universal_targeted, targeted, {
            "logits_fn": [None, 3, Plain(), lambda x: x], "images": IMAGE_LIKE, "threat": THREAT_LIKE,
            "key": KEY_LIKE, "target": [None, "cat", 1.0, [0, 1], 7, -1, True, np.nan],
            "method": TEXT_LIKE, "epochs": COUNT_LIKE}),
        "attacks.black_box": (a.black_box, dict(function=np.sum, num_classes=3), {
            "function": FUNCTION_LIKE, "num_classes": [*COUNT_LIKE, 1, True]}),
        "attacks.bpda": (a.bpda, dict(forward=jnp.round, backward=None), {
            "forward": FUNCTION_LIKE, "backward": [3, "x"]}),
        "attacks.expectation": (a.expectation, dict(logits_fn=lambda x, k: model(x), key=KEY, draws=2), {
            "logits_fn": FUNCTION_LIKE, "key": [None, 0, "key", jax.random.PRNGKey(0)], "draws": COUNT_LIKE,
            "mean": TEXT_LIKE}),
        "attacks.attack": (a.attack, dict(family="ascent"), {"family": TEXT_LIKE, "cost": [3, "x"], "check": [3, "x"]}),
        "attacks.cost_of": (a.cost_of, dict(function=a.pgd, settings={}, problem=a.Problem((4, 4, 3), 3, BALL)), {
            "function": FUNCTION_LIKE, "settings": MAPPING_LIKE, "problem": [None, 3]}),
        "Attack": (Attack, dict(function=a.pgd, threat=BALL, settings={}, curve=(), source=None), {
            "function": FUNCTION_LIKE, "threat": THREAT_LIKE, "curve": [None, 3, "x", (-1, 1), (np.nan,), (1j,)],
            "settings": [*MAPPING_LIKE, {"steps": 0}, {"stesp": 3}, {"targeted": True}, {"steps": [3]}, {1: 2}],
            "source": [3, "workdir", model, ("x", model), Source(3, model), Source("", model), Source("x", 3)]}),
        "attack_from": (attack_from, dict(name="mine", spec=dict(kind="pgd", perturbation="flow", radius=0.1)), {
            "name": [None, 3, "", "a/b", "clean"], "spec": [
                None, 3, "pgd", {}, {"kind": "pdg"}, {"kind": "pgd"}, {"kind": "pgd", "perturbation": "flow"},
                {"kind": 3}, dict(kind="pgd", perturbation="flow", radius="x"),
                dict(kind="pgd", perturbation="flow", radius=0.1, curve=(-1,)),
                dict(kind="pgd", perturbation="flow", radius=0.1, source=3),
                dict(kind="pgd", perturbation="flow", radius=0.1, source="/no/such/folder")]}),
    }  # fmt: skip


def _models() -> Table:
    made = dict(name="mlp", num_classes=3, mean=0.0, std=1.0, dtype=jnp.float32)
    shapes = [None, 3, "x", (4, 4), (4, 4, 3, 1), (4, -1, 3), (4.5, 4, 3)]
    torch = {"model": [None, "mlp", 3, Plain], "image_shape": shapes}
    states = [None, 3, [1], {}, {"layer.weight": None}, {"layer.weight": [[1.0]]}, STATE | {"layer.bias": np.zeros(7)}]
    return {
        "models.create": (models.create, made, {
            "name": [None, 3, "mpl", ["mlp"]], "num_classes": [*COUNT_LIKE, 1], "mean": ["x", np.nan, None, (1, "x")],
            "std": ["x", np.nan, 0, -1, None, (1.0, 0.0), np.inf], "dtype": ["float33", None, 3, "int32", int],
            "dropout": ["x", -1, 2, np.nan], "activation": ["rleu", 3], "unknown_field": [1]}),
        "models.from_torch": (models.from_torch, dict(model=Plain(), state_dict=STATE, image_shape=(4, 4, 3)),
                              torch | {"state_dict": states}),
        "models.to_torch": (models.to_torch, dict(model=Plain(), variables=VARIABLES, like=STATE,
                                                  image_shape=(4, 4, 3)),
                            torch | {"variables": [None, 3, {}, {"params": {}}], "like": states}),
        "bind": (lambda model, variables: rj.bind(model, variables), dict(model=PLAIN.model, variables=VARIABLES), {
            "model": [None, 3, "mlp", Plain, model], "variables": [None, 3, "x", [1]]}),
    }  # fmt: skip


def _objectives() -> Table:
    return {
        "objectives.make_objective": (objectives.make_objective, dict(points={}, terms={"ce": ENTROPY}), {
            "points": [None, 3, "x", {"clean": RANDOM}, {"p": None}, {"p": 3}, {"p": {}}, {"p": {"kind": "randm"}},
                       {"p": {"kind": 3}}, {"p": RANDOM | {"sigma": np.nan}}, {"p": RANDOM | {"sigma": -1}},
                       {"p": RANDOM | {"perturbation": "flwo"}}, {"p": RANDOM | {"other": 1}}, {3: RANDOM}],
            "terms": [None, 3, {}, {"t": None}, {"t": 3}, {"t": {"kind": "entropy"}}, {"t": ENTROPY | {"at": "p"}},
                      {"t": ENTROPY | {"weight": np.nan}}, {"t": ENTROPY | {"weight": "x"}}, {"t": ENTROPY | {"at": 3}},
                      {"t": ENTROPY | {"label_smoothing": 1.5}}, {"t": dict(kind="gradient_norm")}, {3: ENTROPY},
                      {"t": ENTROPY | {"weight": dict(start=0, end=1)}}]}),
        "objectives.point": (objectives.point, {"function": mean}, {"function": [3, "x"]}),
        "objectives.term": (objectives.term, {"function": mean}, {"function": [3, "x"]}),
        "masking.sign": (lambda needs: masking.sign(needs), dict(needs="logits"), {"needs": TEXT_LIKE}),
        "masking.find": (masking.find, dict(names=()), {"names": [None, 3, "x", ("x",), (3,), ("no_module:x",)]}),
    }  # fmt: skip


def _optimisers() -> Table:
    schedule = dict(name="piecewise", learning_rate=0.1, boundaries=(1,), factor=0.1, warmup_epochs=0.0, epochs=3.0,
                    steps_per_epoch=10.0)  # fmt: skip
    optimizer = dict(schedule=lambda step: 0.1, name="sgd", momentum=0.9, nesterov=False, weight_decay=0.1,
                     decay_batch_norm=True, clip_norm=1.0, max_norm=1.0)  # fmt: skip
    return {
        "make_schedule": (make_schedule, schedule, {
            "name": TEXT_LIKE, "learning_rate": [*NUMBER_LIKE, -0.1], "boundaries": [None, 3, ("x",), (np.nan,), (-1,)],
            "factor": [*NUMBER_LIKE, -1], "warmup_epochs": [*NUMBER_LIKE, -1], "epochs": [*NUMBER_LIKE, 0, -0.1],
            "steps_per_epoch": [*NUMBER_LIKE, 0, -0.1]}),
        "make_optimizer": (make_optimizer, optimizer, {
            "schedule": [None, "x"], "name": TEXT_LIKE, "momentum": [*NUMBER_LIKE, -1, 1.5],
            "nesterov": [None, "yes", 2], "weight_decay": [*NUMBER_LIKE, -1], "clip_norm": [*NUMBER_LIKE, -1],
            "max_norm": [*NUMBER_LIKE, -1], "decay_batch_norm": [None, "yes", 2]}),
        "bound_unit_norms": (bound_unit_norms, dict(limit=1.0), {"limit": [*NUMBER_LIKE, 0, -0.1]}),
    }  # fmt: skip


def _evaluation() -> Table:
    batch = {"image": IMAGES, "label": LABELS}
    attack = Attack(attacks.fgsm, BALL)
    batches = [
        None, 3, "x", [], [3], [None], [(LABELS, IMAGES)], [{"images": IMAGES, "labels": LABELS}], {"images": IMAGES},
        (IMAGES, LABELS[:1]), (LABELS, IMAGES), {"image": IMAGES}, [[IMAGES]], (IMAGES, None),
        [batch | {"label": LABELS * 1.0}], [batch | {"label": LABELS[:1]}], [batch | {"label": LABELS + 7}],
        [batch | {"image": IMAGES * 255}], [batch | {"image": IMAGES[0]}], [batch | {"id": [1]}],
        [batch | {"id": "x"}], [batch | {"mask": [True]}], [batch | {"mask": "x"}], [batch | {"mask": np.zeros(2)}],
        [batch | {"id": LABELS * 1.0}], [batch | {"image": IMAGES.astype(np.int32)}],
        [batch | {"image": IMAGES[:0], "label": LABELS[:0]}],
    ]  # fmt: skip
    probed = dict(logits_fn=model, images=IMAGES, labels=LABELS, measured=MEASURED, key=KEY)
    curve = {"radius": [0, 1], "accuracy": [1, 0.5], "interval": [[0.9, 1], [0.4, 0.6]]}
    grid = dict(clean=IMAGES, adversarial=IMAGES, delta=DELTA, labels=LABELS, clean_predictions=LABELS,
                adversarial_predictions=LABELS, path=BytesIO())  # fmt: skip
    return {
        "show": (show, dict(measured=MEASURED), {
            "measured": [None, 3, {}], "save": [3, b"x", "", "\0"], "name": [3, None], "class_names": [3, "cat", [3]]}),
        "robustness": (_measured, dict(logits_fn=model, batches=[batch], attacks={}, key=KEY), {
            "logits_fn": [None, 3, Plain(), lambda x: x], "batches": batches, "key": KEY_LIKE,
            "attacks": [None, 3, "pgd", [attack], {"a": attacks.pgd}, {"clean": attack}, {"a/b": attack}, {3: attack},
                        {"a": None}], "worst_case_only": ["yes", 2, None], "place": [3, "x"],
            "batch_size": [0, -1, 1.5, "x"],
            "keep": [3, "x"], "progress": [3, "x"], "finished": [3, "x"]}),
        "summarise": (summarise, {}, {"measured": [None, 3, {}, "x"]}),
        "masking.probe": (masking.probe, probed, {
            "logits_fn": [None, 3], "images": IMAGE_LIKE[:4], "labels": LABEL_LIKE, "measured": [None, 3],
            "key": KEY_LIKE, "needs": [3, "logits", ("x",)], "own": [3, (3,)]}),
        "wilson_interval": (statistics.wilson_interval, dict(successes=1, n=2, confidence=0.9), {
            "successes": [None, "x", -1, 3, 1.5, np.nan], "n": [None, "x", -1, 2.5],
            "confidence": [*NUMBER_LIKE, 0, 1, 2]}),
        "accuracy_curves": (curves.accuracy_curves, dict(curves={"a": curve}, path=BytesIO()), {
            "curves": [None, 3, {}, {"a": {}}, {"a": curve | {"radius": [1]}}, {"a": curve | {"interval": [1, 2]}},
                       {"a": curve | {"accuracy": ["x", "y"]}}, {"a": 3}], "path": [3, {}], "title": [None, 3],
            "highlight": ["x", np.nan]}),
        "trade_off": (curves.trade_off, dict(clean=[1, 0.5], robust={"a": [0.5, 0.1]}, labels=["a", "b"],
                                             path=BytesIO()), {
            "clean": [None, 3, "xy", [1], ["x", "y"]], "robust": [None, 3, {"a": [1]}, {"a": 3}, {"a": ["x", "y"]}],
            "labels": [None, 3, ["a"], [1, 2]], "path": [3]}),
        "adversarial_grid": (pictures.adversarial_grid, grid, {
            "clean": [None, "x", IMAGES[0], IMAGES[:0], IMAGES[..., :2], IMAGES.tolist()],
            "adversarial": [None, "x", IMAGES[:1], IMAGES[0]], "labels": [None, 3, LABELS[:1], LABELS * 1.5],
            "clean_predictions": [None, 3, LABELS[:1]], "adversarial_predictions": [None, 3, LABELS[:1]],
            "path": [3], "class_names": [3, "abc"]}),
        "perturbation_grid": (pictures.perturbation_grid, dict(images=IMAGES, perturbations={"a": DELTA},
                                                               path=BytesIO()), {
            "images": [None, "x", IMAGES[0], IMAGES[:0], IMAGES[..., :2]],
            "perturbations": [None, 3, {"a": None}, {"a": DELTA[:1]}, {"a": 3}], "path": [3]}),
    }  # fmt: skip


EMPTY = np.zeros(2, int)
MEASURED = PerExample(EMPTY, LABELS, LABELS, EMPTY * 1.0, {}, model, IMAGES)


def _measured(**given: Any) -> Any:
    """`robustness`, stopped where the first batch would reach the model."""

    def stop(batch: Any) -> Any:
        raise Accepted

    return robustness(**{"place": stop} | given)


ABSTRACT = (_delta_functions, _spaces, _losses, _attack_helpers)
TABLES = (_delta_functions, _spaces, _losses, _attack_helpers, _models, _objectives, _optimisers, _evaluation)
ALIASES = {
    "threat": "threat|radius|perturbation",
    "step_size": "step_size|step",
    "clean": "clean|images",
    "settings": "settings|option|steps|targeted",
    "spec": "spec|attacks.mine|config.json",
    "factor": "factor|radius",
    "points": "points",
    "terms": "terms|term",
    "attacks": "attacks",
    "batches": "batches|images|labels|image|label|id|mask",
    "part": "part",
    "perturbations": "perturbation",
    "state_dict": "state.dict|layer",
    "like": "like|state.dict|layer",
    "names": "signs",
}


def of(table: Callable[[], Table]) -> Iterator[Case]:
    """Every argument of every function of a table, one wrong value at a time."""
    for place, (function, valid, wrong) in table().items():
        for argument, values in wrong.items():
            for value in values:
                run = partial(function, **{**valid, argument: value})
                mistake = f"{argument}={' '.join(repr(value).split())}"[:100]
                names = ALIASES.get(argument, argument.replace("_", "."))
                yield Case("rest", place, mistake, names, abstract(run) if table in ABSTRACT else run)


def of_the_rest() -> Iterator[Case]:
    """The cases of all tables."""
    for table in TABLES:
        yield from of(table)
