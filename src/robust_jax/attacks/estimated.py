"""PGD with a gradient estimated from values: SPSA (Uesato et al. 2018) and NES (Ilyas et al. 2018).

``∂f/∂δ ≈ 1/n Σ_i (f(δ + c u_i) - f(δ - c u_i)) / (2 c) v_i / radius``, v_i random and ``u_i = radius v_i / ‖v_i‖``, so
that a probe is a fraction c of the ball for any perturbation and norm. The length of the estimate is off by ``‖v_i‖``,
which does not matter to projected steepest ascent. It applies to models without gradients, or with masked ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.ascent import Keep
from robust_jax.attacks.define import Cost, Loss, Problem, attack
from robust_jax.attacks.pgd import ascend_loss
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.options import Count, Length, NotNegative, Positive
from robust_jax.spaces import per_example, perturbations, threat_models
from robust_jax.spaces.perturbations import Delta, Images
from robust_jax.spaces.threat_models import ThreatModel


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
      images: the images that δ belongs to.
      value: ``δ -> [B]``; a pair is left out if one of its values is not finite.
      delta: where the gradient is estimated.
      keys: one per example.
      threat: its ball is the unit of the probes.
      samples: the number of pairs of opposite directions, evaluated one after the other.
      probe: the fraction c.
      signs: whether v are random signs (SPSA); otherwise they are Gaussian (NES).
    """

    def pair(i: Array, total: Delta) -> Delta:
        drawn = per_example.fold_keys(keys, i)
        v = perturbations.gaussian_delta(threat.perturbation, drawn, images, 1.0)
        v = jax.tree.map(jnp.sign, v) if signs else v
        u = threat_models.on_sphere(threat, v)
        ahead = value(jax.tree.map(lambda d, w: d + probe * w, delta, u))
        behind = value(jax.tree.map(lambda d, w: d - probe * w, delta, u))
        slope = (ahead - behind) / (2 * probe)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        return jax.tree.map(lambda t, w: t + per_example.expand(slope, w) * w / samples, total, v)

    total = jax.lax.fori_loop(0, samples, pair, jax.tree.map(jnp.zeros_like, delta))
    return threat_models.in_radii(threat, total)


def _cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(o.steps * (2 * o.samples + 1) + 1 + (o.keep == "best"), 0)


@attack(family="black_box", cost=_cost)
def spsa(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 40,
    samples: Count = 64,
    probe: Positive = 0.3,
    step_size: Length | None = None,
    loss: Loss = losses.margin,
    momentum: NotNegative = 0.0,
    targeted: bool = False,
    random_start: bool = True,
    keep: Keep = "best",
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
      key: one key, or one per example ``[B]``.
      steps: gradient steps.
      samples: pairs of opposite probes for each gradient.
      probe: the length of probes, as a fraction of the ball; they may leave the ball by that much, but not the box.
      step_size: in units of δ, with the radius' shape; by default ``2.5 * radius / steps``.
      loss: ``(logits, labels) -> [B]`` or a name in `losses.LOSSES`, maximised (targeted: minimised).
      momentum: see `pgd`; 0 is none.
      targeted: whether labels are targets.
      random_start: from a random point of the ball; otherwise from δ = 0.
      keep: as in `pgd`; with "best" among the iterates, not the probes.
      early_stop: as in `pgd`.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), an option
        out of its range, or options that contradict each other.
    """
    estimate = partial(estimate_gradient, threat=threat, samples=samples, probe=probe, signs=True)
    return ascend_loss(
        "spsa", logits_fn, images, labels, threat, loss=loss, targeted=targeted, key=key, steps=steps,
        step_size=step_size, momentum=momentum, random_start=random_start, keep=keep, early_stop=early_stop,
        estimate=estimate,
    )  # fmt: skip


@attack(family="black_box", cost=_cost)
def nes(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: Count = 40,
    samples: Count = 64,
    probe: Positive = 0.05,
    step_size: Length | None = None,
    loss: Loss = losses.margin,
    momentum: NotNegative = 0.9,
    targeted: bool = False,
    random_start: bool = False,
    keep: Keep = "best",
    early_stop: bool = False,
) -> AttackResult:
    """`pgd` with the gradient estimated along Gaussian directions (Ilyas et al. 2018, algorithm 1), from δ = 0.

    The paper takes 25 pairs and probes of standard deviation .001. Here ``probe`` is a length in the ball's norm: in
    linf that of the largest coordinate, three to four standard deviations. Costs, arguments and errors are those of
    `spsa`.
    """
    estimate = partial(estimate_gradient, threat=threat, samples=samples, probe=probe, signs=False)
    return ascend_loss(
        "nes", logits_fn, images, labels, threat, loss=loss, targeted=targeted, key=key, steps=steps,
        step_size=step_size, momentum=momentum, random_start=random_start, keep=keep, early_stop=early_stop,
        estimate=estimate,
    )  # fmt: skip
