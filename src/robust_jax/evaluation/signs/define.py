"""How a sign of masked gradients is defined: one decorated function, which says what it sees.

Example, in a file of its own, which a config names by ``c.evaluation.signs = ("my_signs:constant",)``::

    @sign("logits")
    def constant(look):
        same = (look.logits == look.logits[0]).all()
        return ["constant: all images have the same logits"] if same else []
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from robust_jax import losses
from robust_jax.attacks.compiled import as_argument
from robust_jax.attacks.define import about
from robust_jax.evaluation.attack import Attack
from robust_jax.evaluation.outcomes import Outcome, PerExample
from robust_jax.evaluation.robustness import robustness
from robust_jax.evaluation.statistics import exceeds
from robust_jax.extensions import choose
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

TINY = 1e-6  # a change of the input that should change nothing
TOLERATED = 0.05
"""The share of images at which an honest model may look masked: a few images are no sign, see `is_many`."""

STEP, RANDOM_STEPS = 0.01, 3  # a gradient that says nothing is better than all random steps at a quarter of the images

Sign = Callable[["Look"], list[str]]
Function = TypeVar("Function", bound=Sign)

NEEDS = ("outcomes", "logits", "gradients", "attacks")
"""What a sign may need, in the order in which signs are looked for.

- outcomes: what attacks did that have run already, ``look.measured``, on all examples. There is no model to look at.
- logits: forward passes on a few images.
- gradients: input gradients at a few images.
- attacks: more attacks on a few images, see `Look.run`. They are left out if the model cannot be differentiated.
"""


def sign(needs: Literal["outcomes", "logits", "gradients", "attacks"]) -> Callable[[Function], Function]:
    """Makes a function ``(look: Look) -> warnings`` a sign of masked gradients.

    Args:
      needs: one of `NEEDS`.

    Returns:
      The decorator. The function returns its warnings, each ``"NAME: what was seen, and what to do"``; usually none.
    """
    choose("sign: needs", needs, NEEDS)

    def decorate(function: Function) -> Function:
        function.needs = needs  # type: ignore[attr-defined]
        return function

    return decorate


@dataclasses.dataclass(frozen=True)
class Look:
    """What signs look at; results that several signs share are computed once.

    Attributes:
      measured: what attacks did to all examples.
      logits_fn: images ``[B, H, W, C]`` in [0, 1] to logits ``[B, K]``; like all that follows it is None for signs that
        need outcomes only.
      images: ``[B, H, W, C]`` in [0, 1], some dozens: the first of the examples measured.
      labels: ``[B]``, the true classes.
      key: one typed key.
    """

    measured: PerExample
    logits_fn: Any = None
    images: Any = None
    labels: Any = None
    key: Any = None

    @cached_property
    def model(self) -> Any:
        """The logits_fn as an argument of jitted functions."""
        return as_argument(self.logits_fn)

    def logits_of(self, images: Images) -> Float[np.ndarray, "b k"]:
        """The logits of any images, compiled once."""
        return np.asarray(_logits(self.model, images))

    @cached_property
    def logits(self) -> Float[np.ndarray, "b k"]:
        """The logits of the clean images."""
        return self.logits_of(self.images)

    @cached_property
    def random_images(self) -> int:
        """The number of images at which a second call, or a second compilation, returns other logits."""
        _, again = self.logits, self.logits_of(self.images)  # in this order
        # Numbers that Python draws while tracing differ only in another trace.
        retraced = np.asarray(jax.jit(lambda model, x: model(x))(self.model, self.images))
        return max(self.changed(again), self.changed(retraced))

    def changed(self, logits: Float[np.ndarray, "b k"], share: float = 1e-3) -> int:
        """The number of images whose finite logits differ from the first call's by a share of the largest logit."""
        return int(self.differs(logits, share).sum())

    def differs(self, logits: Float[np.ndarray, "b k"], share: float = 1e-3) -> Bool[np.ndarray, " b"]:
        """The images whose finite logits differ from the first call's by a share of the largest logit."""
        first = self.logits
        scale = np.abs(first[np.isfinite(first)]).max(initial=1e-30)
        far = np.abs(logits - first) > share * scale
        return (far & np.isfinite(logits) & np.isfinite(first)).any(-1)

    @cached_property
    def nudged(self) -> Float[np.ndarray, "b k"]:
        """The logits of the images changed by `TINY`."""
        return self.logits_of(self.images + jnp.where(self.images > 0.5, -TINY, TINY))

    @cached_property
    def noise(self) -> float:
        """The largest change of a finite logit by `TINY`, as a share of the largest logit."""
        first = self.logits
        both = np.isfinite(first) & np.isfinite(self.nudged)
        scale = np.abs(first[np.isfinite(first)]).max(initial=1e-30)
        return float(np.abs(self.nudged - first)[both].max(initial=0) / scale)

    @cached_property
    def _slopes(self) -> tuple[np.ndarray, np.ndarray] | Exception:
        try:
            of_loss, of_margin = _slopes(self.model, self.images, self.labels)
        except (NotImplementedError, TypeError, ValueError) as error:
            return error
        return np.asarray(of_loss), np.asarray(of_margin)

    @property
    def gradient_error(self) -> Exception | None:
        """Why the model cannot be differentiated; None if it can."""
        return self._slopes if isinstance(self._slopes, Exception) else None

    @property
    def slopes(self) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """The largest input derivative per image, of the cross-entropy and of the margin; NaN if there is none."""
        if isinstance(self._slopes, Exception):
            nothing = np.full(len(self.images), np.nan)
            return nothing, nothing
        return self._slopes

    @property
    def ascents(self) -> dict[str, Outcome]:
        """The attacks measured that climb a loss for ``steps`` steps and left some of the images unbroken, by name."""
        known = self.measured.attacks.items()
        return {name: o for name, o in known if family(o) == "ascent" and not self.broken(o).all()}

    def broken(self, outcome: Outcome) -> Bool[np.ndarray, " b"]:
        """Which of the images an attack measured has broken."""
        return outcome.broken[: len(self.images)]

    @cached_property
    def misled(self) -> Bool[np.ndarray, " b"]:
        """Where a small step along the sign of the margin's gradient raises the margin no more than random ones do."""
        raised, at_random = _rises(self.model, self.images, self.labels)
        return np.asarray(raised <= at_random.max(0))

    def run(self, attacks: Mapping[str, Attack]) -> dict[str, Bool[np.ndarray, " b"]]:
        """Runs more attacks on the images: NAME -> which are broken. The name chooses the random numbers."""
        batch = {"image": self.images, "label": self.labels, "id": self.measured.id[: len(self.images)]}
        found = robustness(self.logits_fn, [batch], attacks, key=self.key, precision=self.measured.precision).attacks
        return {name: outcome.broken for name, outcome in found.items()}


