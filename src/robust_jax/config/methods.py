"""Every training method as points and terms, for any dataset, and the attacks that compare them.

A config chooses one by name, with the sizes of its dataset (`robust_jax.config.sizes`)::

    c = base("mnist", "small_cnn")
    choose(c, "trades", SIZES["mnist"])

Weights multiply the mean over examples of a per-example term. The coefficients of the papers correspond to them as
follows, with a batch of B, images of D numbers and W pixels per side:

| paper | its coefficient | weight here |
|---|---|---|
| Ross & Doshi-Velez 2018 | λ, half the squared L2 norm, of the mean loss | λ / (2 B) |
| Finlay & Oberman 2019 | λ, L2 norm squared / 2; L1 norm squared / (2 D) | λ / 2; λ / (2 D) |
| Xia & Li 2021 (FGR) | λ, of the mean loss, normalised units | λ / B² ((W - 1) / 2)² |
| Xu et al. 2020 (LFR) | λ, L1 norm | λ |
| Lyu et al. 2015 | σ | the radius |
| Zhang et al. 2019 (TRADES) | β, also written 1 / λ | β |
| Wang et al. 2020 (MART) | λ | λ |
| Moosavi-Dezfooli et al. 2019 (CURE) | γ, of the difference at h z, ‖z‖₂ = 1; a sign z is of radius h / sqrt(D) | γ |
| Qin et al. 2019 (LLR) | λ, μ | λ, μ |
| Andriushchenko & Flammarion 2020 | λ | λ |
| Wu et al. 2020 (AWP) | γ | optimizer.adversarial_weights |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from robust_jax import extensions
from robust_jax.config.sizes import SIZES, Sizes

__all__ = ["METHODS", "SIZES", "Sizes", "choose", "compare"]


def _additive(s: Sizes, **options: Any) -> dict[str, Any]:
    return dict(perturbation="additive", norm="linf", radius=s.intensity) | options


def _flow(s: Sizes, **options: Any) -> dict[str, Any]:
    return dict(perturbation="flow", norm="linf", radius=s.pixels) | options


def _half(s: Sizes, p: float) -> float:
    return s.intensity * s.numbers ** (1 / p) / 2


def _ce(c: ConfigDict, at: str = "clean", **options: Any) -> None:
    c.terms.ce = dict(kind="cross_entropy", at=at, weight=1.0) | options


def standard(c: ConfigDict, s: Sizes) -> None:
    """Cross-entropy of the clean images."""
    _ce(c)


def random_flow(c: ConfigDict, s: Sizes) -> None:
    """Random flows alone: the control of FGR."""
    c.points.warped = dict(kind="random", perturbation="flow", sigma=s.pixels)
    _ce(c, "warped")


def igr(c: ConfigDict, s: Sizes) -> None:
    """Input-gradient regularisation (Ross & Doshi-Velez 2018)."""
    _ce(c)
    c.terms.igr = dict(kind="gradient_norm", perturbation="additive", norm="l2", power=2.0, weight=1.0)


def finite_difference(c: ConfigDict, s: Sizes) -> None:
    """The same penalty by finite differences (Finlay & Oberman 2019)."""
    igr(c, s)
    c.terms.igr.method = "finite_difference"
    # A kink of the network between x and x + h v rarely gives a huge gradient, which Adam remembers for 1,000 steps.
    c.optimizer.clip_norm = 1.0


def family(c: ConfigDict, s: Sizes) -> None:
    """The exact dual-norm penalty (Lyu et al. 2015) for linf."""
    _ce(c)
    c.terms.gain = dict(kind="first_order_gain", weight=1.0, **_additive(s))


def family_lp(c: ConfigDict, s: Sizes, p: float) -> None:
    """The exact dual-norm penalty for another p; the radius is half the l_p norm of the linf ball's corners."""
    _ce(c)
    c.terms.gain = dict(kind="first_order_gain", weight=1.0, **_additive(s, norm=p, radius=_half(s, p)))


