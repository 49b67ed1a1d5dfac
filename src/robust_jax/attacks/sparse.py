"""Few changed pixels: the saliency map attack (Papernot et al. 2016) and the pointwise attack (Schott et al. 2019).

The number of changed pixels has no ball ("l0" is not a norm, and there is no projection onto it). The threat model is
"additive" with norm linf, its radius bounds the change of each value (1: any value in [0, 1]), and ``max_pixels``
bounds the number of changed ones. A pixel is a single value, in colour images one channel: the number of changed ones
is ``(result.delta != 0).sum((1, 2, 3))``.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses
from robust_jax.attacks.active_loop import while_active
from robust_jax.attacks.define import Cost, Problem, attack
from robust_jax.attacks.result import AttackResult, LogitsFn, clip_box, found_or_clean
from robust_jax.options import Count, Range
from robust_jax.spaces import additive, norms, per_example
from robust_jax.spaces.per_example import example_keys
from robust_jax.spaces.perturbations import Images
from robust_jax.spaces.threat_models import ThreatModel

_PAIRS = 2**22
"""Pairs of pixels that `jsma` scores at once per image: all of them up to 2,048 pixels, in blocks above."""


def check_pixelwise(name: str, threat: ThreatModel) -> None:
    """Raises ValueError, beginning with ``name``, unless each pixel has an interval of its own."""
    space = threat.perturbation
    if space is not additive.additive or norms.exponent(threat.norm) != math.inf:
        raise ValueError(
            f"{name}: perturbation {space.name} with norm={threat.norm!r}: it counts changed pixels, so give "
            f"'additive' with 'linf', whose radius bounds the change of each (1: any), and max_pixels for their number."
        )


def _jsma_cost(o: SimpleNamespace, _: Problem) -> Cost:
    return Cost(1 + 2 * (o.max_pixels // 2), 2 * (o.max_pixels // 2))


@attack(family="boundary", cost=_jsma_cost, check=check_pixelwise)
def jsma(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    max_pixels: Annotated[int, Range(least=2)] = 100,
    targeted: bool = False,
) -> AttackResult:
    """Changes pairs of pixels by saliency (Papernot et al. 2016, algorithm 3) until the class changes.

    Each step moves the two pixels p, q of the largest ``-(α_p + α_q) (β_p + β_q)``, ``α = ∂z_t / ∂x`` and
    ``β = Σ_{j != t} ∂z_j / ∂x``, t the target: both up if ``α_p + α_q > 0 > β_p + β_q``, both down if the signs are
    opposite. A pixel moves once, as far as ball and box allow; the paper's budget of 14.5% of the image is 113 pixels
    in MNIST. An example stops once it succeeds, or if no pair is salient.
    A step costs two forward passes, two gradients and the search through all pairs, (H W C)² per image.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "additive" with norm linf; the radius bounds the change of each pixel.
      key: not used: the attack is deterministic.
      max_pixels: the largest number of changed pixels, at least 2, as they are changed in pairs.
      targeted: whether labels are targets; otherwise t is the class of the largest other logit at the clean image.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), another
        threat model, or fewer than 2 pixels.
    """
    low, high = ends(threat, images)

    def logits_at(images: Array, delta: Array) -> Array:
        return logits_fn(clip_box(images + delta))

    def succeeds(logits: Array, labels: Array) -> Array:
        return losses.misclassified(logits, labels) != targeted

    clean = logits_at(images, jnp.zeros_like(images))
    own = jax.nn.one_hot(labels, clean.shape[-1], dtype=clean.dtype)
    other = jax.nn.one_hot(jnp.where(own > 0, -jnp.inf, clean).argmax(-1), clean.shape[-1], dtype=clean.dtype)

    def body(_: Array, fixed: tuple[Array, ...], state: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        images, labels, target, low, high = fixed
        delta, success = state
        flat = (len(images), -1)
        _, pull = jax.vjp(partial(logits_at, images), delta)
        towards, away = (_unit(pull(row)[0].reshape(flat)) for row in (target, 1 - target))
        choices = []
        for sign, end in ((1, high), (-1, low)):
            free = ((delta == 0) & (end != 0)).reshape(flat)
            choices.append(jax.lax.map(_salient_pair, (sign * towards, -sign * away, free)))
        (rise, pair_up), (fall, pair_down) = choices
        up, salient = rise >= fall, jnp.maximum(rise, fall) > 0
        chosen = (jnp.where(up[:, None], pair_up, pair_down)[..., None] == jnp.arange(images[0].size)).any(1)
        moved = jnp.where(chosen.reshape(images.shape), per_example.where(up, high, low), delta)
        delta = per_example.where(salient, moved, delta)
        success = succeeds(logits_at(images, delta), labels)
        return (delta, success), salient & ~success

    success = succeeds(clean, labels)
    fixed, state = (images, labels, own if targeted else other, low, high), (jnp.zeros_like(images), success)
    delta, success = while_active(body, fixed, state, ~success, max_pixels // 2)
    return found_or_clean(threat, images, delta, success)


def _unit(gradient: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Divided by the largest entry, so that products of two entries neither overflow nor vanish."""
    gradient = jnp.nan_to_num(gradient)
    largest = jnp.abs(gradient).max(-1, keepdims=True)
    return gradient / jnp.where(largest > 0, largest, 1)