@jax.jit
def _logits(model: Any, images: Array) -> Array:
    return model(images)


@jax.jit
def _slopes(model: Any, images: Images, labels: Int[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The largest input derivative per image, of the cross-entropy and of the margin."""

    def both(x: Array) -> tuple[Array, Array]:
        logits = model(x)
        return losses.cross_entropy(logits, labels), losses.margin(logits, labels)

    values, pull = jax.vjp(both, images)
    ones, zeros = jnp.ones_like(values[0]), jnp.zeros_like(values[0])
    of_loss, of_margin = (jnp.abs(pull(row)[0]).max((1, 2, 3)) for row in ((ones, zeros), (zeros, ones)))
    return of_loss, of_margin


@jax.jit
def _rises(model: Any, images: Images, labels: Int[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, "r b"]]:
    """How much the margin rises by a step along the sign of its gradient, and by steps of random signs."""

    def margin(x: Array) -> Array:
        return losses.margin(model(x), labels)

    before, pull = jax.vjp(margin, images)
    steps = jax.random.rademacher(jax.random.key(0), (RANDOM_STEPS, *images.shape), images.dtype)
    along = jnp.sign(pull(jnp.ones_like(before))[0])[None]
    # One at a time: memory for one batch. As in an attack, a step ends at the box.
    after = jax.lax.map(lambda step: margin(jnp.clip(images + STEP * step, 0, 1)), jnp.concatenate([along, steps]))
    return after[0] - before, after[1:] - before


def is_many(where: Bool[np.ndarray, " b"]) -> bool:
    """Whether more images are affected than the `TOLERATED` share explains, by an exact binomial test.

    At a level of 2.5% these are 8 of 64 images, 3 of 8 and 21 of 250.
    """
    return exceeds(int(where.sum()), len(where), TOLERATED)


def family(outcome: Outcome) -> str | None:
    """How the attack searched: a `robust_jax.attacks.define.Family`, "transfer", or None if it is not known."""
    if outcome.attack.source:
        return "transfer"
    known = about(outcome.attack.function)
    return known.family if known else None


def is_gradient_free(outcome: Outcome) -> bool:
    """Whether the attack used no gradients of the model: a search by queries, or an attack on another model."""
    return family(outcome) in ("black_box", "transfer")


def is_persistent(outcome: Outcome) -> bool:
    """Whether the attack searched by gradients for all of its steps, instead of stopping at the first success."""
    return family(outcome) in ("ascent", "white_box")


def ball(threat: ThreatModel) -> tuple[Any, ...]:
    """Perturbation, norm and radii: equal for equal threat models, and hashable."""
    radii = (np.ravel(r).tolist() for r in jax.tree.leaves(threat.radius))
    return threat.perturbation, threat.norm, tuple(tuple(r[:1] if len(set(r)) == 1 else r) for r in radii)


def has_many_parameters(threat: ThreatModel) -> bool:
    """Whether δ has more than a few entries; with few, attacks without gradients are known to be the stronger ones."""
    delta = jax.eval_shape(threat.perturbation.zeros, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(delta)) > 16


def black_box_warning(name: str, lead: int, gradient_attacks: str) -> str:
    """The warning that an attack without gradients is the stronger one."""
    return (
        f"black_box: {name}, without gradients of the model, breaks {lead} images more than {gradient_attacks}: "
        f"gradients are masked, or {gradient_attacks} too weak (another loss or more steps may tell). Use auto_attack, "
        f"and trust the lowest accuracy only"
    )


def one_step_warning(name: str, lead: int, other: str) -> str:
    """The warning that an attack of a single step is the stronger one."""
    return (
        f"one_step: {name} breaks {lead} images more than {other}, which takes many steps: gradients are masked, or "
        f"its steps too large or too small. Use apgd, which adapts them, and auto_attack"
    )
