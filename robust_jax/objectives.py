"""Training objectives: named points and weighted terms, each term at a point.

A **point** is where the model is looked at: the clean images, randomly perturbed ones, attacked ones. It is computed
once, detached, and shared by all terms that name it. A **term** is a loss of one example at a point. The objective is
``Σ_terms weight * mean_i term_i``::

    points = {"warped": dict(kind="random", perturbation="flow", sigma=0.155)}
    terms = {
        "ce": dict(kind="cross_entropy", at="warped", weight=1.0),
        "fgr": dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2, weight=4.4),
    }
    total, outcome = make_objective(points, terms)(model, images, labels, keys)

A new method is a function in `POINTS` or `TERMS`: its keyword arguments are its options in a config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int, Key

from robust_jax import gradients, losses, perturbations, threat_models
from robust_jax.attacks.pgd import pgd
from robust_jax.checks import check_options, choose
from robust_jax.perturbations import Images
from robust_jax.threat_models import ThreatModel

Labels = Int[Array, " b"]
Keys = Key[Array, " b"]
PerExample = Float[Array, " b"]


class Model(NamedTuple):
    """A model as an objective sees it, its parameters closed over.

    Attributes:
      train: ``images -> (logits, state)`` in train mode; state is what training updates beside the parameters (running
        statistics).
      eval: ``images -> logits`` in eval mode. Points look through this one or the next: constants of the step.
      frozen_train: ``images -> logits`` in train mode.
    """

    train: Callable[[Images], tuple[Float[Array, "b k"], Any]]
    eval: Callable[[Images], Float[Array, "b k"]]
    frozen_train: Callable[[Images], Float[Array, "b k"]]


class Here(NamedTuple):
    """A point with the model run on it, in one pass that all terms share.

    Attributes:
      images: the point, constants.
      labels: the true classes.
      logits: of the model in train mode.
      loss: cross-entropy of each example.
      gradient: of the sum of the losses in the images, differentiable in the parameters.
      loss_fn: ``images -> [B]``, for terms that look elsewhere.
    """

    images: Images
    labels: Labels
    logits: Float[Array, "b k"]
    loss: PerExample
    gradient: Images
    loss_fn: Callable[[Images], PerExample]


class Outcome(NamedTuple):
    """What a step reports: the mean of each term, unweighted, and the accuracy and state at one point."""

    terms: dict[str, Float[Array, ""]]
    accuracy: Float[Array, ""]
    state: Any


# Points: (model, images, labels, keys, **options) -> images.


def clean(model: Model, images: Images, labels: Labels, keys: Keys) -> Images:
    """The images as they are."""
    return images


def random(model: Model, images: Images, labels: Labels, keys: Keys, *, perturbation: Any, sigma: float) -> Images:
    """``T(x, n)``, ``n ~ N(0, sigma²)`` per coordinate, in units of δ: the random start of FGR (Xia & Li 2021)."""
    space = perturbations.get(perturbation)
    return space.apply(images, perturbations.gaussian_delta(space, keys, images, sigma))


def attack(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, steps: int = 10, step_size: Any = None,
    momentum: float = 0.0, random_start: bool = True, keep: str = "highest_loss",
    loss: str = "cross_entropy", batch_norm: str = "eval",
) -> Images:  # fmt: skip
    """``T(x, δ*)``, δ* found by `robust_jax.attacks.pgd` (adversarial training, Madry et al. 2018).

    ``batch_norm``: the mode of the inner maximisation, "eval" or "train".
    """
    choose("batch_norm", batch_norm, ("eval", "train"))
    choose("loss", loss, losses.LOSSES)
    logits_fn = model.eval if batch_norm == "eval" else model.frozen_train
    return pgd(
        logits_fn, images, labels, ThreatModel(perturbation, norm, radius), key=keys, steps=steps,
        step_size=step_size, momentum=momentum, random_start=random_start, keep=keep,
        loss=losses.LOSSES[loss],
    ).images  # fmt: skip


# Terms: (here, **options) -> [B].


def cross_entropy(here: Here, *, label_smoothing: float = 0.0) -> PerExample:
    """The classification loss, ``-Σ_k q_k log softmax(z)_k``, q smoothed towards uniform by ``label_smoothing``."""
    if not label_smoothing:
        return here.loss
    targets = jax.nn.one_hot(here.labels, here.logits.shape[-1])
    return optax.softmax_cross_entropy(here.logits, optax.smooth_labels(targets, label_smoothing))


def gradient_norm(
    here: Here, *, perturbation: Any, norm: Any = "l2", power: float = 2.0, scale: Any = 1.0,
    method: str = "double_backprop", step: float = 1e-4,
) -> PerExample:  # fmt: skip
    """``‖scale * ∂/∂δ ℓ(T(x, δ))‖^power`` at δ = 0: FGR for flows, Ross & Doshi-Velez (2018) for additive.

    See `robust_jax.value_and_gradient_norm` for the options.
    """
    penalty = gradients.penalty_of(perturbations.get(perturbation), here.images, norm, power, scale)
    return gradients.norm_of_gradient(here.loss_fn, here.images, here.gradient, penalty, method, step)


def first_order_gain(
    here: Here, *, perturbation: Any, norm: Any = "linf", radius: Any,
    method: str = "double_backprop", step: float = 1e-4,
) -> PerExample:  # fmt: skip
    """``max_{δ in ball} <∂ℓ/∂δ, δ>``, the exact penalty of Lyu et al. (2015): radius times the dual norm."""
    threat = ThreatModel(perturbation, norm, radius)

    def penalty(gradient: Images) -> PerExample:
        space = threat.perturbation
        return threat_models.gain(threat, perturbations.pullback(space, here.images, gradient))

    return gradients.norm_of_gradient(here.loss_fn, here.images, here.gradient, penalty, method, step)


POINTS: dict[str, Callable[..., Images]] = {"clean": clean, "random": random, "attack": attack}
TERMS: dict[str, Callable[..., PerExample]] = {
    "cross_entropy": cross_entropy,
    "gradient_norm": gradient_norm,
    "first_order_gain": first_order_gain,
}

Objective = Callable[[Model, Images, Labels, Keys], tuple[Float[Array, ""], Outcome]]


def make_objective(points: Mapping[str, Any], terms: Mapping[str, Any]) -> Objective:
    """An objective from its description in plain data, as a config holds it.

    Args:
      points: NAME -> ``dict(kind=one of POINTS, **options)``. A point "clean" is always there.
      terms: NAME -> ``dict(kind=one of TERMS, at=a point's name, weight=1.0, **options)``. A term of weight 0 is
        left out, and costs nothing.

    Returns:
      ``(model, images, labels, keys [B]) -> (total, Outcome)``. Keys are one an example, so that a batch cut over
      devices draws the same. Accuracy and running statistics are those at the first cross-entropy term's point.

    Raises:
      ValueError: no term of a weight, or an unknown kind, point or option, listing the valid ones.
    """
    points = {"clean": {"kind": "clean"}} | {name: dict(p) for name, p in points.items()}
    terms = {name: {"at": "clean", "weight": 1.0} | dict(t) for name, t in terms.items()}
    for kind, entries, known, own in (
        ("points", points, POINTS, set()), ("terms", terms, TERMS, {"at", "weight"}),
    ):  # fmt: skip
        for name, entry in entries.items():
            check_options(f"{kind}.{name}", entry, known, own)
    for name, term in terms.items():
        choose(f"terms.{name}.at", term["at"], points)
    terms = {name: term for name, term in terms.items() if term["weight"]}
    if not terms:
        raise ValueError(f"an objective needs at least one term whose weight is not 0: kinds are {sorted(TERMS)}.")
    # Only points that a term looks at are computed; every point has a key of its own, by its place in the list.
    used = {n: i for i, n in enumerate(points) if any(n == t["at"] for t in terms.values())}
    classifying = [term["at"] for term in terms.values() if term["kind"] == "cross_entropy"]
    first = [*classifying, *used][0]

    def objective(model: Model, images: Images, labels: Labels, keys: Keys) -> tuple[Float[Array, ""], Outcome]:
        seen: dict[str, Here] = {}
        states: dict[str, Any] = {}
        for name, index in used.items():
            options = {k: v for k, v in points[name].items() if k != "kind"}
            point_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            make = POINTS[points[name]["kind"]]
            at = jax.lax.stop_gradient(make(model, images, labels, point_keys, **options))
            seen[name], states[name] = look(model, at, labels)
        values = {}
        for name, term in terms.items():
            options = {k: v for k, v in term.items() if k not in ("kind", "at", "weight")}
            values[name] = TERMS[term["kind"]](seen[term["at"]], **options).mean()
        total = sum(terms[name]["weight"] * value for name, value in values.items())
        accuracy = (seen[first].logits.argmax(-1) == labels).mean()
        return total, Outcome(values, accuracy, states[first])

    return objective


def look(model: Model, images: Images, labels: Labels) -> tuple[Here, Any]:
    """Runs the model on a point: one pass for the loss, its image gradient and the new state."""

    def loss_fn(x: Images) -> tuple[PerExample, Any]:
        logits, state = model.train(x)
        return losses.cross_entropy(logits, labels), (logits, state)

    loss, gradient, (logits, state) = gradients.value_and_gradient(loss_fn, images, has_aux=True)
    return Here(images, labels, logits, loss, gradient, lambda x: loss_fn(x)[0]), state
