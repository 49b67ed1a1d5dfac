"""AutoAttack over any threat model: several attacks in turn, each on what the others left (Croce & Hein 2020)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks import compiled
from robust_jax.attacks.apgd import apgd, apgd_dlr, apgd_targeted
from robust_jax.attacks.apgd_steps import is_sparse
from robust_jax.attacks.define import Cost, Problem, attack, cost_of
from robust_jax.attacks.fab import fab, fab_targeted
from robust_jax.attacks.result import AttackResult, LogitsFn
from robust_jax.attacks.square import square
from robust_jax.attacks.wrappers import expectation
from robust_jax.checks import check_batch, check_images, checked_logits
from robust_jax.options import Count
from robust_jax.spaces import per_example
from robust_jax.spaces.checks import check_threat
from robust_jax.spaces.per_example import example_keys, fold_keys
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

Version = Literal["standard", "plus", "rand"]
DRAWS = 20  # of the model, with "rand"
SCHEDULE = 10_000  # the queries of Square's schedule, most of which are not made


def _cost(o: SimpleNamespace, problem: Problem) -> Cost:
    """That of all parts, and of one forward pass of the clean images."""
    found = parts(o.version, problem.threat, problem.classes, o.steps, o.queries)
    costs = [cost_of(part.func, part.keywords, problem) for part in found]
    draws = DRAWS if o.version == "rand" else 1
    forwards, gradients = (sum(getattr(cost, name) for cost in costs) for name in Cost._fields)
    return Cost(draws * (1 + forwards), draws * gradients)


def _check(
    logits_fn: Any, images: Any, labels: Any, threat: Any, *, key: Any, version: Version = "standard", **_: Any
) -> None:
    """Raises ValueError unless images, labels, model, key and threat model fit together."""
    check_images(images)
    checked_logits(logits_fn)  # of functions of more than images only that they are functions
    keys = example_keys(key, len(images))
    _check_arguments(logits_fn, version, images, keys)
    model = checked_logits(_model(logits_fn, version, keys))
    check_batch(images, labels, model if version == "rand" else compiled.shape_only(logits_fn, model))
    check_threat(threat, images)


def _model(logits_fn: Callable[..., Any], version: Version, keys: Array) -> LogitsFn:
    """The function of images that is attacked."""
    if version != "rand":
        return checked_logits(logits_fn)
    own = fold_keys(keys, 2**31 - 1)  # not those of the attacks, which are folded with their numbers
    return checked_logits(expectation(logits_fn, own, DRAWS))


@attack(family="combined", cost=_cost, checks_batch=_check)
def auto_attack(
    logits_fn: Callable[..., Float[Array, "b k"]],
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    version: Version = "standard",
    steps: Count = 100,
    queries: Count = 5000,
) -> AttackResult:
    """Runs several attacks, each on the examples that the ones before it did not break.

    - standard: `apgd` on cross-entropy, `apgd_targeted` and `fab_targeted` towards 9 classes, `square`; for l1, as in
      Croce & Hein 2021, 5 restarts of the first and 5 classes of the second, both through larger balls (see `apgd`).
    - plus: `apgd` and `apgd_dlr` with 5 restarts, `fab` with 5, `square`, `apgd_targeted`, `fab_targeted`.
    - rand, for models with randomness: `apgd` and `apgd_dlr` on the `expectation` over 20 draws. Then ``logits_fn``
      takes ``(images, key)``, and is called with one image and one key at a time under ``jax.vmap``. The draws of an
      image stay the same, and success is judged by their mean: evaluate the result with other draws.

    All parts support every threat model; over affine maps every other query of `square` is a random point. With two
    classes, for which DLR is not defined, the margin takes its place. As in the authors' code, Square's schedule is
    that of 10,000 queries for any number of queries. Unlike there, l1 takes larger balls in "plus" and "rand" too, and
    FAB's ball is that of the threat model.

    Each part computes only the examples that are not broken yet, a chunk at a time; with "rand" it computes the whole
    batch as long as one of them is left. The standard version takes at most 1,900 gradients per image, in l1
    1,920, and about 5,900 forward passes more.

    Args:
      logits_fn: any JAX function of any number of images; with "rand" of ``(images, key)``.
      images: in [0, 1].
      labels: the true labels.
      threat: perturbation, norm and radius.
      key: one key, or one per example ``[B]``.
      version: "standard", "plus" or "rand".
      steps: of each run of APGD and FAB.
      queries: of Square.

    Returns:
      The first point that broke each example; δ = 0 and the clean image if none did, or if it is misclassified.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), an
        option out of its range, or a ``logits_fn`` that does not take the arguments above.
    """
    keys = example_keys(key, len(images))
    model = _model(logits_fn, version, keys)
    logits = model(images)
    # Parts leave an example alone if its label is a class that the clean image is not given.
    other = (logits.argmax(-1) + 1) % logits.shape[-1]
    best = AttackResult(images, threat.perturbation.zeros(images), losses.misclassified(logits, labels))
    for number, part in enumerate(parts(version, threat, logits.shape[-1], steps, queries)):
        left = jnp.where(best.success, other, labels)
        found = part(model, images, left, threat, key=fold_keys(keys, number))
        best = per_example.where(found.success & ~best.success, found, best)
    return best


def _check_arguments(logits_fn: Callable[..., Any], version: Version, images: Images, keys: Array) -> None:
    """Raises ValueError for a model that does not take the arguments with which the version calls it."""
    given = (images, keys) if version == "rand" else (images,)
    try:
        inspect.signature(logits_fn).bind(*given)
    except TypeError as error:
        raise ValueError(
            f"auto_attack: version={version!r} calls logits_fn{'(images, key)' if version == 'rand' else '(images)'}, "
            f"but the function does not take that ({error}): 'rand' is for models that draw with a key, 'standard' and "
            f"'plus' for functions of images alone."
        ) from error
    except ValueError:  # no signature, as of some functions in C
        return


def parts(version: Version, threat: ThreatModel, classes: int, steps: int, queries: int) -> list[partial[AttackResult]]:
    """The attacks of a version, in their order, with the options that they get."""
    few = version == "standard" and is_sparse(threat)
    on_entropy, on_margin = (
        partial(apgd, steps=steps, loss=f, early_stop=True) for f in (losses.cross_entropy, losses.margin)
    )
    dlr = partial(apgd_dlr, steps=steps, early_stop=True) if classes > 2 else on_margin
    towards = partial(apgd_targeted, steps=steps, candidates=5 if few else 9) if classes > 2 else on_margin
    boundary, towards_boundary = (partial(f, steps=steps, early_stop=True) for f in (fab, fab_targeted))
    last = partial(square, queries=queries, schedule=SCHEDULE)
    if version == "standard":
        return [partial(on_entropy, restarts=5 if few else 1), towards, towards_boundary, last]
    if version == "plus":
        five = [partial(f, restarts=5) for f in (on_entropy, dlr, boundary)]
        return [*five, last, towards, towards_boundary]
    return [on_entropy, dlr]
