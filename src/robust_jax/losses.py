"""Losses of logits, each ``(logits [B, K], labels [B]) -> [B]``: one number per example, larger is worse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from robust_jax.extensions import find
from robust_jax.options import Count
from robust_jax.options.signatures import checks_arguments


@checks_arguments
def cross_entropy(logits: Float[Array, "b k"], labels: Int[Array, " b"] | Float[Array, "b k"]) -> Float[Array, " b"]:
    """``-log softmax(logits)[label]``; of soft labels q, such as mixup makes, ``-Σ_k q_k log softmax(logits)_k``.

    Args:
      logits: of any real values.
      labels: classes, or one probability per class.

    Raises:
      ValueError: a label that is no class, or probabilities that are negative or do not sum to 1; of known values.

    Example::

        cross_entropy(logits, 0.7 * jax.nn.one_hot(labels, 10) + 0.3 * jax.nn.one_hot(others, 10))
    """
    if labels.ndim > 1:
        _check_probabilities(logits, labels)
        return optax.softmax_cross_entropy(logits, labels)
    _check_labels(logits, labels=labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _check_labels(logits: Array, **labels: Array) -> None:
    """Raises ValueError for a label, by its name here, that is none of the classes, where values are known."""
    for name, given in labels.items():
        if isinstance(given, jax.core.Tracer) or not given.size:
            continue
        values, classes = np.asarray(given), logits.shape[-1]  # NumPy's: no part of a program that is traced
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{name} range from {low} to {high}, but the logits have {classes} classes.")


def _check_probabilities(logits: Array, labels: Array) -> None:
    """Raises ValueError for soft labels that are no probabilities, where values are known."""
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    values = np.asarray(labels, float)
    low, off = values.min(), np.abs(values.sum(-1) - 1).max()
    if not (low >= 0 and off < 1e-3):
        raise ValueError(
            f"labels [B, K] are probabilities of each class, at least 0 and 1 in sum: the least is {low:.3g}, a sum is "
            f"off by {off:.3g}."
        )


def _of_label(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The label's logit and the largest of the other logits."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    label = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return label, jnp.where(own, -jnp.inf, logits).max(-1)


@checks_arguments
def margin(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """``max_{k != label} z_k - z_label`` (Carlini & Wagner 2017): positive where misclassified, 0 at a tie."""
    _check_labels(logits, labels=labels)
    label, other = _of_label(logits, labels)
    return other - label


@checks_arguments
def dlr(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Difference of logits ratio, ``(max_{k != y} z_k - z_y) / (z_(1) - z_(3))`` (Croce & Hein 2020, eq. 6).

    Invariant to shift and scale of the logits; 0 where the three largest logits are equal.

    Raises:
      ValueError: fewer than three classes.
    """
    if logits.shape[-1] < 3:
        raise ValueError(f"dlr needs at least 3 classes, got {logits.shape[-1]}; use margin instead.")
    top = jax.lax.top_k(logits, 3)[0]
    span = top[:, 0] - top[:, 2]
    return margin(logits, labels) * jnp.where(span > 0, 1 / jnp.where(span > 0, span, 1), 0)


@checks_arguments
def dlr_targeted(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`` (Croce & Hein 2020, eq. 7); with three classes z_(4) is z_(3).

    Positive where the target's logit is above the label's.

    Raises:
      ValueError: fewer than three classes.
    """
    if logits.shape[-1] < 3:
        raise ValueError(f"dlr_targeted needs at least 3 classes, got {logits.shape[-1]}; use margin instead.")
    _check_labels(logits, labels=labels, targets=targets)
    top = jax.lax.top_k(logits, min(4, logits.shape[-1]))[0]
    span = top[:, 0] - (top[:, 2] + top[:, -1]) / 2
    target, label = (jnp.take_along_axis(logits, k[:, None], axis=-1)[:, 0] for k in (targets, labels))
    return (target - label) * jnp.where(span > 0, 1 / jnp.where(span > 0, span, 1), 0)


@checks_arguments
def kl_divergence(logits: Float[Array, "b k"], reference_logits: Float[Array, "b k"]) -> Float[Array, " b"]:
    """``KL(softmax(reference) ‖ softmax(logits))``, as in TRADES (Zhang et al. 2019)."""
    # With log targets: if a probability underflows to 0, the gradient of p log p is NaN.
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(logits), jax.nn.log_softmax(reference_logits))


@checks_arguments
def rivals(logits: Float[Array, "b k"], labels: Int[Array, " b"], count: Count) -> Int[Array, "b n"]:
    """The ``min(count, k - 1)`` classes of the largest logits other than the label's, the largest first."""
    _check_labels(logits, labels=labels)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jax.lax.top_k(jnp.where(own, -jnp.inf, logits), min(count, logits.shape[-1] - 1))[1]


@checks_arguments
def predicted(logits: Float[Array, "b k"]) -> Int[Array, " b"]:
    """``argmax_k logits_k``; -1, which is no class, where a logit is NaN or infinite."""
    return jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1), -1)


@checks_arguments
def misclassified(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Bool[Array, " b"]:
    """``predicted(logits) != label``.

    Logits that are not finite are misclassified whatever the label: they break a model, as `robust_jax.robustness`
    counts them, and reach no target.
    """
    _check_labels(logits, labels=labels)
    return predicted(logits) != labels


LossFn = Callable[[Float[Array, "b k"], Int[Array, " b"]], Float[Array, " b"]]
LOSSES: dict[str, LossFn] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def get(loss: str | LossFn) -> LossFn:
    """A loss from its name in `LOSSES` or ``module:name``; one of your own raises ValueError unless it is per example.

    Raises:
      ValueError: an unknown name.
    """
    loss = loss if callable(loss) else find("loss", loss, LOSSES)
    is_checked = loss in LOSSES.values() or getattr(loss, "func", None) is _checked
    return loss if is_checked else update_wrapper(partial(_checked, loss), loss)  # results show its own name


def _checked(loss: LossFn, logits: Array, labels: Array) -> Array:
    value = loss(logits, labels)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", type(value).__name__)
    # A mean would be broadcast to all examples in silence.
    if shape != labels.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"loss must return one float per example, {labels.shape}, larger where worse, not their mean; for logits "
            f"{logits.shape} {getattr(loss, '__name__', loss)} returned {dtype}{'' if shape is None else f' {shape}'}."
        )
    return value
