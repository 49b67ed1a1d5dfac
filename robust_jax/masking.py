"""Signs of masked gradients: of models that attacks fail against without their being robust (Athalye et al. 2018).

`compare` reads them off attacks that have run, on all examples; `probe` looks at a model and tries more on a few.
Each sign is a warning ``"NAME: what was seen"``:

    random_logits      two calls differ
    jumping_logits     a change of the input by 1e-6 changes the logits
    probabilities      logits are in [0, 1] and sum to 1
    no_gradient        the model cannot be differentiated
    nan_gradient, zero_gradient    at many images
    saturated_loss     cross-entropy's gradient is 0 at many images, that of the margin is not
    huge_radius        additive PGD fails within the whole box
    one_step           FGSM breaks more than an iterative attack
    more_steps         twice the steps break more
    black_box          an attack without gradients of the model breaks more than all with

after the lists of Athalye et al. (2018, section 3.1), Carlini et al. (2019, section 5) and AutoAttack's own checks. Two
attacks are compared on the same examples, by McNemar's test: a lead within two standard deviations is noise. No sign
proves masking, and none of them its absence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from robust_jax import attacks, losses
from robust_jax.attacks.wrappers import as_pytree
from robust_jax.perturbations import Images
from robust_jax.robustness import Attack, Outcome, PerExample, robustness
from robust_jax.threat_models import ThreatModel

TRANSFER = "transfer"  # any attack on another model
BLACK_BOX = ("gaussian_noise", "grid", "nes", "pointwise", "random_search", "spsa", "square", "uniform_noise", TRANSFER)
ASCENTS = ("apgd", "apgd_dlr", "pgd")
WHITE_BOX = (*ASCENTS, "apgd_targeted", "carlini_wagner", "fab", "fab_targeted")  # not those that stop at the first try

MANY = 0.1  # of the images
TINY = 1e-6
STEPS, QUERIES = 20, 200  # of the attacks that `probe` adds


def lead(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> int:
    """How many examples more the first breaks, 0 if that may be noise (McNemar 1947: two standard deviations)."""
    more, less = int((one & ~other).sum()), int((other & ~one).sum())
    return more - less if more - less > 2 * (more + less) ** 0.5 else 0


def compare(measured: PerExample) -> list[str]:
    """What attacks that ran say about each other, in the same threat model: ``black_box`` and ``one_step``.

    Few parameters, such as affine maps, are no sign: there attacks without gradients are known to be the stronger.
    """
    warnings = []
    groups: dict[Any, dict[str, Outcome]] = {}
    for name, outcome in measured.attacks.items():
        if outcome.after is not None:
            continue  # it did not see what the others broke
        groups.setdefault(_ball(outcome.attack.threat), {})[name] = outcome
    for group in groups.values():
        kinds = {name: _kind(outcome) for name, outcome in group.items() if _many(outcome.attack.threat)}
        white = [name for name, kind in kinds.items() if kind in WHITE_BOX]
        if not white:
            continue
        broken = np.any([group[name].broken for name in white], 0)
        for name, kind in kinds.items():
            if kind in BLACK_BOX and (n := lead(group[name].broken, broken)):
                warnings.append(_black_box(name, n, " and ".join(white)))
            if kind == "fgsm":
                warnings += [_one_step(name, n, w) for w in white if (n := lead(group[name].broken, group[w].broken))]
    return warnings


def _black_box(name: str, n: int, white: str) -> str:
    return (
        f"black_box: {name}, without gradients of the model, breaks {n} images more than {white}: gradients are "
        f"masked, or {white} too weak (another loss or more steps may tell)"
    )


def _one_step(name: str, n: int, white: str) -> str:
    return f"one_step: {name} breaks {n} images more than {white}: gradients are masked, or its steps are too large"


def _ball(threat: ThreatModel) -> tuple[Any, ...]:
    radii = tuple(tuple(np.ravel(r).tolist()) for r in jax.tree.leaves(threat.radius))
    return threat.perturbation, threat.norm, radii


def _many(threat: ThreatModel) -> bool:
    """Whether δ has more than a few entries."""
    delta = jax.eval_shape(threat.perturbation.zeros, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(delta)) > 16


def _kind(outcome: Outcome) -> str:
    return TRANSFER if outcome.attack.source else outcome.attack.all_settings()["attack"]


def probe(
    logits_fn: Callable[[Images], Float[Array, "b k"]],
    images: Images,
    labels: Int[Array, " b"],
    measured: PerExample,
    *,
    key: Key[Array, ""],
) -> list[str]:
    """All signs but what `compare` finds, on a few images, by a few attacks of 20 steps and 200 queries.

    Args:
      logits_fn: images in [0, 1] to logits, as in `robustness`.
      images: some dozens.
      labels: the true labels.
      measured: what attacks did to these images, the first of its examples. Every ball that PGD or APGD ran in and
        left some of them is tried again with FGSM, twice the steps, and Square where no attack without gradients ran.
      key: one typed key.

    Returns:
      The warnings.
    """
    images = jnp.asarray(images)
    warnings = logits_signs(logits_fn, images)
    found = gradient_signs(logits_fn, images, labels)
    if any(w.startswith("no_gradient") for w in found):
        return warnings + found
    return warnings + found + attack_signs(logits_fn, images, labels, measured, key=key)


def logits_signs(logits_fn: Callable[[Images], Float[Array, "b k"]], images: Images) -> list[str]:
    """Of the logits alone: random, jumping, probabilities."""
    model = as_pytree(logits_fn)

    def run(x: Array) -> np.ndarray:
        return np.asarray(_logits(model, x))

    first = run(images)
    scale = np.abs(first[np.isfinite(first)]).max(initial=1e-30)

    def changed(logits: np.ndarray, share: float = 1e-3) -> int:
        far = np.abs(logits - first) > share * scale
        return int((far & np.isfinite(logits) & np.isfinite(first)).any(-1).sum())

    warnings = []
    # What Python draws while tracing differs in another trace only.
    retraced = np.asarray(jax.jit(lambda model, x: model(x))(model, images))
    if n := max(changed(run(images)), changed(retraced)):
        warnings.append(
            f"random_logits: two calls differ at {n} of {len(first)} images: average them (attacks.expectation) and "
            f"attack the mean"
        )
    else:
        inward = jnp.where(images > 0.5, -TINY, TINY)
        # 5%: bfloat16 alone can explain 1%.
        if n := changed(run(images + inward), 0.05):
            warnings.append(
                f"jumping_logits: a change of {TINY:g} in the input changes the logits of {n} of {len(first)} images: "
                f"a random or quantised input, whose gradients say little"
            )
    if (first >= 0).all() and (first <= 1).all() and np.allclose(first.sum(-1), 1, atol=1e-3):
        warnings.append("probabilities: the logits are in [0, 1] and sum to 1: attack what goes into the softmax")
    return warnings


@jax.jit
def _logits(model: Any, images: Array) -> Array:
    return model(images)


@jax.jit
def _slopes(model: Any, images: Array, labels: Array) -> tuple[Array, Array]:
    """The largest input derivative of cross-entropy and of the margin, an image."""

    def both(x: Array) -> tuple[Array, Array]:
        logits = model(x)
        return losses.cross_entropy(logits, labels), losses.margin(logits, labels)

    values, pull = jax.vjp(both, images)
    ones, zeros = jnp.ones_like(values[0]), jnp.zeros_like(values[0])
    of_loss, of_margin = (jnp.abs(pull(row)[0]).max((1, 2, 3)) for row in ((ones, zeros), (zeros, ones)))
    return of_loss, of_margin


def gradient_signs(
    logits_fn: Callable[[Images], Float[Array, "b k"]], images: Images, labels: Int[Array, " b"]
) -> list[str]:
    """Of the input gradients at the clean images: none, NaN, zero, saturated."""
    try:
        of_loss, of_margin = (np.asarray(slope) for slope in _slopes(as_pytree(logits_fn), images, labels))
    except (NotImplementedError, TypeError, ValueError) as error:
        return [
            f"no_gradient: the model cannot be differentiated ({str(error).splitlines()[0]}): attacks had values only, "
            f"and numbers are upper bounds; attacks.bpda gives it a gradient"
        ]
    n, warnings = len(images), []
    lost, flat = ~np.isfinite(of_loss + of_margin), of_margin == 0
    saturated = (of_loss == 0) & ~flat
    for name, where, what in (
        ("nan_gradient", lost, "the input gradient is NaN or infinite"),
        ("zero_gradient", flat, "the logits' input gradient is exactly 0"),
        ("saturated_loss", saturated, "cross-entropy's input gradient is exactly 0, the margin's is not"),
    ):
        if where.sum() > MANY * n:
            advice = ": use loss=margin or dlr" if name == "saturated_loss" else ": gradient attacks are blind there"
            warnings.append(f"{name}: at {where.sum()} of {n} images {what}{advice}")
    return warnings


def attack_signs(
    logits_fn: Callable[[Images], Float[Array, "b k"]],
    images: Images,
    labels: Int[Array, " b"],
    measured: PerExample,
    *,
    key: Key[Array, ""],
) -> list[str]:
    """Of what more attacks break: huge_radius, one_step, more_steps, black_box."""
    known = measured.attacks
    ascents = {name: o for name, o in known.items() if _kind(o) in ASCENTS and not o.broken[: len(images)].all()}
    with_black_box = {_ball(o.attack.threat) for o in known.values() if _kind(o) in BLACK_BOX}
    more: dict[str, Attack] = {"huge": Attack(attacks.pgd, ThreatModel("additive", "linf", 1.0), {"steps": STEPS})}
    for name, o in ascents.items():
        threat, settings = o.attack.threat, o.attack.all_settings()
        more[f"{name}, FGSM"] = Attack(attacks.fgsm, threat)
        more[f"{name}, twice"] = Attack(
            o.attack.function, threat, dict(o.attack.settings) | {"steps": 2 * settings["steps"]}
        )
        if _many(threat) and _ball(threat) not in with_black_box:
            more[f"{name}, Square"] = Attack(attacks.square, threat, {"queries": QUERIES})
    ids = measured.id[: len(images)]
    found = robustness(logits_fn, [{"image": images, "label": labels, "id": ids}], more, key=key).attacks

    warnings = []
    if (left := int((~found["huge"].broken).sum())) > max(2, 0.05 * len(images)):
        warnings.append(
            f"huge_radius: {left} of {len(images)} images withstand PGD within the whole box, where every image can "
            f"be reached: gradients are masked"
        )
    here: Mapping[str, np.ndarray] = {name: o.broken[: len(images)] for name, o in ascents.items()}
    for name, broken in here.items():
        if n := lead(found[f"{name}, FGSM"].broken, broken):
            warnings.append(_one_step("FGSM", n, name))
        if n := lead(found[f"{name}, twice"].broken, broken):
            warnings.append(f"more_steps: twice the steps break {n} of {len(images)} images more than {name}: use more")
        if f"{name}, Square" in found and (n := lead(found[f"{name}, Square"].broken, broken)):
            warnings.append(_black_box(f"Square ({QUERIES} queries)", n, name))
    return warnings
