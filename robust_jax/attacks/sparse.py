"""Few changed pixels: the saliency map attack (Papernot et al. 2016) and the pointwise attack (Schott et al. 2019).

There is no ball of the number of changes ("l0" is no norm, and nothing is projected onto it). The threat model is
"additive" with norm linf, its radius is how far one value may go (1: anywhere in [0, 1]), and ``max_pixels`` bounds how
many go. A pixel is one value here, a channel of a colour image: the count is ``(result.delta != 0).sum((1, 2, 3))``.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses, norms, perturbations
from robust_jax.attacks.ascent import clip_box
from robust_jax.attacks.minimal import found_or_clean
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.attacks.survivors import while_active
from robust_jax.checks import check_batch
from robust_jax.perturbations import Images, example_keys
from robust_jax.threat_models import ThreatModel


def jsma(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    max_pixels: int = 100,
    targeted: bool = False,
) -> AttackResult:
    """Changes pairs of pixels by saliency (Papernot et al. 2016, algorithm 3) until the class changes.

    Each step moves the two pixels p, q of the largest ``-(α_p + α_q) (β_p + β_q)``, ``α = ∂z_t / ∂x`` and
    ``β = Σ_{j != t} ∂z_j / ∂x``, t the target: both up where ``α_p + α_q > 0 > β_p + β_q``, both down where the signs
    are the opposite. A pixel moves once, as far as ball and box allow; the paper's budget of 14.5% of the image is 113
    pixels in MNIST. An example stops where it succeeds, or where no pair is salient.
    A step costs a forward pass, two gradients and the search through all pairs, (H W C)² an image.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "additive" with norm linf; the radius bounds the change of each pixel.
      key: not used, the attack is deterministic.
      max_pixels: at most so many are changed, at least 2.
      targeted: whether labels are targets; otherwise t is the class of the second logit at the clean image.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), another threat
        model, or fewer than 2 pixels.
    """
    check_batch(images, labels, logits_fn, threat)
    low, high = _ends("jsma", threat, images)
    if max_pixels < 2:
        raise ValueError(f"jsma: max_pixels={max_pixels} must be at least 2: pixels are changed in pairs.")

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
        moved = jnp.where(chosen.reshape(images.shape), norms.where(up, high, low), delta)
        delta = norms.where(salient, moved, delta)
        success = succeeds(logits_at(images, delta), labels)
        return (delta, success), salient & ~success

    success = succeeds(clean, labels)
    fixed, state = (images, labels, own if targeted else other, low, high), (jnp.zeros_like(images), success)
    delta, success = while_active(body, fixed, state, ~success, max_pixels // 2)
    return found_or_clean(threat, images, delta, success)


def _unit(gradient: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Scaled by the largest entry, so that products of two neither overflow nor vanish."""
    gradient = jnp.nan_to_num(gradient)
    largest = jnp.abs(gradient).max(-1, keepdims=True)
    return gradient / jnp.where(largest > 0, largest, 1)


