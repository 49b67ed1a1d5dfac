"""Points: the images at which a training objective runs the model, ``(model, images, labels, keys, *, options)``.

Each is computed once per step, is a constant of it, and is shared by all terms that name it. Keyword-only parameters
are the options of a config. A point that remembers something from step to step takes ``memory`` and ``steps_done`` too.
The function that makes its memory before the first step stands beside it: ``@point(memory=...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax import losses
from robust_jax.attacks.ascent import Keep, ascend
from robust_jax.attacks.define import Loss
from robust_jax.attacks.pgd import pgd
from robust_jax.attacks.result import clip_box
from robust_jax.attacks.universal import apply_universal, spread, universal_targeted
from robust_jax.objectives.define import marked, point
from robust_jax.objectives.inputs import (
    Examples,
    Keys,
    Labels,
    LogitsFn,
    Mode,
    Model,
    Scale,
    Sigma,
    StepSize,
    classes_of,
)
from robust_jax.options import Count, NotNegative, Positive, Range
from robust_jax.penalties import gradient_norms
from robust_jax.penalties.local_flatness import roughest as find_roughest
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.checks import warn_of_sigma
from robust_jax.spaces.norms import Norm
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.registry import Space
from robust_jax.spaces.threat_models import Threat


class Point(NamedTuple):
    """What a point function returns.

    Attributes:
      images: the images at which the model is run.
      delta: the δ that turned the clean images into them, if there is one.
      memory: what the next step is given, of a point that remembers.
    """

    images: Images
    delta: Delta | None = None
    memory: Any = None


def _logits_fn(model: Model, batch_norm: Mode) -> LogitsFn:
    return model.eval if batch_norm == "eval" else lambda x: model.train(x)[0]


def _loss_of(logits_fn: LogitsFn, labels: Labels) -> Callable[[Images], Float[Array, " b"]]:
    return lambda x: losses.cross_entropy(logits_fn(x), labels)


@point(soft_labels=True)
def clean(model: Model, images: Images, labels: Labels, keys: Keys) -> Point:
    """The clean images."""
    return Point(images)


@point(soft_labels=True)
def random(model: Model, images: Images, labels: Labels, keys: Keys, *, perturbation: Space, sigma: Sigma) -> Point:
    """``T(x, n)``, ``n ~ N(0, sigma²)`` per coordinate, in units of δ: the random start of FGR (Xia & Li 2021)."""
    warn_of_sigma(perturbation, sigma, images)
    delta = perturbations.gaussian_delta(perturbation, keys, images, sigma)
    return Point(perturbation.apply(images, delta), delta)


@point(soft_labels=True)
def uniform(model: Model, images: Images, labels: Labels, keys: Keys, *, threat: Threat) -> Point:
    """``T(x, n)``, n a random point of the ball (GradAlign's second point, Andriushchenko & Flammarion 2020)."""
    delta = threat_models.random_delta(threat, keys, images)
    return Point(threat.perturbation.apply(images, delta), delta)


@point(soft_labels=True)
def attack(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    threat: Threat, steps: Count = 10, step_size: StepSize | None = None, momentum: NotNegative = 0.0,
    random_start: bool = True, keep: Keep = "highest_loss",
    loss: Loss = "cross_entropy", batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """``T(x, δ*)``, with δ* found by `robust_jax.attacks.pgd` (adversarial training, Madry et al. 2018).

    One step of 1.25 radius from a random start with keep="last" is fast adversarial training (Wong et al. 2020). With
    soft labels it maximises their cross-entropy.

    Args:
      model: the model.
      images: the clean images.
      labels: their classes.
      keys: one per example.
      threat: the ball.
      steps, step_size, momentum, random_start, keep, loss: see `robust_jax.attacks.pgd`.
      batch_norm: the mode of the inner maximisation.

    Raises:
      ValueError: soft labels with a loss other than the cross-entropy, which they alone have.
    """
    if labels.ndim > 1:
        if loss not in ("cross_entropy", losses.cross_entropy):
            raise ValueError(
                f"loss={getattr(loss, '__name__', loss)!r} needs one class per image, and mixup and cutmix mix two: "
                f"take the cross_entropy, or set data.augment.mixup and data.augment.cutmix to 0."
            )
        loss = lambda logits, _: losses.cross_entropy(logits, labels)  # noqa: E731
    found = pgd(
        _logits_fn(model, batch_norm), images, classes_of(labels), threat, key=keys, steps=steps, step_size=step_size,
        momentum=momentum, random_start=random_start, keep=keep, loss=loss,
    )  # fmt: skip
    return Point(found.images, found.delta)


@point(soft_labels=True)
def divergent(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    threat: Threat, steps: Count = 10, step_size: StepSize | None = None, batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """``T(x, δ*)`` of the largest ``KL(f(x) ‖ f(T(x, δ)))`` found, from a random start (TRADES, Zhang et al. 2019)."""
    logits_fn = _logits_fn(model, batch_norm)
    reference = logits_fn(images)
    found = pgd(
        logits_fn, images, classes_of(labels), threat, key=keys, steps=steps, step_size=step_size, keep="last",
        loss=lambda logits, _: losses.kl_divergence(logits, reference),
    )  # fmt: skip
    return Point(found.images, found.delta)


@point(soft_labels=True)
def steepest(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    threat: Threat, noise: NotNegative = 0.0, box: bool = False, batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """``T(x, n + r)``, ``r = argmax_{δ in ball} <∂ℓ/∂δ, δ>`` at T(x, n): the linearised family of Lyu et al. (2015).

    With noise=2 and box=True it is N-FGSM (de Jorge et al. 2022), whose δ is not projected into the ball.

    Args:
      model: the model.
      images: the clean images.
      labels: their classes.
      keys: one per example.
      threat: the ball of r.
      noise: n is this number times a random point of the ball; 0 is none.
      box: whether n and n + r are confined, so that images stay in [0, 1].
      batch_norm: the mode in which the gradient is taken.
    """
    space = threat.perturbation

    def kept(delta: Delta) -> Delta:
        return perturbations.confined(space, images, delta) if box else delta

    start, moved = space.zeros(images), images
    if noise:
        start = kept(jax.tree.map(lambda d: noise * d, threat_models.random_delta(threat, keys, images)))
        moved = space.apply(images, start)
    toward = gradient_norms.steepest(_loss_of(_logits_fn(model, batch_norm), labels), moved, threat)
    delta = kept(jax.tree.map(jnp.add, start, toward))
    perturbed = space.apply(images, delta)
    return Point(clip_box(perturbed) if box else perturbed, delta)


@point(soft_labels=True)
def roughest(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    threat: Threat, gradient: Norm | None = None, steps: Count = 10, step_size: StepSize | None = None,
    random_start: bool = True, scale: Scale = 1.0, batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """The point of the ball with the largest gradient norm found (LFR, Xu et al. 2020).

    ``gradient`` is the norm of the gradient, by default the dual of the threat model's; ``scale`` multiplies the
    gradient first: give that of the term that penalises it. See `robust_jax.penalties.local_flatness.roughest`.
    """
    found = find_roughest(
        _loss_of(_logits_fn(model, batch_norm), labels), images, threat, norm=gradient, key=keys, steps=steps,
        step_size=step_size, random_start=random_start, scale=scale,
    )  # fmt: skip
    return Point(found.images, found.delta)


@point(soft_labels=True)
def nonlinear(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    threat: Threat, steps: Count = 10, step_size: StepSize | None = None, batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """The point of the ball whose loss is farthest from its linearisation at δ = 0 (LLR, Qin et al. 2019, eq. 4)."""
    loss_fn = _loss_of(_logits_fn(model, batch_norm), labels)
    loss, gradient, _ = per_example.value_and_gradient(loss_fn, images)
    slope = perturbations.pullback(threat.perturbation, images, gradient)

    def score(perturbed: Images, delta: Delta, _: Any) -> tuple[Array, Array]:
        gap = jnp.abs(loss_fn(perturbed) - loss - per_example.inner(slope, delta))
        return gap, jnp.zeros(len(images), bool)

    found = ascend(score, images, threat, key=keys, steps=steps, step_size=step_size, keep="highest_loss")
    return Point(found.images, found.delta)


def _zero_delta(examples: Examples, classes: int, *, threat: Threat, **_: Any) -> Delta:
    return threat.perturbation.zeros(examples(1)[0])


@point(memory=_zero_delta, soft_labels=True)
def universal(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    memory: Delta, steps_done: Array, threat: Threat, step_size: StepSize, clip_loss: Positive = 9.0,
    batch_norm: Mode = "eval",
) -> Point:  # fmt: skip
    """``T(x, v)`` clipped to [0, 1], with one v for all images, moved once per step (Shafahi et al. 2020).

    ``v <- Π_ball(v + step_size * argmax_{‖u‖ <= 1} <g, u>)``, g the batch's mean gradient of ``min(ℓ, clip_loss)``.
    """
    loss_fn = _loss_of(_logits_fn(model, batch_norm), labels)

    def mean_loss(v: Delta) -> Array:
        return jnp.minimum(loss_fn(apply_universal(threat, images, v)), clip_loss).mean()

    gradient = model.mean(jax.grad(mean_loss)(memory))
    moved = threat_models.move(threat, memory, gradient, step_size)
    delta = perturbations.confined(threat.perturbation, images, spread(moved, len(images)))
    return Point(clip_box(threat.perturbation.apply(images, delta)), delta, moved)


def _delta_per_class(
    first: Examples, classes: int, *, threat: Threat, target: int = -1, examples: int = 100, **_: Any
) -> dict[str, Any]:
    """Zeros, one δ per class or one for the target alone, and the images that they are to be made from.

    Raises:
      ValueError: a target that is no class.
    """
    if not -1 <= target < classes:
        raise ValueError(f"target={target} is no class of 0 to {classes - 1}, nor -1 for all.")
    images = first(examples)[0]
    one = threat.perturbation.zeros(images[:1])
    deltas = jax.tree.map(lambda d: jnp.repeat(d, classes if target < 0 else 1, 0), one)
    return {"images": images, "deltas": deltas}


@point(memory=_delta_per_class)
def targeted_universal(
    model: Model, images: Images, labels: Labels, keys: Keys, *,
    memory: dict[str, Any], steps_done: Array, threat: Threat, target: Annotated[int, Range(least=-1)] = -1,
    examples: Count = 100, refresh: Count = 100, epochs: Count = 20,
    search: Literal["sign_gradient", "deepfool"] = "sign_gradient",
) -> Point:  # fmt: skip
    """``T(x, v_t)``, v_t universal towards class t: region adversarial training (RAT, Wang et al. 2021).

    `robust_jax.attacks.universal_targeted` makes v_t from training images of any class. The model is run in eval mode,
    in which all devices make the same v_t.

    Args:
      model: the model.
      images: the clean images.
      labels: their classes.
      keys: one per example; they draw the target classes.
      memory: the training images, and the deltas made last.
      steps_done: the number of steps before this one.
      threat: the ball of v_t. Of a radius that grows by a schedule, v_t has what it was when v_t was made: from a
        start of 0, images are not moved before the first ``refresh``.
      target: t, whose own images stay unchanged; -1 draws for each image a class other than its own.
      examples: the number of training images that v_t is made from, the first ones.
      refresh: the number of steps after which the deltas are made again.
      epochs: the number of passes over the training images that make v_t.
      search: the method of `robust_jax.attacks.universal_targeted`.
    """
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
    deltas = threat_models.project(threat, deltas)  # a scheduled radius may have become smaller
    index = jnp.zeros(len(images), int)
    if target < 0:
        other = jax.vmap(lambda k: jax.random.randint(k, (), 1, count))(keys)
        index = (labels + other) % count
    delta = per_example.where(
        labels != target, jax.tree.map(lambda d: d[index], deltas), threat.perturbation.zeros(images)
    )
    delta = perturbations.confined(threat.perturbation, images, delta)
    return Point(clip_box(threat.perturbation.apply(images, delta)), delta, memory | {"deltas": deltas})


POINTS: dict[str, Callable[..., Point]] = marked(globals(), "point")
