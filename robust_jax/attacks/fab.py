"""FAB, the fast adaptive boundary attack, over any threat model: small perturbations (Croce & Hein 2020b)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from robust_jax import losses, norms, perturbations, threat_models
from robust_jax.attacks.ascent import clip_box, crossed, rounding
from robust_jax.attacks.minimal import found_or_clean
from robust_jax.attacks.pgd import AttackResult, LogitsFn
from robust_jax.attacks.survivors import while_active
from robust_jax.checks import check_batch
from robust_jax.perturbations import Delta, Images, example_keys
from robust_jax.threat_models import ThreatModel

# (logits, labels, likeliest other classes [B, n], number of each one's run [B]) -> the differences of logits that are
# to become positive, as rows of signs [N, B, K].
Rows = Callable[[Array, Array, Array, Array], Array]


def fab(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    restarts: int = 1,
    candidates: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    targeted: bool = False,
) -> AttackResult:
    """The smallest ``‖δ / radius‖`` that FAB finds with ``argmax logits_fn(T(x, δ)) != y``, in the ball.

    At each step the nearest of the zeros of ``z_k - z_y``, linearised at δ, is a hyperplane of δs, and both δ and 0 are
    projected on its part within the box, in the threat model's norm (Croce & Hein 2020b, algorithm 1)::

        δ <- (1 - α) (δ + η (P(δ) - δ)) + α η P(0),    α = min(‖P(δ) - δ‖ / (‖P(δ) - δ‖ + ‖P(0)‖), alpha_max)

    Where that is misclassified it is kept if it is the smallest so far, and the search goes on from β δ. The first run
    starts from 0, others at random, half as far as the smallest so far and no farther than half the radius.
    The projections are exact for l_p, p >= 1, of one perturbation without a box or whose box is one of δ's coordinates
    (additive), and for compositions without a box; else they are points of the hyperplane, if not the nearest. Where
    the box does not reach the hyperplane they go as far as it lets them. The paper's final search is left out, as in
    AutoAttack.

    The radius is the unit of size and also the bound, see `robust_jax.attacks.deepfool`; on the way δ may leave the
    ball. Each step costs a forward pass, one more with a gradient for each candidate, and memory for these gradients.

    Args:
      logits_fn: any JAX function of images.
      images: in [0, 1].
      labels: the true labels; with ``targeted`` the targets.
      threat: perturbation, norm and radius.
      key: one key, or one an image ``[B]``, for the restarts.
      steps: of each run.
      restarts: runs.
      candidates: so many classes are stepped towards, those of the largest logits at the clean image.
      alpha_max: how much of each step leads back to δ = 0, at most.
      eta: how far each projection is followed, past the boundary.
      beta: how much is left of a δ that is misclassified.
      targeted: whether labels are targets; the one difference is then the target's to the largest other logit.

    Returns:
      δ and image where one was found in the ball; elsewhere δ = 0, the clean image and success False.

    Raises:
      ValueError: images outside [0, 1] or of the wrong rank, labels out of range (on concrete arrays), or an
        impossible option.
    """
    check_batch(images, labels, logits_fn, threat)
    _check("fab", steps, restarts, candidates, alpha_max, eta, beta)
    others = losses.rivals(logits_fn(images), labels, candidates)

    def rows(logits: Array, labels: Array, others: Array, _: Array) -> Array:
        own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        if targeted:
            current = jnp.where(own > 0, -jnp.inf, logits).argmax(-1)
            return (own - jax.nn.one_hot(current, logits.shape[-1], dtype=own.dtype))[None]
        return jax.nn.one_hot(others.T, logits.shape[-1], dtype=own.dtype) - own

    return _search(
        rows, others, logits_fn, images, labels, threat, key, steps=steps, restarts=restarts, runs=restarts,
        alpha_max=alpha_max, eta=eta, beta=beta, targeted=targeted,
    )  # fmt: skip


def fab_targeted(
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    threat: ThreatModel,
    *,
    key: Key[Array, "..."],
    steps: int = 100,
    restarts: int = 1,
    candidates: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> AttackResult:
    """FAB-T: `fab` with one hyperplane a step, to each of the likeliest other classes in a run of its own.

    The labels are the true ones: any misclassification is a success. A step takes one gradient, whatever the number
    of classes; arguments are those of `fab`, ``restarts`` runs for each of the ``candidates``.
    """
    check_batch(images, labels, logits_fn, threat)
    _check("fab_targeted", steps, restarts, candidates, alpha_max, eta, beta)
    others = losses.rivals(logits_fn(images), labels, candidates)

    def rows(logits: Array, labels: Array, others: Array, run: Array) -> Array:
        one_hot = partial(jax.nn.one_hot, num_classes=logits.shape[-1], dtype=logits.dtype)
        target = jnp.take_along_axis(others, (run // restarts)[:, None], -1)[:, 0]
        return (one_hot(target) - one_hot(labels))[None]

    return _search(
        rows, others, logits_fn, images, labels, threat, key, steps=steps, restarts=restarts,
        runs=restarts * others.shape[1], alpha_max=alpha_max, eta=eta, beta=beta, targeted=False,
    )  # fmt: skip


def _check(path: str, steps: int, restarts: int, candidates: int, alpha_max: float, eta: float, beta: float) -> None:
    if steps < 1 or restarts < 1 or candidates < 1:
        raise ValueError(f"{path}: steps={steps}, restarts={restarts}, candidates={candidates} must be at least 1.")
    if not (0 <= alpha_max <= 1 and eta >= 1 and 0 < beta < 1):
        raise ValueError(f"{path}: alpha_max={alpha_max} must be in [0, 1], eta={eta} >= 1 and beta={beta} in (0, 1).")


def _search(
    rows: Rows, others: Array, logits_fn: LogitsFn, images: Images, labels: Array, threat: ThreatModel, key: Array, *,
    steps: int, restarts: int, runs: int, alpha_max: float, eta: float, beta: float, targeted: bool,
) -> AttackResult:  # fmt: skip
    """Runs one after the other, each for the examples that are classified correctly."""
    space = threat.perturbation

    def one_run(
        run: Array, fixed: tuple[Images, Array, Array, Array], best: tuple[Delta, Array]
    ) -> tuple[tuple[Delta, Array], Array]:
        images, labels, keys, others = fixed
        zeros = space.zeros(images)

        def logits_at(delta: Delta) -> Array:
            return logits_fn(clip_box(perturbations.followed(space, images, delta)))

        confined = partial(perturbations.confined, space, images)

        def mixed(share: Array, one: Delta, other: Delta) -> Delta:
            return jax.tree.map(lambda a, b: a + norms.expand(share, a) * (b - a), one, other)

        def step(delta: Delta) -> Delta:
            logits, pull = jax.vjp(logits_at, delta)
            signs = rows(logits, labels, others, run)
            gradients = jax.tree.map(jnp.nan_to_num, jax.vmap(lambda row: pull(row)[0])(signs))
            # A little past the boundary: at a tie, the label may still be the first of the largest.
            lacking = 2 * rounding(logits) - (signs * logits).sum(-1)
            lacking = jnp.nan_to_num(lacking, posinf=0.0, neginf=0.0)
            gains = jax.vmap(partial(threat_models.gain, threat))(gradients)
            nearest = jnp.where(gains > 0, jnp.abs(lacking) / jnp.where(gains > 0, gains, 1), jnp.inf).argmin(0)
            index = nearest, jnp.arange(len(images))
            gradient, lacking = jax.tree.map(lambda g: g[index], gradients), lacking[index]
            near = _to_plane(threat, images, delta, gradient, lacking)
            central = _to_plane(threat, images, zeros, gradient, lacking + perturbations.inner(gradient, delta))
            moves = jax.tree.map(jnp.subtract, near, delta)
            short, long = threat_models.size(threat, moves), threat_models.size(threat, central)
            total = short + long
            share = jnp.minimum(jnp.where(total > 0, short / jnp.where(total > 0, total, 1), 0), alpha_max)
            followed = jax.tree.map(lambda d, m: d + eta * m, delta, moves)
            return confined(mixed(share, followed, jax.tree.map(lambda c: eta * c, central)))

        run_keys = perturbations.fold_keys(keys, run)
        reach = jnp.where(run % restarts > 0, jnp.minimum(best[1], 1) / 2, 0)
        start = confined(mixed(reach, zeros, threat_models.random_delta(threat, run_keys, images)))

        def body(_: Array, carry: tuple[Delta, Delta, Array]) -> tuple[Delta, Delta, Array]:
            delta, found, smallest = carry
            delta = step(delta)
            success = crossed(logits_at(delta), labels, targeted)
            size = threat_models.size(threat, delta)
            smaller = success & (size < smallest)
            found, smallest = norms.where(smaller, (delta, size), (found, smallest))
            return norms.where(success, jax.tree.map(lambda d: beta * d, delta), delta), found, smallest

        return jax.lax.fori_loop(0, steps, body, (start, *best))[1:], jnp.ones(len(images), bool)

    clean = losses.misclassified(logits_fn(images), labels) != targeted
    start = space.zeros(images), jnp.where(clean, 0.0, jnp.inf)
    fixed = (images, labels, example_keys(key, len(images)), others)
    delta, size = while_active(one_run, fixed, start, ~clean, runs)
    return found_or_clean(threat, images, delta, size <= 1)


def _to_plane(threat: ThreatModel, images: Images, delta: Delta, gradient: Delta, lacking: Float[Array, " b"]) -> Delta:
    """The δ' nearest to δ in the box with ``<gradient, δ' - δ> = lacking``, or as near to that plane as the box goes.

    With t the distance, u the unit ball's steepest direction, ``|δ' - δ|_i = min(t |u_i|, room_i)``: its product with
    the gradient grows with t by straight pieces, whose ends are sorted. l1 fills the best coordinates one by one.
    """
    toward = jax.tree.map(lambda g: g * norms.expand(jnp.sign(lacking), g), gradient)
    room = perturbations.room(threat.perturbation, images, delta, toward)
    leaves, tree = jax.tree.flatten(toward)

    def flat(x: Delta) -> Array:
        return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)], -1)

    slopes, room = jnp.abs(flat(toward)), flat(room)
    wanted = jnp.abs(lacking)[:, None]
    if not threat.perturbation.parts and norms.exponent(threat.norm) == 1:
        radius = flat(jnp.broadcast_to(jnp.asarray(threat.radius, delta.dtype), delta.shape))
        lengths = _fill(slopes, room, radius, wanted)
    else:
        lengths = _spread(slopes, room, jnp.abs(flat(threat_models.steepest(threat, toward))), wanted)
    parts = jnp.split(jnp.nan_to_num(lengths, posinf=0.0), np.cumsum([leaf[0].size for leaf in leaves])[:-1], -1)
    moved = [jnp.sign(g) * part.reshape(g.shape) for g, part in zip(leaves, parts, strict=True)]
    return jax.tree.map(jnp.add, delta, jax.tree.unflatten(tree, moved))


def _fill(slopes: Array, room: Array, radius: Array, wanted: Array) -> Array:
    """Coordinates with the most gain a radius first, each as far as its room or as far as is wanted."""
    order = jnp.argsort(-slopes * radius, axis=-1)
    slopes, room = (jnp.take_along_axis(x, order, -1) for x in (slopes, jnp.where(radius > 0, room, 0)))
    most = jnp.minimum(jnp.where(slopes > 0, slopes * room, 0), wanted)
    gained = jnp.clip(wanted - (jnp.cumsum(most, -1) - most), 0, most)
    lengths = jnp.where(slopes > 0, gained / jnp.where(slopes > 0, slopes, 1), 0)
    return jnp.take_along_axis(lengths, jnp.argsort(order, -1), -1)


def _spread(slopes: Array, room: Array, speeds: Array, wanted: Array) -> Array:
    """``min(t speeds, room)`` with the t where its product with the slopes is what is wanted."""
    ends = jnp.where(speeds > 0, room / jnp.where(speeds > 0, speeds, 1), jnp.inf)
    order = jnp.argsort(ends, -1)
    rates, ends, full = (
        jnp.take_along_axis(x, order, -1) for x in (slopes * speeds, ends, jnp.where(speeds > 0, slopes * room, 0))
    )
    # Before the k-th end, the ends before it are full and the others still grow.
    done = jnp.cumsum(jnp.where(jnp.isinf(ends), 0, full), -1)
    done = jnp.concatenate([jnp.zeros_like(done[:, :1]), done[:, :-1]], -1)
    growing = jnp.flip(jnp.cumsum(jnp.flip(rates, -1), -1), -1)
    times = jnp.where(growing > 0, (wanted - done) / jnp.where(growing > 0, growing, 1), jnp.inf)
    first = (times <= ends).argmax(-1, keepdims=True)
    reached = (times <= ends).any(-1, keepdims=True)
    time = jnp.where(reached, jnp.take_along_axis(times, first, -1), jnp.inf)
    return jnp.where(speeds > 0, jnp.minimum(jnp.where(speeds > 0, time, 0) * speeds, room), 0)