def _salient_pair(example: tuple[Array, Array, Array]) -> tuple[Float[Array, ""], Int[Array, "2"]]:
    """The largest ``(a_p + a_q) (b_p + b_q)`` among free p < q with both sums positive, or 0; and p, q."""
    a, b, free = example
    n = len(a)
    if n < 2:
        return jnp.zeros((), a.dtype), jnp.zeros(2, int)
    rows = min(max(_PAIRS // n, 1), n)

    def best_of_rows(first: Array | int) -> tuple[Array, Array]:
        """The same for p from ``first`` on, ``rows`` of them."""
        p, q = first + jnp.arange(rows), jnp.arange(n)
        at = jnp.minimum(p, n - 1)  # the last rows may lie beyond the end
        both_a, both_b = (v[at][:, None] + v for v in (a, b))
        allowed = free[at][:, None] & free & (p[:, None] < q) & (both_a > 0) & (both_b > 0)
        score = jnp.where(allowed, both_a * both_b, 0).reshape(-1)
        best = score.argmax()
        return score[best], jnp.stack([first + best // n, best % n])

    if rows == n:
        return best_of_rows(0)

    def better(found: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        new = best_of_rows(first)
        return jax.tree.map(partial(jnp.where, new[0] > found[0]), new, found), None

    nothing = (jnp.zeros((), a.dtype), jnp.zeros(2, int))
    return jax.lax.scan(better, nothing, jnp.arange(0, n, rows))[0]


def _pointwise_cost(o: SimpleNamespace, problem: Problem) -> Cost:
    pixels = math.prod(problem.image_shape)
    # Each pass tries the pixels that are still changed, and puts back at least one of them.
    return Cost(1 + o.draws * o.levels + pixels * (pixels + 1) // 2, 0)


@attack(family="black_box", cost=_pointwise_cost, check=check_pixelwise)
def pointwise(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    draws: Count = 10,
    levels: Count = 20,
    max_pixels: Annotated[int, Range(least=0)] | None = None,
    targeted: bool = False,
) -> AttackResult:
    """As few changed pixels as possible, without gradients (Schott et al. 2019, section 4.2; L0 version).

    Starts from the first misclassified image under increasing salt and pepper noise. Each pixel, in random order, is
    put back if the image stays misclassified, in passes until none can be. The result is minimal in the sense that no
    single pixel can be put back, which is not a global minimum. Costs ``draws * levels`` forward passes, and in each
    pass one for every pixel still changed.

    Args:
      logits_fn: any function of images that JAX traces; it need not be differentiable.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "additive" with norm linf; noise moves a pixel up or down as far as radius and box allow.
      key: one key, or one per example ``[B]``.
      draws: the number of noise patterns; the start is the one that succeeds with the fewest pixels.
      levels: the number of noise levels of each draw, from ``1 / levels`` of the pixels to all.
      max_pixels: an example that needs more is a failure; None: any number is a success.
      targeted: whether labels are targets; noise rarely reaches one.

    Returns:
      δ and image if one was found; otherwise δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (both for concrete arrays), another
        threat model, or an option out of its range.
    """
    low, high = ends(threat, images)
    b, n = len(images), math.prod(images.shape[1:])
    keys = example_keys(key, b)

    def succeeds(delta: Array) -> Array:
        return losses.misclassified(logits_fn(clip_box(images + delta)), labels) != targeted

    def count(delta: Array) -> Array:
        return (delta != 0).reshape(b, n).sum(-1)

    def start(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        noise = jax.vmap(lambda k: jax.random.uniform(k, (2, *images.shape[1:])))(
            per_example.fold_keys(keys, i // levels)
        )
        delta = jnp.where(noise[:, 0] < 0.5, low, high) * (noise[:, 1] * levels <= i % levels + 1)
        fewer = succeeds(delta) & (~best[1] | (count(delta) < count(best[0])))
        return per_example.where(fewer, delta, best[0]), best[1] | fewer

    def one_pass(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, delta, active = carry
        ranks = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(per_example.fold_keys(keys, draws + i))
        # Changed pixels first: the others need not be tried.
        order = jnp.argsort(jnp.where(delta.reshape(b, n) != 0, ranks, 2), axis=-1)

        def put_back(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            delta, changed = carry
            tried = (order[:, j, None] == jnp.arange(n)).reshape(images.shape)
            fewer = jnp.where(tried, 0, delta)
            good = active & (count(fewer) < count(delta)) & succeeds(fewer)
            return per_example.where(good, fewer, delta), changed | good

        most = jnp.where(active, count(delta), 0).max()
        delta, changed = jax.lax.fori_loop(0, most, put_back, (delta, jnp.zeros(b, bool)))
        return i + 1, delta, changed

    zeros = jnp.zeros_like(images)
    delta, success = jax.lax.fori_loop(0, draws * levels, start, (zeros, succeeds(zeros)))
    _, delta, _ = jax.lax.while_loop(lambda carry: carry[-1].any(), one_pass, (jnp.array(0), delta, success))
    return found_or_clean(
        threat, images, delta, success if max_pixels is None else success & (count(delta) <= max_pixels)
    )


def ends(threat: ThreatModel, images: Images) -> tuple[Images, Images]:
    """The δ of every pixel at the lower and the upper end of ball and box."""
    radius = jnp.broadcast_to(jnp.asarray(threat.radius, images.dtype), images.shape)
    return -jnp.minimum(radius, images), jnp.minimum(radius, 1 - images)
