"""Points: where a training objective looks at the model, ``(model, images, labels, keys, *, options) -> Found``.

Each is computed once a step, is a constant of it, and is shared by all terms that name it. Keyword-only parameters are
the options of a config. A point that remembers something from step to step takes ``memory`` and ``steps_done`` too;
what it remembers at first is made by its entry in `MEMORIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import flatness, gradients, losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import ascend, clip_box
from robust_jax.attacks.pgd import pgd
from robust_jax.attacks.universal import METHODS as SEARCHES
from robust_jax.attacks.universal import apply_universal, spread, universal_targeted
from robust_jax.checks import choose
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel

Labels = Int[Array, " b"]
Keys = Key[Array, " b"]
LogitsFn = Callable[[Images], Float[Array, "b k"]]

MODES = ("eval", "train")


def _identity(value: Any) -> Any:
    return value


class Model(NamedTuple):
    """A model as an objective sees it, its parameters closed over.

    Attributes:
      train: ``images -> (logits, state)`` in train mode; state is what training updates beside the parameters (running
        statistics).
      eval: ``images -> logits`` in eval mode.
      mean: of a pytree over all devices.
    """

    train: Callable[[Images], tuple[Float[Array, "b k"], Any]]
    eval: LogitsFn
    mean: Callable[[Any], Any] = _identity


class Found(NamedTuple):
    """A point.

    Attributes:
      images: where the model is looked at.
      delta: what turned the clean images into them, if one δ did.
      memory: for the next step, of a point that remembers.
    """

    images: Images
    delta: Delta | None = None
    memory: Any = None


def _logits_fn(model: Model, batch_norm: str) -> LogitsFn:
    choose("batch_norm", batch_norm, MODES)
    return model.eval if batch_norm == "eval" else lambda x: model.train(x)[0]


def clean(model: Model, images: Images, labels: Labels, keys: Keys) -> Found:
    """The images as they are."""
    return Found(images)


def random(model: Model, images: Images, labels: Labels, keys: Keys, *, perturbation: Any, sigma: float) -> Found:
    """``T(x, n)``, ``n ~ N(0, sigma²)`` per coordinate, in units of δ: the random start of FGR (Xia & Li 2021)."""
    space = perturbations.get(perturbation)
    delta = perturbations.gaussian_delta(space, keys, images, sigma)
    return Found(space.apply(images, delta), delta)


def uniform(
    model: Model, images: Images, labels: Labels, keys: Keys, *, perturbation: Any, norm: Any = "linf", radius: Any
) -> Found:
    """``T(x, n)``, n a random point of the ball (GradAlign's second point, Andriushchenko & Flammarion 2020)."""
    threat = ThreatModel(perturbation, norm, radius)
    delta = threat_models.random_delta(threat, keys, images)
    return Found(threat.perturbation.apply(images, delta), delta)


def attack(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, steps: int = 10, step_size: Any = None,
    momentum: float = 0.0, random_start: bool = True, keep: str = "highest_loss",
    loss: str = "cross_entropy", batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """``T(x, δ*)``, δ* found by `robust_jax.attacks.pgd` (adversarial training, Madry et al. 2018).

    ``batch_norm``: the mode of the inner maximisation, "eval" or "train". One step of 1.25 radius from a random start,
    the last iterate kept, is fast adversarial training (Wong et al. 2020).
    """
    found = pgd(
        _logits_fn(model, batch_norm), images, labels, ThreatModel(perturbation, norm, radius), key=keys, steps=steps,
        step_size=step_size, momentum=momentum, random_start=random_start, keep=keep,
        loss=loss,
    )  # fmt: skip
    return Found(found.images, found.delta)


def divergent(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, steps: int = 10, step_size: Any = None,
    batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """``T(x, δ*)`` of the largest ``KL(f(x) ‖ f(T(x, δ)))`` found, from a random start (TRADES, Zhang et al. 2019)."""
    logits_fn = _logits_fn(model, batch_norm)
    reference = logits_fn(images)
    found = pgd(
        logits_fn, images, labels, ThreatModel(perturbation, norm, radius), key=keys, steps=steps,
        step_size=step_size, keep="last", loss=lambda logits, _: losses.kl_divergence(logits, reference),
    )  # fmt: skip
    return Found(found.images, found.delta)


def steepest(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """``T(x, r)``, ``r = argmax_{δ in ball} <∂ℓ/∂δ, δ>``, not clipped: the linearised family of Lyu et al. (2015)."""
    threat = ThreatModel(perturbation, norm, radius)
    delta = gradients.steepest(_loss_of(_logits_fn(model, batch_norm), labels), images, threat)
    return Found(threat.perturbation.apply(images, delta), delta)


def roughest(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, gradient: Any = None, steps: int = 10, step_size: Any = None,
    random_start: bool = True, batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """Where in the ball the gradient norm is largest (LFR, Xu et al. 2020), see `robust_jax.flatness.roughest`.

    ``gradient``: the norm of the gradient, by default the dual of ``norm``.
    """
    found = flatness.roughest(
        _loss_of(_logits_fn(model, batch_norm), labels), images, ThreatModel(perturbation, norm, radius), norm=gradient,
        key=keys, steps=steps, step_size=step_size, random_start=random_start,
    )  # fmt: skip
    return Found(found.images, found.delta)


def nonlinear(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    perturbation: Any, norm: Any = "linf", radius: Any, steps: int = 10, step_size: Any = None,
    batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """Where in the ball the loss is farthest from its linearisation at δ = 0 (LLR, Qin et al. 2019, eq. 4)."""
    threat = ThreatModel(perturbation, norm, radius)
    loss_fn = _loss_of(_logits_fn(model, batch_norm), labels)
    loss, gradient, _ = gradients.value_and_gradient(loss_fn, images)
    slope = perturbations.pullback(threat.perturbation, images, gradient)

    def score(perturbed: Images, delta: Delta, _: Any) -> tuple[Array, Array]:
        gap = jnp.abs(loss_fn(perturbed) - loss - perturbations.inner(slope, delta))
        return gap, jnp.zeros(len(images), bool)

    found = ascend(score, images, threat, key=keys, steps=steps, step_size=step_size, keep="highest_loss")
    return Found(found.images, found.delta)


def universal(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    memory: Delta, steps_done: Array, perturbation: Any, norm: Any = "linf", radius: Any, step_size: Any,
    clip_loss: float = 9.0, batch_norm: str = "eval",
) -> Found:  # fmt: skip
    """``T(x, v)`` clipped to [0, 1], one v for all images, moved once a step (Shafahi et al. 2020).

    ``v <- Π_ball(v + step_size * argmax_{‖u‖ <= 1} <g, u>)``, g the batch's mean gradient of ``min(ℓ, clip_loss)``.
    """
    threat = ThreatModel(perturbation, norm, radius)
    loss_fn = _loss_of(_logits_fn(model, batch_norm), labels)

    def mean_loss(v: Delta) -> Array:
        return jnp.minimum(loss_fn(apply_universal(threat, images, v)), clip_loss).mean()

    gradient = model.mean(jax.grad(mean_loss)(memory))
    free = jax.tree.map(lambda v: jnp.full_like(v, jnp.inf), memory)
    moved = threat_models.move(threat, memory, gradient, step_size, free)
    delta = perturbations.confined(threat.perturbation, images, spread(moved, len(images)))
    return Found(clip_box(threat.perturbation.apply(images, delta)), delta, moved)


def targeted_universal(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    memory: dict[str, Any], steps_done: Array, perturbation: Any, norm: Any = "linf", radius: Any, target: int = -1,
    examples: int = 100, refresh: int = 100, epochs: int = 20, search: str = "sign_gradient",
) -> Found:  # fmt: skip
    """``T(x, v_t)``, v_t universal towards class t: region adversarial training (RAT, Wang et al. 2021).

    v_t is made by `robust_jax.attacks.universal_targeted` from the first ``examples`` training images, of any class,
    anew every ``refresh`` steps, in ``epochs`` passes, by ``search``: "sign_gradient" or "deepfool". ``target``: t,
    images of which stay; -1: for each image a random class that is not its own. The model is looked at in eval mode, in
    which all devices make the same v_t.
    """
    if refresh < 1 or examples < 1:
        raise ValueError(f"targeted_universal: refresh={refresh}, examples={examples}, but both must be at least 1.")
    threat = ThreatModel(perturbation, norm, radius)
    choose("search", search, SEARCHES)
    options = {"keep": "highest_loss"} if search == "sign_gradient" else {}
    deltas = memory["deltas"]
    count = len(jax.tree.leaves(deltas)[0])

    def towards(t: Array) -> Delta:
        key = jax.random.fold_in(jax.random.key(0), steps_done)  # of the images' order only
        made = universal_targeted(
            model.eval, memory["images"], t, threat, key=key, epochs=epochs, method=search, **options
        )
        return jax.tree.map(lambda d: d[0], made.delta)

    def made(_: Delta) -> Delta:
        return jax.lax.map(towards, jnp.arange(count) if target < 0 else jnp.array([target]))

    deltas = jax.lax.cond(steps_done % refresh == 0, made, lambda old: old, deltas)
    index = jnp.zeros(len(images), int)
    if target < 0:
        other = jax.vmap(lambda k: jax.random.randint(k, (), 1, count))(keys)
        index = (labels + other) % count
    delta = norms.where(labels != target, jax.tree.map(lambda d: d[index], deltas), threat.perturbation.zeros(images))
    delta = perturbations.confined(threat.perturbation, images, delta)
    return Found(clip_box(threat.perturbation.apply(images, delta)), delta, memory | {"deltas": deltas})


def _loss_of(logits_fn: LogitsFn, labels: Labels) -> Callable[[Images], Float[Array, " b"]]:
    return lambda x: losses.cross_entropy(logits_fn(x), labels)


POINTS: dict[str, Callable[..., Found]] = {
    f.__name__: f
    for f in (
        clean,
        random,
        uniform,
        attack,
        divergent,
        steepest,
        roughest,
        nonlinear,
        universal,
        targeted_universal,
    )  # fmt: skip
}


Examples = Callable[[int], tuple[Images, Labels]]


def _no_delta(examples: Examples, classes: int, *, perturbation: Any, **_: Any) -> Delta:
    return perturbations.get(perturbation).zeros(examples(1)[0])


def _a_delta_a_class(
    first: Examples, classes: int, *, perturbation: Any, target: int = -1, examples: int = 100, **_: Any
) -> dict[str, Any]:
    if not -1 <= target < classes:
        raise ValueError(f"target={target} is no class of 0 to {classes - 1}, nor -1 for all.")
    images = first(examples)[0]
    one = perturbations.get(perturbation).zeros(images[:1])
    deltas = jax.tree.map(lambda d: jnp.repeat(d, classes if target < 0 else 1, 0), one)
    return {"images": images, "deltas": deltas}


# (n -> the first n training examples as (images, labels), classes, **options) -> what the point remembers at first.
MEMORIES: dict[str, Callable[..., Any]] = {"universal": _no_delta, "targeted_universal": _a_delta_a_class}
