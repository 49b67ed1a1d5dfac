"""Projected gradient ascent over any threat model (Madry et al. 2018); FGSM is its one-step case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.ascent import ascend
from robust_jax.checks import check_batch
from robust_jax.losses import LossFn
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel

LogitsFn = Callable[[Images], Float[Array, "b k"]]


class AttackResult(NamedTuple):
    """What every attack returns.

    Attributes:
      images: ``[B, H, W, C]`` in [0, 1].
      delta: the δ that made them, inside the ball.
      success: ``[B]``, true exactly where the image is misclassified (targeted: classified as the target).
    """

    images: Images
    delta: Delta
    success: Bool[Array, " b"]


def pgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 40,
    step_size: Any = None,
    restarts: int = 1,
    loss: str | LossFn = losses.cross_entropy,
    momentum: float = 0.0,
    optimizer: Any = None,
    targeted: bool = False,
    random_start: bool = True,
    keep: str = "best",
    early_stop: bool = False,
) -> AttackResult:
    """Maximises ``loss(logits_fn(T(x, δ)), y)`` over the ball by projected steepest ascent.

    ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <∂loss/∂δ, u>)``: the sign for linf, the normalised gradient
    for l2 (Madry et al. 2018); for l1 the best coordinates, each as far as the box [0, 1] lets it. Coordinates that
    the box holds back are left out. With momentum μ the direction is taken from ``v <- μ v + g / ‖g‖₁`` (Dong et
    al. 2018). With an optimizer ``δ <- Π_ball(δ + step_size * u)``, u its step uphill at a learning rate of 1.
    Each run costs ``steps`` gradients and one forward pass, and keep="best" one forward pass more.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``; only the random start uses it.
      steps: gradient steps of each restart.
      step_size: in units of δ, of the radius' shape; by default ``2.5 * radius / steps``.
      restarts: runs from different random starts.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      momentum: 0 is none.
      optimizer: instead of steepest ascent one of optax's, ``learning_rate -> GradientTransformation``, such as
        ``optax.adam`` or ``partial(optax.sgd, momentum=0.9)``, or its name ("adam", see `ascent.OPTIMIZERS`).
      targeted: whether labels are targets.
      random_start: from a random point of the ball, else from δ = 0.
      keep: "best": by (misclassified, then loss), over all iterates and δ = 0; "highest_loss": over all iterates;
        "last": the last iterate.
      early_stop: an example goes no further once it is misclassified: the same success in less time, at a point of
        lower loss. Only with keep="best"; images must not depend on each other.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible combination of options.
    """
    check_batch(images, labels, logits_fn, threat)
    loss_fn = losses.get(loss)
    sign = -1.0 if targeted else 1.0

    def score(perturbed: Images, _: Delta, labels: Array) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        return sign * loss_fn(logits, labels), losses.misclassified(logits, labels) != targeted

    found = ascend(
        score, images, threat, labels, key=key, steps=steps, step_size=step_size, restarts=restarts, momentum=momentum,
        optimizer=optimizer, random_start=random_start, keep=keep, early_stop=early_stop,
    )  # fmt: skip
    return AttackResult(found.images, found.delta, found.success)


def fgsm(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    loss: str | LossFn = losses.cross_entropy,
    targeted: bool = False,
) -> AttackResult:
    """One step of the whole radius from δ = 0 (Goodfellow et al. 2015), for any threat model; see `pgd`."""
    return pgd(
        logits_fn, images, labels, threat, key=key, steps=1, step_size=threat.radius, loss=loss,
        targeted=targeted, random_start=False, keep="last",
    )  # fmt: skip
