"""Projected gradient ascent over any threat model (Madry et al. 2018), and FGSM, its one-step case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jaxtyping import Array, Int, Key

from robust_jax import losses
from robust_jax.attacks.ascent import Keep, Optimizer, Score, ascend
from robust_jax.attacks.define import Cost, Loss, Problem, attack
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.losses import LossFn
from robust_jax.options import Count, Length, NotNegative
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


def _cost(o: SimpleNamespace, _: Problem) -> Cost:
    # keep="best" also tries δ = 0.
    return Cost(o.restarts * (o.steps + 1) + (o.keep == "best"), o.restarts * o.steps)


@attack(family="ascent", cost=_cost)
def pgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 40,
    step_size: Length | None = None,
    restarts: Count = 1,
    loss: Loss = losses.cross_entropy,
    momentum: NotNegative = 0.0,
    optimizer: Optimizer | None = None,
    targeted: bool = False,
    random_start: bool = True,
    keep: Keep = "best",
    early_stop: bool = False,
) -> AttackResult:
    """Maximises ``loss(logits_fn(T(x, δ)), y)`` over the ball by projected steepest ascent.

    ``δ <- Π_ball(δ + step_size * argmax_{‖u‖ <= 1} <∂loss/∂δ, u>)``: the sign for linf, the normalised gradient
    for l2 (Madry et al. 2018); for l1 the best coordinates, each as far as the box [0, 1] allows; for l1 and l21 over
    flows the best pixels, each by at most 0.25 px (`Perturbation.stride`). Coordinates that the box holds back are
    left out. With momentum μ the direction is taken from ``v <- μ v + g / ‖g‖₁`` (Dong et al. 2018). With an
    optimizer ``δ <- Π_ball(δ + step_size * u)``, u its step uphill at a learning rate of 1.
    Each run costs ``steps`` gradients and one forward pass, and keep="best" one forward pass more.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``, for the random starts.
      steps: gradient steps of each restart.
      step_size: in units of δ, with the radius' shape; by default ``2.5 * radius / steps``.
      restarts: runs from different random starts.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      momentum: μ; 0 is none.
      optimizer: replaces steepest ascent: one of optax's, ``learning_rate -> GradientTransformation``, such as
        ``optax.adam`` or ``partial(optax.sgd, momentum=0.9)``, or its name ("adam", see `ascent.OPTIMIZERS`).
      targeted: whether labels are targets.
      random_start: from a random point of the ball; otherwise from δ = 0.
      keep: which point is returned: "best": the best by (misclassified, then loss), among all iterates and δ = 0;
        "highest_loss": that of the highest loss among all iterates; "last": the last iterate.
      early_stop: an example stops once it is misclassified: the same success in less time, at a point of lower loss.
        Only with keep="best"; the model must not mix images.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), an option
        out of its range, or options that contradict each other.

    Example::

        result = pgd(logits_fn, images, labels, ThreatModel("additive", "linf", 8 / 255), key=jax.random.key(0))
        robust_accuracy = 1 - result.success.mean()
    """
    return ascend_loss(
        "pgd", logits_fn, images, labels, threat, loss=loss, targeted=targeted, key=key, steps=steps,
        step_size=step_size, restarts=restarts, momentum=momentum, optimizer=optimizer, random_start=random_start,
        keep=keep, early_stop=early_stop,
    )  # fmt: skip


def ascend_loss(
    name: str, logits_fn: LogitsFn, images: Images, labels: Array, threat: ThreatModel, *, loss: Loss, targeted: bool,
    **search: Any,
) -> AttackResult:  # fmt: skip
    """An attack that maximises a loss of the logits by `ascend`, whose options are those of the ``search``."""
    found = ascend(loss_score(logits_fn, losses.get(loss), targeted), images, threat, labels, name=name, **search)
    return AttackResult(found.images, found.delta, found.success)


def loss_score(logits_fn: LogitsFn, loss_fn: LossFn, targeted: bool) -> Score:
    """The score of an ascent on a loss, given the labels; targeted: its negative, given the targets."""
    sign = -1.0 if targeted else 1.0

    def score(perturbed: Images, _: Delta, labels: Array) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        return sign * loss_fn(logits, labels), losses.misclassified(logits, labels) != targeted

    return score


@attack(family="one_step", cost=lambda o, _: Cost(2, 1))
def fgsm(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    loss: Loss = losses.cross_entropy,
    targeted: bool = False,
) -> AttackResult:
    """One step of length radius from δ = 0, ``argmax_{δ in ball} <∂ℓ/∂δ, δ>`` (Goodfellow et al. 2015, eq. 2 for linf).

    For any threat model; arguments and errors are those of `pgd`.
    """
    return ascend_loss(
        "fgsm", logits_fn, images, labels, threat, loss=loss, targeted=targeted, key=key, steps=1,
        step_size=threat.radius, random_start=False, keep="last",
    )  # fmt: skip
