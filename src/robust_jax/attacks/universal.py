"""Universal perturbations: one δ for all images, untargeted or towards one class, over any threat model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.ascent import Keep, check_step_size
from robust_jax.attacks.deepfool import Search, minimal_step
from robust_jax.attacks.define import Loss, Share, checked
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box
from robust_jax.checks import check_images, checked_logits
from robust_jax.extensions import choose
from robust_jax.losses import LossFn
from robust_jax.options import Count, Length, NotNegative, Range
from robust_jax.options.hints import described, is_float_array
from robust_jax.spaces import threat_models
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


class _Candidate(NamedTuple):
    """A δ that was tried, its mean loss, and which images it fools."""

    delta: Delta
    mean: Array
    success: Array


def apply_universal(threat: ThreatModel, images: Images, delta: Delta) -> Images:
    """``T(x, δ)`` clipped to [0, 1] for one δ and any number of images.

    Args:
      threat: only its perturbation is used.
      images: ``[N, H, W, C]``; if δ has the shape of images (additive, flow), of the size that δ was made for.
      delta: ``[1, ...]``, or ``[B, ...]`` with B equal entries, as in an `AttackResult` of this module.

    Raises:
      ValueError: images that are no floats ``[N, H, W, C]`` in [0, 1], or a δ of another shape than theirs.
    """
    check_images(images)
    check_threat(threat, images)
    _check_delta(threat, images, delta)
    return clip_box(threat.perturbation.apply(images, spread(delta, len(images))))


@checked(key_per_image=False)
def universal(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, ""],
    epochs: Count = 10,
    fraction: Share = 0.8,
    steps: Count = 20,
    overshoot: NotNegative = 0.02,
    candidates: Count = 10,
    reach: Annotated[float, Range(least=1)] = 10.0,
    batch_size: Count = 128,
    targeted: bool = False,
) -> AttackResult:
    """One δ that changes the class of most images (universal adversarial perturbation, Moosavi-Dezfooli et al. 2017).

    For each image in random order that the current δ does not fool, the smallest step that does is added (see
    `deepfool`) and δ is projected: ``δ <- Π_ball(δ + argmin {‖u / radius‖: T(x_i, δ + u) is misclassified})``. Passes
    over the images end once ``fraction`` of them are fooled; the δ after the best pass is returned, or δ = 0.
    The paper fools the model's own predictions: pass them as labels for its fooling rate. Images are visited one by
    one, and a pass costs up to ``steps`` gradients per image: `universal_gradient` is faster on many.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, for the orders.
      epochs: the largest number of passes.
      fraction: the share of fooled images (the paper's 1 - δ) that suffices, including those fooled without δ.
      steps: the largest number of steps of each search.
      overshoot: of each search, see `deepfool`.
      candidates: of each search.
      reach: how far from 0 a search may go, in radii, at least 1. At 1 it stays in the ball, and nothing is projected:
        slower, as searches fail, but worth a try if few images are fooled.
      batch_size: the number of images at a time when the fooled ones are counted.
      targeted: whether labels are targets.

    Returns:
      The perturbed images, δ repeated for each of them (``delta[:1]`` is one copy, see `apply_universal`), and which
      are fooled.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), more than
        one key, or an option out of its range.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    wide = threat_models.scaled(threat, reach)
    search = Search(steps, 1.0, overshoot, candidates, targeted, confine=False)
    needed = math.ceil(fraction * len(images) - 1e-6)

    def fooled(delta: Delta) -> Array:
        return _measure(logits_fn, images, labels, threat, delta, losses.margin, targeted, batch_size)[1]

    def one_pass(carry: tuple[Array, Delta, Delta, Array]) -> tuple[Array, Delta, Delta, Array]:
        epoch, delta, best, success = carry
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(images))

        def visit(i: Array, delta: Delta) -> Delta:
            at = order[i][None]
            found, hit = minimal_step(logits_fn, images[at], labels[at], wide, delta, search)
            return _choose(hit[0], threat_models.project(threat, found), delta)

        delta = jax.lax.fori_loop(0, len(images), visit, delta)
        now = fooled(delta)
        more = now.sum() > success.sum()
        return epoch + 1, delta, _choose(more, delta, best), jnp.where(more, now, success)

    zeros = threat.perturbation.zeros(images[:1])
    first = (jnp.array(0), zeros, zeros, fooled(zeros))
    _, _, best, success = jax.lax.while_loop(lambda c: (c[0] < epochs) & (c[-1].sum() < needed), one_pass, first)
    return _result(threat, images, best, success)