def family_flow(c: ConfigDict, s: Sizes) -> None:
    """The exact dual-norm penalty over flows."""
    _ce(c)
    c.terms.gain = dict(kind="first_order_gain", weight=1.0, **_flow(s))


def family_affine(c: ConfigDict, s: Sizes) -> None:
    """The exact dual-norm penalty over rotations and shifts."""
    _ce(c)
    c.terms.gain = dict(kind="first_order_gain", perturbation="affine", norm="linf", radius=s.rotation, weight=1.0)


def family_composed(c: ConfigDict, s: Sizes) -> None:
    """The exact dual-norm penalty over flows and intensities at once."""
    _ce(c)
    both = dict(perturbation=("flow", "additive"), norm="linf", radius=(s.pixels, s.intensity))
    c.terms.gain = dict(kind="first_order_gain", weight=1.0, **both)


def linearised(c: ConfigDict, s: Sizes) -> None:
    """Training at x + r (Lyu et al. 2015) for linf: FGSM training."""
    c.points.steepest = dict(kind="steepest", **_additive(s))
    _ce(c, "steepest")


def linearised_l2(c: ConfigDict, s: Sizes) -> None:
    """Training at x + r for p = 2."""
    c.points.steepest = dict(kind="steepest", **_additive(s, norm="l2", radius=_half(s, 2.0)))
    _ce(c, "steepest")


def linearised_flow(c: ConfigDict, s: Sizes) -> None:
    """Training at the steepest flow of an L2 ball, whose radius is the length of 16 pixels moved by the linf radius.

    With a larger radius the few pixels that count move too far: on MNIST the resistance to flows is lost again.
    """
    radius = s.pixels * (2 * 16) ** 0.5
    c.points.steepest = dict(kind="steepest", perturbation="flow", norm="l2", radius=radius)
    _ce(c, "steepest")


def fgr(c: ConfigDict, s: Sizes) -> None:
    """Flow-gradient regularisation with a random start (Xia & Li 2021)."""
    random_flow(c, s)
    c.terms.fgr = dict(kind="gradient_norm", at="warped", perturbation="flow", norm="l2", power=2.0, weight=3.0)


def affine_gradient(c: ConfigDict, s: Sizes) -> None:
    """FGR for rotations and shifts: a random one, and the squared gradient norm in units of the radius."""
    c.points.turned = dict(kind="uniform", perturbation="affine", norm="linf", radius=s.rotation)
    _ce(c, "turned")
    c.terms.penalty = dict(
        kind="gradient_norm", at="turned", perturbation="affine", norm="l2", power=2.0, scale=s.rotation, weight=1.0
    )


def pgd(c: ConfigDict, s: Sizes) -> None:
    """Adversarial training (Madry et al. 2018)."""
    c.points.attacked = dict(kind="attack", steps=s.steps, **_additive(s))
    _ce(c, "attacked")


def fgsm_rs(c: ConfigDict, s: Sizes) -> None:
    """Fast adversarial training: FGSM from a random start (Wong et al. 2020)."""
    c.points.attacked = dict(kind="attack", steps=1, step_size=1.25 * s.intensity, keep="last", **_additive(s))
    _ce(c, "attacked")


def n_fgsm(c: ConfigDict, s: Sizes) -> None:
    """FGSM at images with noise of twice the radius, not projected (de Jorge et al. 2022)."""
    c.points.noisy = dict(kind="steepest", noise=2.0, box=True, **_additive(s))
    _ce(c, "noisy")


def gradalign(c: ConfigDict, s: Sizes) -> None:
    """FGSM training with aligned gradients (Andriushchenko & Flammarion 2020); 0.2 is its λ for CIFAR-10 at 8/255."""
    c.points.attacked = dict(
        kind="attack", steps=1, step_size=s.intensity, random_start=False, keep="last", **_additive(s)
    )
    _ce(c, "attacked")
    c.points.anywhere = dict(kind="uniform", **_additive(s))
    c.terms.align = dict(
        kind="gradient_misalignment", at="clean", other="anywhere", perturbation="additive", weight=0.2
    )


