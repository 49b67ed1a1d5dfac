"""PGD with a gradient estimated from values: SPSA (Uesato et al. 2018) and NES (Ilyas et al. 2018).

``∂f/∂δ ≈ 1/n Σ_i (f(δ + c u_i) - f(δ - c u_i)) / (2 c) v_i / radius``, v_i random and ``u_i = radius v_i / ‖v_i‖``, so
that a probe is a fraction c of the ball in any perturbation and norm. Only its direction is right: the length is off by
``‖v_i‖``, which projected steepest ascent does not see. Models without gradients, or with masked ones, are attacked so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import ascend
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.checks import check_batch
from robust_jax.losses import LossFn
from robust_jax.perturbations import Delta, Images
from robust_jax.threat_models import ThreatModel


def estimate_gradient(
    images: Images,
    value: Callable[[Delta], Float[Array, " b"]],
    delta: Delta,
    keys: Key[Array, " b"],
    *,
    threat: ThreatModel,
    samples: int,
    probe: float,
    signs: bool,
) -> Delta:
    """The estimate of the module's docstring at one δ, from ``samples`` pairs of values.

    Args:
      images: which δ belongs to.
      value: ``δ -> [B]``; pairs of which one is not finite are left out.
      delta: where.
      keys: one an image.
      threat: whose ball is the unit.
      samples: pairs of opposite directions, one after the other.
      probe: the fraction c.
      signs: whether v are random signs (SPSA), else Gaussian (NES).
    """

    def pair(i: Array, total: Delta) -> Delta:
        drawn = perturbations.fold_keys(keys, i)
        v = perturbations.gaussian_delta(threat.perturbation, drawn, images, 1.0)
        v = jax.tree.map(jnp.sign, v) if signs else v
        u = threat_models.on_sphere(threat, v)
        ahead = value(jax.tree.map(lambda d, w: d + probe * w, delta, u))
        behind = value(jax.tree.map(lambda d, w: d - probe * w, delta, u))
        slope = (ahead - behind) / (2 * probe)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        return jax.tree.map(lambda t, w: t + norms.expand(slope, w) * w / samples, total, v)

    total = jax.lax.fori_loop(0, samples, pair, jax.tree.map(jnp.zeros_like, delta))
    return threat_models.in_radii(threat, total)


def spsa(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 40,
    samples: int = 64,
    probe: float = 0.3,
    step_size: Any = None,
    loss: str | LossFn = losses.margin,
    momentum: float = 0.0,
    targeted: bool = False,
    random_start: bool = True,
    keep: str = "best",
    early_stop: bool = False,
) -> AttackResult:
    """`pgd` with the gradient estimated along random signs (Uesato et al. 2018, algorithm 1).

    The paper takes Adam's steps instead of steepest ones, 128 to 8192 samples and probes of .01 in balls of .03.
    A step costs ``2 samples + 1`` forward passes, one after the other.

    Args:
      logits_fn: any function of images that JAX traces; it need not be differentiable.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``.
      steps: gradient steps.
      samples: pairs of opposite probes for each gradient.
      probe: how far to probe, as a fraction of the ball; probes may leave it by that much, but not the box.
      step_size: in units of δ, of the radius' shape; by default ``2.5 * radius / steps``.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      momentum: 0 is none, see `pgd`.
      targeted: whether labels are targets.
      random_start: from a random point of the ball, else from δ = 0.
      keep: as in `pgd`; with "best" over the iterates, not the probes.
      early_stop: as in `pgd`.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible combination of options.
    """
    return _run("spsa", True, logits_fn, images, labels, threat, samples, probe, loss, targeted, key=key, steps=steps,
                step_size=step_size, momentum=momentum, random_start=random_start, keep=keep,
                early_stop=early_stop)  # fmt: skip


def nes(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 40,
    samples: int = 64,
    probe: float = 0.05,
    step_size: Any = None,
    loss: str | LossFn = losses.margin,
    momentum: float = 0.9,
    targeted: bool = False,
    random_start: bool = False,
    keep: str = "best",
    early_stop: bool = False,
) -> AttackResult:
    """`pgd` with the gradient estimated along Gaussian directions (Ilyas et al. 2018, algorithm 1), from δ = 0.

    The paper takes 25 pairs and probes of standard deviation .001. A probe here is ``probe`` in the ball's norm: in
    linf its largest coordinate, three to four standard deviations. Costs, arguments and errors are those of `spsa`.
    """
    return _run("nes", False, logits_fn, images, labels, threat, samples, probe, loss, targeted, key=key, steps=steps,
                step_size=step_size, momentum=momentum, random_start=random_start, keep=keep,
                early_stop=early_stop)  # fmt: skip


def _run(
    path: str,
    signs: bool,
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    samples: int,
    probe: float,
    loss: str | LossFn,
    targeted: bool,
    **options: Any,
) -> AttackResult:
    check_batch(images, labels, logits_fn, threat)
    loss_fn = losses.get(loss)
    if samples < 1 or not probe > 0:
        raise ValueError(f"{path}: samples={samples} must be at least 1 and probe={probe} positive.")

    def score(perturbed: Images, _: Delta, labels: Array) -> tuple[Array, Array]:
        logits = logits_fn(perturbed)
        value = loss_fn(logits, labels) * (-1 if targeted else 1)
        return value, losses.misclassified(logits, labels) != targeted

    estimate = partial(estimate_gradient, threat=threat, samples=samples, probe=probe, signs=signs)
    found = ascend(score, images, threat, labels, estimate=estimate, **options)
    return AttackResult(found.images, found.delta, found.success)
