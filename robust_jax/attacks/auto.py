"""AutoAttack over any threat model: several attacks in turn, each on what the others left (Croce & Hein 2020)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses, norms
from robust_jax.attacks.apgd import apgd, apgd_dlr, apgd_targeted
from robust_jax.attacks.fab import fab, fab_targeted
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.attacks.square import square
from robust_jax.attacks.wrappers import expectation
from robust_jax.checks import check_batch, choose
from robust_jax.perturbations import Images, example_keys, fold_keys
from robust_jax.threat_models import ThreatModel

VERSIONS = ("standard", "plus", "rand")
DRAWS = 20


def auto_attack(
    logits_fn: Callable[..., Float[Array, "b k"]],
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    version: str = "standard",
    steps: int = 100,
    queries: int = 5000,
) -> AttackResult:
    """An example is robust where none of several attacks breaks it; what one has broken the next leave alone.

    - standard: `apgd` on cross-entropy, `apgd_targeted` and `fab_targeted` towards 9 classes, `square`; for l1, as
      Croce & Hein 2021, 5 restarts of the first and 5 classes of the second.
    - plus: `apgd` and `apgd_dlr` with 5 restarts, `fab` with 5, `square`, `apgd_targeted`, `fab_targeted`.
    - rand, for models with randomness: `apgd` and `apgd_dlr` on the `expectation` over 20 draws. There
      ``logits_fn`` takes ``(images, key)``, and is called with one image and key at a time under ``jax.vmap``. An
      image's draws stay the same, and success is the mean's: judge the result with others.

    All parts have a meaning for every threat model; over affine maps `square` is a random search. With two classes,
    where DLR has none, the margin takes its place. Other than in the authors' code the l1 ball is not entered from
    larger ones, FAB's ball is that of the threat, and Square's schedule is stretched over its queries.

    Parts go on with the unbroken examples alone, some at a time; with "rand" with all, as long as one is unbroken. The
    standard version takes at most 1,900 gradients of an image, and 5,900 forward passes more.

    Args:
      logits_fn: any JAX function of images, of any number of them; with "rand" of ``(images, key)``.
      images: in [0, 1].
      labels: the true labels.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``.
      version: "standard", "plus" or "rand".
      steps: of each run of APGD and FAB.
      queries: of Square.

    Returns:
      What broke each example first; δ = 0 and the clean image where nothing did, or where it was misclassified.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), an unknown
        version or an impossible option.
    """
    choose("version", version, VERSIONS)
    keys = example_keys(key, len(images))

    def model(keys: Array) -> LogitsFn:
        return expectation(logits_fn, keys, DRAWS) if version == "rand" else logits_fn

    check_batch(images, labels, model(keys), threat)
    logits = model(keys)(images)
    # A label that the clean image does not get: an attack takes it for broken and leaves it.
    other = (logits.argmax(-1) + 1) % logits.shape[-1]
    best = AttackResult(images, threat.perturbation.zeros(images), losses.misclassified(logits, labels))
    for number, part in enumerate(parts(version, threat, logits.shape[-1], steps, queries)):
        left = jnp.where(best.success, other, labels)
        found = part(model(keys), images, left, threat, key=fold_keys(keys, number))
        best = norms.where(found.success & ~best.success, found, best)
    return best


def parts(
    version: str, threat: ThreatModel, classes: int, steps: int, queries: int
) -> list[Callable[..., AttackResult]]:
    """The attacks of a version, in their order, with the options that it gives them."""
    sparse = not threat.perturbation.parts and norms.exponent(threat.norm) == 1
    on_entropy, on_margin = (
        partial(apgd, steps=steps, loss=f, early_stop=True) for f in (losses.cross_entropy, losses.margin)
    )
    dlr = partial(apgd_dlr, steps=steps, early_stop=True) if classes > 2 else on_margin
    towards = partial(apgd_targeted, steps=steps, candidates=5 if sparse else 9) if classes > 2 else on_margin
    towards_with_fab, last = partial(fab_targeted, steps=steps), partial(square, queries=queries)
    if version == "standard":
        return [partial(on_entropy, restarts=5 if sparse else 1), towards, towards_with_fab, last]
    if version == "plus":
        five = [partial(f, restarts=5) for f in (on_entropy, dlr, partial(fab, steps=steps))]
        return [*five, last, towards, towards_with_fab]
    return [on_entropy, dlr]