def adt(c: ConfigDict, s: Sizes) -> None:
    """Adversarial deformation training."""
    c.points.attacked = dict(kind="attack", steps=s.steps, **_flow(s))
    _ce(c, "attacked")


def adt_fgr(c: ConfigDict, s: Sizes) -> None:
    """Adversarial deformation training, and the flow gradient at the attacked images."""
    adt(c, s)
    c.terms.fgr = dict(kind="gradient_norm", at="attacked", perturbation="flow", norm="l2", power=2.0, weight=1.0)


def affine_training(c: ConfigDict, s: Sizes) -> None:
    """Adversarial training under rotations and shifts."""
    c.points.attacked = dict(kind="attack", perturbation="affine", norm="linf", radius=s.rotation, steps=s.steps)
    _ce(c, "attacked")


def composed_training(c: ConfigDict, s: Sizes) -> None:
    """Adversarial training under flows and intensities at once."""
    both = dict(perturbation=("flow", "additive"), norm="linf", radius=(s.pixels, s.intensity))
    c.points.attacked = dict(kind="attack", steps=s.steps, **both)
    _ce(c, "attacked")


def trades(c: ConfigDict, s: Sizes) -> None:
    """TRADES (Zhang et al. 2019), β = 1 as on MNIST (6 on CIFAR-10)."""
    c.points.attacked = dict(kind="divergent", steps=s.steps, **_additive(s))
    _ce(c)
    c.terms.kl = dict(kind="kl_divergence", at="attacked", reference="clean", weight=1.0)


def trades_flow(c: ConfigDict, s: Sizes) -> None:
    """TRADES over flows."""
    c.points.attacked = dict(kind="divergent", steps=s.steps, **_flow(s))
    _ce(c)
    c.terms.kl = dict(kind="kl_divergence", at="attacked", reference="clean", weight=1.0)


def mart(c: ConfigDict, s: Sizes) -> None:
    """MART (Wang et al. 2020), λ = 5."""
    c.points.attacked = dict(kind="attack", steps=s.steps, **_additive(s))
    c.terms.bce = dict(kind="boosted_cross_entropy", at="attacked", weight=1.0)
    c.terms.kl = dict(kind="weighted_kl_divergence", at="attacked", reference="clean", weight=5.0)


def awp(c: ConfigDict, s: Sizes) -> None:
    """Adversarial training with adversarial weight perturbation (Wu et al. 2020), γ = 0.01."""
    pgd(c, s)
    c.optimizer.adversarial_weights = 0.01


def lfr(c: ConfigDict, s: Sizes) -> None:
    """Local flatness regularisation (Xu et al. 2020), λ = 0.02."""
    _ce(c)
    c.points.roughest = dict(kind="roughest", steps=s.steps, **_additive(s))
    c.terms.lfr = dict(kind="gradient_norm", at="roughest", perturbation="additive", norm="l1", power=1.0, weight=0.02)


def lfr_flow(c: ConfigDict, s: Sizes) -> None:
    """Local flatness over flows: the L1 norm of the flow gradient at the roughest flow."""
    _ce(c)
    c.points.roughest = dict(kind="roughest", steps=s.steps, **_flow(s))
    c.terms.lfr = dict(kind="gradient_norm", at="roughest", perturbation="flow", norm="l1", power=1.0, weight=0.1)


def cure(c: ConfigDict, s: Sizes) -> None:
    """Curvature regularisation (Moosavi-Dezfooli et al. 2019), h = 1.5."""
    c.points.ahead = dict(kind="steepest", perturbation="additive", norm="linf", radius=1.5 / s.numbers**0.5)
    _ce(c)
    c.terms.cure = dict(
        kind="gradient_difference", other="ahead", perturbation="additive", norm="l2", power=2.0, weight=4.0
    )


