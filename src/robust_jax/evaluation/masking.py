"""Signs of masked gradients: attacks fail against the model although it is not robust (Athalye et al. 2018).

`compare` finds signs in what attacks that have run did to all examples, `glance` in the model's logits and gradients at
a few images, and `probe` runs more attacks on a few images. Each sign is one function in `robust_jax.evaluation.signs`,
and `signs` lists them; a sign of your own is named ``"module:name"`` in ``config.evaluation.signs``, see
`robust_jax.evaluation.signs.define`.

The signs follow the lists of Athalye et al. (2018, section 3.1), Carlini et al. (2019, section 5) and AutoAttack's own
checks. Two attacks are compared on the same examples by McNemar's exact test, and what a few images show is a sign if
more than 5% of all images must be affected, by an exact binomial test. No sign proves that gradients are masked, and
the absence of all does not prove that they are not. docs/masking.md lists what is found in planted defences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import extensions
from robust_jax.checks import checked_logits
from robust_jax.evaluation import signs as package
from robust_jax.evaluation.batching import as_many_as_fit
from robust_jax.evaluation.outcomes import PerExample
from robust_jax.evaluation.signs.define import NEEDS, Look, Sign, sign
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces.perturbations import Images

__all__ = ["Look", "Sign", "compare", "find", "glance", "probe", "sign", "signs"]

GLANCE = ("logits", "gradients")


@functools.cache
def signs() -> dict[str, Sign]:
    """The built-in signs by name, in the order in which they are looked for: those that cost the least come first.

    Example::

        for name, sign in masking.signs().items():
            print(f"{name}: {sign.__doc__}")
    """
    found = extensions.collect(package.__name__, package.__path__, lambda value: hasattr(value, "needs"))
    order = sorted(found.values(), key=lambda s: (NEEDS.index(s.needs), s.__module__, s.__code__.co_firstlineno))
    return {s.__name__: s for s in order}


def find(names: Iterable[str]) -> list[Sign]:
    """The user's own signs by their names ``"module:name"``.

    Raises:
      ValueError: another form, a module that cannot be imported, or a function that is not decorated as a sign.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"evaluation.signs={names!r}: give a tuple of names, such as ('my_signs:mine',).")
    found = []
    for name in names:
        function = extensions.find("evaluation.signs", name, signs())
        if not hasattr(function, "needs"):
            raise ValueError(
                f"evaluation.signs={name!r} is no sign of masked gradients: decorate the function with "
                f"robust_jax.evaluation.masking.sign, which takes one of {list(NEEDS)}."
            )
        found.append(function)
    return found


def compare(measured: PerExample, own: Sequence[Sign] = ()) -> list[str]:
    """The signs that need only outcomes: what attacks that ran say about each other, in the same threat model.

    A threat model with few parameters, such as affine maps, gives no sign: attacks without gradients are known to be
    the stronger ones there.

    Args:
      measured: the result of `robustness`.
      own: signs besides the built-in ones.

    Returns:
      The warnings.
    """
    look = Look(measured)
    return [warning for one in _needing(("outcomes",), own) for warning in one(look)]


def glance(measured: PerExample, own: Sequence[Sign] = ()) -> list[str]:
    """The signs in logits and input gradients: a few passes of the model on the first images measured.

    Args:
      measured: the result of `robustness`.
      own: signs besides the built-in ones.

    Returns:
      The warnings; none without a model, or for one that does not take these few images.
    """
    few = measured.images
    if few is None or not len(few):
        return []

    def found(count: int) -> list[str]:
        images, labels = jnp.asarray(few[:count]), jnp.asarray(measured.label[:count])
        look = Look(measured, measured.logits_fn, images, labels)
        try:
            look.logits  # noqa: B018
        except (TypeError, ValueError):
            return []
        return [warning for one in _needing(GLANCE, own) for warning in one(look)]

    with jax.default_matmul_precision(measured.precision):
        return as_many_as_fit(found, len(few))[0]


@checks_arguments
def probe(
    logits_fn: Callable[[Images], Float[Array, "b k"]],
    images: Images,
    labels: Int[Array, " b"],
    measured: PerExample,
    *,
    key: Key[Array, ""],
    own: Sequence[Sign] = (),
    needs: Sequence[str] = NEEDS[1:],
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """All signs but those of `compare`, on a few images, by attacks of at most 20 steps, 200 queries or twice the steps
    that ran.

    Args:
      logits_fn: images in [0, 1] to logits, as in `robustness`.
      images: some dozens.
      labels: the true labels.
      measured: the result of `robustness` on examples of which these images are the first. Every ball in which an
        ascent such as PGD or APGD ran and left some of the images is tried again with FGSM, with twice the steps, and
        with Square if no attack without gradients ran there; every ball that was searched with gradients, with a
        short APGD on the margin and towards other classes.
      key: one typed key.
      own: signs besides the built-in ones.
      needs: which of `NEEDS` to look for. `robust_jax.evaluation.summarise` has looked for those of `glance`.
      progress: called with the name of each sign before it is looked for.

    Returns:
      The warnings.
    """
    for need in needs:
        extensions.choose("probe: needs", need, NEEDS)
    look = Look(measured, checked_logits(logits_fn), jnp.asarray(images), labels, key)
    warnings = []
    with jax.default_matmul_precision(measured.precision):
        for one in _needing(needs, own):
            # More attacks would only repeat that there is no gradient.
            if one.needs != "attacks" or look.gradient_error is None:  # type: ignore[attr-defined]
                if progress:
                    progress(one.__name__)
                warnings += one(look)
    return warnings


def _needing(needs: Sequence[str], own: Sequence[Sign]) -> list[Sign]:
    """The built-in signs and one's own of some needs, each once and in the order of the needs."""
    known = dict.fromkeys([*signs().values(), *own])
    return sorted((s for s in known if s.needs in needs), key=lambda s: NEEDS.index(s.needs))  # type: ignore[attr-defined]