def _salient_pair(example: tuple[Array, Array, Array]) -> tuple[Float[Array, ""], Int[Array, "2"]]:
    """The largest ``(a_p + a_q) (b_p + b_q)`` of free p < q with both sums positive, 0 if there is none, and p, q."""
    a, b, free = example
    n = len(a)
    if n < 2:
        return jnp.zeros((), a.dtype), jnp.zeros(2, int)
    both_a, both_b = (v[:, None] + v for v in (a, b))
    allowed = free[:, None] & free & (jnp.arange(n)[:, None] < jnp.arange(n)) & (both_a > 0) & (both_b > 0)
    score = jnp.where(allowed, both_a * both_b, 0).reshape(-1)
    best = score.argmax()
    return score[best], jnp.stack([best // n, best % n])


def pointwise(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    draws: int = 10,
    levels: int = 20,
    max_pixels: int | None = None,
    targeted: bool = False,
) -> AttackResult:
    """As few changed pixels as can be, without gradients (Schott et al. 2019, section 4.2; L0 version).

    From the first misclassified image under ever more salt and pepper noise, each pixel in random order is put back
    where the image stays misclassified, in passes until none is. What is found is minimal in that no single pixel can
    be put back, which is no global minimum. Costs ``draws * levels`` forward passes and in each pass one for every
    pixel still changed.

    Args:
      logits_fn: any function of images that JAX traces; it need not be differentiable.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: "additive" with norm linf; noise moves a pixel up or down as far as radius and box allow.
      key: one key, or one an image ``[B]``.
      draws: of noise; the start is the draw that succeeds with the fewest pixels.
      levels: of each draw, from ``1 / levels`` of the pixels to all.
      max_pixels: what needs more is a failure; None: any number is a success.
      targeted: whether labels are targets; noise rarely hits one.

    Returns:
      δ and image where one was found; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), another threat
        model, or an impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    low, high = _ends("pointwise", threat, images)
    if draws < 1 or levels < 1 or not (max_pixels is None or max_pixels >= 0):
        raise ValueError(
            f"pointwise: draws={draws} and levels={levels} must be at least 1, max_pixels={max_pixels} not negative."
        )
    b, n = len(images), math.prod(images.shape[1:])
    keys = example_keys(key, b)

    def succeeds(delta: Array) -> Array:
        return losses.misclassified(logits_fn(clip_box(images + delta)), labels) != targeted

    def count(delta: Array) -> Array:
        return (delta != 0).reshape(b, n).sum(-1)

    def start(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        noise = jax.vmap(lambda k: jax.random.uniform(k, (2, *images.shape[1:])))(
            perturbations.fold_keys(keys, i // levels)
        )
        delta = jnp.where(noise[:, 0] < 0.5, low, high) * (noise[:, 1] * levels <= i % levels + 1)
        fewer = succeeds(delta) & (~best[1] | (count(delta) < count(best[0])))
        return norms.where(fewer, delta, best[0]), best[1] | fewer

    def one_pass(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, delta, active = carry
        ranks = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(perturbations.fold_keys(keys, draws + i))
        # Changed pixels first: the others need no look.
        order = jnp.argsort(jnp.where(delta.reshape(b, n) != 0, ranks, 2), axis=-1)

        def put_back(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            delta, changed = carry
            here = (order[:, j, None] == jnp.arange(n)).reshape(images.shape)
            fewer = jnp.where(here, 0, delta)
            good = active & (count(fewer) < count(delta)) & succeeds(fewer)
            return norms.where(good, fewer, delta), changed | good

        most = jnp.where(active, count(delta), 0).max()
        delta, changed = jax.lax.fori_loop(0, most, put_back, (delta, jnp.zeros(b, bool)))
        return i + 1, delta, changed

    zeros = jnp.zeros_like(images)
    delta, success = jax.lax.fori_loop(0, draws * levels, start, (zeros, succeeds(zeros)))
    _, delta, _ = jax.lax.while_loop(lambda carry: carry[-1].any(), one_pass, (jnp.array(0), delta, success))
    return found_or_clean(
        threat, images, delta, success if max_pixels is None else success & (count(delta) <= max_pixels)
    )


def _ends(path: str, threat: ThreatModel, images: Images) -> tuple[Images, Images]:
    """The δ of every pixel at the lower and upper end of ball and box."""
    check_pixelwise(path, threat)
    radius = jnp.broadcast_to(jnp.asarray(threat.radius, images.dtype), images.shape)
    return -jnp.minimum(radius, images), jnp.minimum(radius, 1 - images)


def check_pixelwise(path: str, threat: ThreatModel) -> None:
    """Raises ValueError, starting with ``path``, unless each pixel has an interval of its own."""
    space = threat.perturbation
    if space is not perturbations.additive or norms.exponent(threat.norm) != math.inf:
        raise ValueError(
            f"{path}: perturbation {space.name} with norm={threat.norm!r}: it counts changed pixels, so take "
            f"'additive' with 'linf', whose radius bounds the change of each (1: any), and max_pixels for their number."
        )