def llr(c: ConfigDict, s: Sizes) -> None:
    """Local linearity regularisation (Qin et al. 2019), λ = 4, μ = 3."""
    c.points.bent = dict(kind="nonlinear", steps=s.steps, **_additive(s))
    _ce(c)
    c.terms.gap = dict(kind="linearity_gap", other="bent", perturbation="additive", weight=4.0)
    c.terms.slope = dict(kind="directional_derivative", other="bent", perturbation="additive", weight=3.0)


def universal(c: ConfigDict, s: Sizes) -> None:
    """Universal adversarial training (Shafahi et al. 2020); a step is the whole radius, as our runs are short."""
    radius = s.universal[0]
    c.points.all = dict(kind="universal", step_size=radius, **_additive(s, radius=radius))
    _ce(c, "all")


def universal_flow(c: ConfigDict, s: Sizes) -> None:
    """Universal adversarial training over flows."""
    radius = s.universal[1]
    c.points.all = dict(kind="universal", step_size=radius, **_flow(s, radius=radius))
    _ce(c, "all")


def rat(c: ConfigDict, s: Sizes) -> None:
    """Region adversarial training (Wang et al. 2021): at clean images, and at images moved to other classes."""
    c.points.region = dict(kind="targeted_universal", examples=100, refresh=100, **_additive(s, radius=s.universal[0]))
    _ce(c, weight=0.5)
    c.terms.region = dict(kind="cross_entropy", at="region", weight=0.5)


def rat_deepfool(c: ConfigDict, s: Sizes) -> None:
    """Region adversarial training, with δ the sum of DeepFool's steps."""
    rat(c, s)
    c.points.region.update(search="deepfool", epochs=5)


def rat_flow(c: ConfigDict, s: Sizes) -> None:
    """Region adversarial training over universal flows."""
    c.points.region = dict(kind="targeted_universal", examples=100, refresh=100, **_flow(s, radius=s.universal[1]))
    _ce(c, weight=0.5)
    c.terms.region = dict(kind="cross_entropy", at="region", weight=0.5)


METHODS: dict[str, Callable[[ConfigDict, Sizes], None]] = {f.__name__: f for f in (
    standard, random_flow, igr, finite_difference, family, family_flow, family_affine, family_composed,
    linearised, linearised_l2, linearised_flow, fgr, affine_gradient, pgd, fgsm_rs, n_fgsm, gradalign, adt, adt_fgr,
    affine_training, composed_training, trades, trades_flow, mart, awp, lfr, lfr_flow, cure, llr, universal,
    universal_flow, rat, rat_deepfool, rat_flow,
)}  # fmt: skip
METHODS |= {f"family_l{p:g}": partial(family_lp, p=p) for p in (1.0, 1.5, 2.0, 3.0)}


def choose(c: ConfigDict, method: str, sizes: Sizes) -> None:
    """Gives a config the points and terms of a method.

    Raises:
      ValueError: an unknown method.
    """
    extensions.choose("method", method, METHODS)
    METHODS[method](c, sizes)


def compare(c: ConfigDict, sizes: Sizes, **options: Any) -> None:
    """Gives a config PGD over intensities, flows, rotations with shifts, and a composition, as its only attacks.

    The composition has half of both radii: at the whole of both standard training has no accuracy left. Signs of masked
    gradients and pictures are left out, as there are many methods; for a single one give evaluate
    ``--config.evaluation.checks=64 --config.evaluation.pictures=10``.
    """
    c.evaluation.checks = c.evaluation.pictures = 0
    c.attacks = {}
    strong = dict(kind="pgd", norm="linf") | options
    c.attacks.additive = strong | dict(perturbation="additive", radius=sizes.intensity)
    c.attacks.flow = strong | dict(perturbation="flow", radius=sizes.pixels)
    c.attacks.affine = strong | dict(perturbation="affine", radius=sizes.rotation)
    both = dict(perturbation=("flow", "additive"), radius=(sizes.pixels / 2, sizes.intensity / 2))
    c.attacks.composed = strong | both