@checked(key_per_image=False)
def universal_gradient(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, ""],
    epochs: Count = 40,
    batch_size: Count = 128,
    step_size: Length | None = None,
    loss: Loss = losses.cross_entropy,
    clip: float = math.inf,
    restarts: Count = 1,
    targeted: bool = False,
    keep: Keep = "best",
) -> AttackResult:
    """Maximises the mean over images of ``loss(logits_fn(T(x, δ)), y)`` over one δ, by projected steepest ascent.

    ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <mean gradient, u>)`` from δ = 0, for linf the sign of the mean
    gradient, one step for each batch of the shuffled images (Shafahi et al. 2020). A δ of few numbers (affine) has
    local maxima, for which there are ``restarts``.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, for the orders and the restarts; with one batch and one run it has no effect.
      epochs: the number of passes over the images.
      batch_size: the number of images of a step, and at a time when the fooled ones are counted.
      step_size: in units of δ, with the radius' shape; by default ``2.5 * radius`` over the number of steps.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      clip: the loss of an image is ``min(loss, clip)`` (targeted: ``min(-loss, clip)``), so that a few images of large
        loss do not dominate the mean (Shafahi et al. 2020, for cross-entropy).
      restarts: the number of runs, the first from δ = 0, the others from random points of the ball.
      targeted: whether labels are targets.
      keep: "best": the δ after the pass that fools the most images, then of the highest mean loss, or δ = 0;
        "highest_loss": that of the highest mean loss; "last": the last δ, which saves the forward pass over the images
        after each pass.

    Returns:
      The perturbed images, δ repeated for each of them (``delta[:1]`` is one copy, see `apply_universal`), and which
      are fooled.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), more than
        one key, or an option out of its range.
    """
    loss_fn = losses.get(loss)
    if restarts > 1 and keep == "last":
        raise ValueError(
            f"universal_gradient: restarts={restarts} with keep='last' return the last run only: set keep='best'."
        )
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    space, sign = threat.perturbation, -1.0 if targeted else 1.0
    check_step_size(threat, images, step_size)
    batches = -(-len(images) // batch_size)
    default = jax.tree.map(lambda r: 2.5 * r / (epochs * batches), threat.radius)
    size = default if step_size is None else step_size

    def gains(logits: Array, labels: Array) -> Array:
        return jnp.minimum(sign * loss_fn(logits, labels), clip)

    def measured(delta: Delta) -> _Candidate:
        value, success = _measure(logits_fn, images, labels, threat, delta, gains, targeted, batch_size)
        return _Candidate(delta, jnp.nan_to_num(value.mean(), nan=-jnp.inf), success)

    def ascend(delta: Delta, batch: tuple[Array, Array]) -> tuple[Delta, None]:
        index, weight = batch

        def mean(delta: Delta) -> Array:
            logits = logits_fn(apply_universal(threat, images[index], delta))
            # where, not a product: an infinite loss times a weight of 0 is NaN.
            return jnp.where(weight > 0, gains(logits, labels[index]), 0).sum() / weight.sum()

        gradient = jax.tree.map(jnp.nan_to_num, jax.grad(mean)(delta))
        return threat_models.move(threat, delta, gradient, size), None

    def better(new: _Candidate, old: _Candidate) -> _Candidate:
        higher = new.mean > old.mean
        if keep == "best":
            most, least = new.success.sum(), old.success.sum()
            higher = (most > least) | ((most == least) & higher)
        return _choose(higher, new, old)

    def run(restart: Array, best: _Candidate) -> _Candidate:
        run_key = jax.random.fold_in(key, restart)
        # The keys before it are those of the epochs' orders.
        start = threat_models.random_delta(threat, jax.random.fold_in(run_key, epochs)[None], images[:1])

        def one_pass(epoch: Array, carry: tuple[Delta, _Candidate]) -> tuple[Delta, _Candidate]:
            delta, best = carry
            order = jax.random.permutation(jax.random.fold_in(run_key, epoch), len(images))
            delta, _ = jax.lax.scan(ascend, delta, _batches(order, batch_size))
            return delta, best if keep == "last" else better(measured(delta), best)

        delta, best = jax.lax.fori_loop(0, epochs, one_pass, (_choose(restart > 0, start, zeros), best))
        return measured(delta) if keep == "last" else best

    zeros = space.zeros(images[:1])
    best = jax.lax.fori_loop(0, restarts, run, measured(zeros))
    return _result(threat, images, best.delta, best.success)


METHODS: dict[str, Callable[..., AttackResult]] = {"sign_gradient": universal_gradient, "deepfool": universal}


def universal_targeted(
    logits_fn: LogitsFn,
    images: Images,
    target: int | Int[Array, "..."],
    threat: ThreatModel,
    *,
    key: Key[Array, ""],
    method: str = "sign_gradient",
    **options: Any,
) -> AttackResult:
    """One δ that makes the model see the class ``target`` in all images (as RAT trains against, Wang et al. 2021).

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1]; leave out those of the target class, as they would enter the mean and count as successes.
      target: one class, or ``[B]`` equal ones.
      threat: perturbation, norm and radius.
      key: one key.
      method: "sign_gradient", `universal_gradient`, for any norm; or "deepfool", `universal`.
      **options: those of that function.

    Returns:
      As `universal`; success where the image is classified as the target.

    Raises:
      ValueError: an unknown method, different targets, and the errors of the method.
    """
    choose("universal_targeted: method", method, METHODS)
    check_images(images)
    given = np.zeros(1, int) if isinstance(target, jax.core.Tracer) else np.asarray(target)
    if not np.issubdtype(given.dtype, np.integer) or np.unique(given).size != 1:
        raise ValueError(
            f"universal_targeted: target={target!r}, but there is one target, a class that is the same for all images."
        )
    classes = jax.eval_shape(checked_logits(logits_fn), images).shape[1]
    if not 0 <= int(given.flat[0]) < classes:
        raise ValueError(f"universal_targeted: target={target!r} is none of the model's {classes} classes.")
    labels = jnp.broadcast_to(jnp.asarray(target), len(images))
    return METHODS[method](logits_fn, images, labels, threat, key=key, targeted=True, **options)


def spread(delta: Delta, count: int) -> Delta:
    """One δ repeated ``count`` times."""
    return jax.tree.map(lambda d: jnp.broadcast_to(d[:1], (count, *d.shape[1:])), delta)


def _choose(condition: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _batches(order: Int[Array, " b"], batch_size: int) -> tuple[Int[Array, "n m"], Float[Array, "n m"]]:
    """The order cut into batches with weights 1; the last one is padded with weight 0."""
    shape = -(-len(order) // batch_size), min(batch_size, len(order))
    weight = jnp.arange(math.prod(shape)) < len(order)
    return jnp.resize(order, shape), weight.reshape(shape).astype(jnp.float32)


def _measure(
    logits_fn: LogitsFn, images: Images, labels: Int[Array, " b"], threat: ThreatModel, delta: Delta, loss: LossFn,
    targeted: bool, batch_size: int,
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:  # fmt: skip
    """The loss of every image at one δ, and which images are fooled."""

    def one(index: Array) -> tuple[Array, Array]:
        logits = logits_fn(apply_universal(threat, images[index], delta))
        return loss(logits, labels[index]), losses.misclassified(logits, labels[index]) != targeted

    found = jax.lax.map(one, _batches(jnp.arange(len(images)), batch_size)[0])
    value, success = (leaf.reshape(-1)[: len(images)] for leaf in found)
    return value, success


def _result(threat: ThreatModel, images: Images, delta: Delta, success: Bool[Array, " b"]) -> AttackResult:
    return AttackResult(apply_universal(threat, images, delta), spread(delta, len(images)), success)


def _check_delta(threat: ThreatModel, images: Images, delta: Delta) -> None:
    """Raises ValueError unless δ is one of these images': adding would repeat a single channel silently."""
    expected = jax.eval_shape(threat.perturbation.zeros, images[:1])
    for leaf in jax.tree.leaves(delta):
        if not is_float_array(leaf):
            raise ValueError(f"delta must be an array of floats, or for a composition a tuple, got {described(leaf)}.")
    shapes = [[jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(tree)] for tree in (expected, delta)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"delta has the shape {_joined(shapes[1])} for each image, but {threat.perturbation.name} takes "
            f"{_joined(shapes[0])} for images {images.shape}: give a δ made for images like these."
        )
    for leaf in jax.tree.leaves(delta):
        if not isinstance(leaf, jax.core.Tracer) and (np.asarray(leaf) != np.asarray(leaf)[:1]).any():
            raise ValueError(
                f"delta has {len(leaf)} entries that differ, and one δ is for all images: give that one, [1, ...], or "
                f"apply each to its own image, threat.perturbation.apply(images, delta)."
            )


def _joined(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
