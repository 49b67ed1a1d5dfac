"""Defences that mask gradients, planted on small networks, and attacks that are too weak to say anything.

Each makes a network that is not robust look robust, or keeps attacks from seeing that it is not. `KINDS` lists them;
`LATER` are those that were invented after the probe had been finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.masking.networks import FEW, IMAGES, KEY, LABELS, TRAIN, Model, chain, fitted, layers, perceptron
from robust_jax import losses
from robust_jax.attacks import pgd, square
from robust_jax.evaluation.attack import Attack
from robust_jax.spaces.threat_models import ThreatModel
from robust_jax.spaces.warping import warp

BALL = ThreatModel("additive", "linf", 0.1)
WIDE = ThreatModel("additive", "linf", 0.2)
PGD = {"pgd": Attack(pgd, BALL, {"steps": 10})}
PGD_WIDE = {"pgd": Attack(pgd, WIDE, {"steps": 10})}


class Kind(NamedTuple):
    """A planted defence, or a weak attack.

    Attributes:
      says: what it is.
      model: returns images -> logits.
      attacks: what is evaluated.
      needs: the cheapest signs that see it: "outcomes", "logits", "gradients" or "attacks".
      sign: one that must; "": none sees it, because PGD is not fooled.
    """

    says: str
    model: Callable[[], Model]
    needs: str
    sign: str
    attacks: Mapping[str, Attack] = PGD


def on(defence: Callable[[Model, Array], Array], network: Callable[[], Model] = perceptron) -> Callable[[], Model]:
    """A defence around a trained network."""
    return lambda: jax.tree_util.Partial(defence, network())


# What happens to the input.


def quantised(model: Model, images: Array) -> Array:
    return model(jnp.round(images * 7) / 7)


def stepped(model: Model, images: Array) -> Array:
    return model(jnp.where(images > 0.5, 1.0, 0.0))


def detached(model: Model, images: Array) -> Array:
    return model(jax.lax.stop_gradient(images))


def dead_zones(model: Model, images: Array) -> Array:
    """Close to a multiple of a quarter the input is that multiple: most pixels have no gradient."""
    near = jnp.round(images * 4) / 4
    return model(jnp.where(jnp.abs(images - near) < 0.11, near, images))


def cosines() -> Array:
    """The orthonormal cosine transform of 8 numbers."""
    k, n = np.mgrid[:8, :8]
    basis = np.cos(np.pi * (n + 0.5) * k / 8) / 2
    basis[0] /= np.sqrt(2)
    return jnp.asarray(basis, jnp.float32)


def jpeg(model: Model, images: Array) -> Array:
    """Rounded coefficients of the cosine transform of 8x8 blocks; rounding has the gradient 0."""
    basis = cosines()
    coefficients = jnp.einsum("kh,bhwc,lw->bklc", basis, images, basis)
    return model(jnp.einsum("kh,bklc,lw->bhwc", basis, jnp.round(coefficients * 4) / 4, basis))


def thermometer(activation: Any, weights: Any, images: Array) -> Array:
    """Each pixel as ten bits, whether it exceeds 0, .1, .2, ... (Buckman et al. 2018)."""
    return chain(activation, weights, (images[..., None] > jnp.arange(10) / 10).astype(images.dtype))


def host_noise(shape: tuple[int, ...]) -> Array:
    """Numbers in [0, 1] that the host draws at every call."""
    rng = np.random.default_rng(0)
    result = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.lax.stop_gradient(jax.pure_callback(lambda: rng.random(shape, np.float32), result))


def resized(model: Model, images: Array, zoom: Array) -> Array:
    at = jnp.arange(8.0) - 3.5
    field = jnp.stack(jnp.meshgrid(at, at, indexing="ij"), -1)
    return model(warp(images, zoom[:, None, None, None] * field))


def host_resized(model: Model, images: Array) -> Array:
    """A random zoom (Xie et al. 2018), another one at every call."""
    return resized(model, images, jnp.full(len(images), 0.2 * host_noise(()) - 0.1))


def hash_of(images: Array) -> Array:
    return jax.lax.bitcast_convert_type(images, jnp.uint32).sum((1, 2, 3))


def hash_resized(model: Model, images: Array) -> Array:
    """A random zoom, drawn from the image's own bits: two calls agree."""
    draw = jax.vmap(lambda b: jax.random.uniform(jax.random.key(b), minval=-0.1, maxval=0.1))
    return resized(model, images, draw(hash_of(images)))


def padded(model: Model, images: Array) -> Array:
    """A random shift of up to a pixel: random padding (Xie et al. 2018)."""
    shift = jnp.floor(3 * host_noise((len(images), 1, 1, 2))) - 1
    return model(warp(images, jnp.broadcast_to(shift, (*images.shape[:3], 2))))


def pruned(model: Model, images: Array) -> Array:
    """A fifth of the pixels is dropped at random, the others grow."""
    return model(images * (host_noise(images.shape) > 0.2) / 0.8)


# What happens to the logits.


def scaled(model: Model, images: Array) -> Array:
    return 1e6 * model(images)


def thousandfold(model: Model, images: Array) -> Array:
    return 1e3 * model(images)


def clipped(model: Model, images: Array) -> Array:
    return jnp.clip(model(images), -5, 5)


def saturated_softmax(model: Model, images: Array) -> Array:
    return jax.nn.softmax(model(images) * 1e3)


def softmax(model: Model, images: Array) -> Array:
    return jax.nn.softmax(model(images))


def votes(models: list[Model], images: Array) -> Array:
    """The share of the votes of an ensemble: each network casts one."""
    return jnp.mean(jnp.stack([jax.nn.one_hot(model(images).argmax(-1), 10) for model in models]), 0)


def switched(models: list[Model], images: Array) -> Array:
    """One of two networks, by the parity of the image's bits."""
    return jnp.where((hash_of(images) % 2 == 0)[:, None], models[0](images), models[1](images))


def ensemble(count: int) -> list[Model]:
    return [perceptron(seed=seed) for seed in range(count)]


def rejecting(model: Model, images: Array) -> Array:
    """NaN for images whose pixels are not the sixteenths of the scanner: everything perturbed is refused."""
    changed = (jnp.abs(images * 16 - jnp.round(images * 16)) > 1e-3).any((1, 2, 3))
    return jnp.where(changed[:, None], jnp.nan, model(images))


def nearest(stored: tuple[Array, Array], images: Array) -> Array:
    """The label of the nearest training image."""
    known, labels = stored
    apart = ((images[:, None] - known[None]) ** 2).sum((2, 3, 4))
    return 10 * jax.nn.one_hot(labels[apart.argmin(-1)], 10)


# What happens inside of the network.


def winners(h: Array) -> Array:
    """k-winners-take-all (Xiao et al. 2020): a tenth of the units, the others are 0."""
    return jnp.where(h >= jax.lax.top_k(h, h.shape[-1] // 10)[0][:, -1:], h, 0)


def steep_tanh(h: Array) -> Array:
    return jnp.tanh(200 * h)


def distilled(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """Trained at a temperature of 100 (Papernot et al. 2016), used at 1: the logits are 100 times as large."""
    return losses.cross_entropy(model(images) / 100, labels).mean()


class Normalised(nn.Module):
    """A small network with BatchNorm."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits; in train mode the statistics are those of the batch."""
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def in_train_mode(variables: Any, images: Array) -> Array:
    return Normalised().apply(variables, images, train=True, mutable=["batch_stats"])[0]


# What happens to the gradient.


def without_gradient(model: Model, images: Array) -> Array:
    return model(jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(images.shape, images.dtype), images))


def rooted(model: Model, images: Array) -> Array:
    """|x| as a square root, whose derivative is infinite at 0: most pixels of a digit are 0."""
    return model(jnp.sqrt(images**2))


def with_gradient(change: Callable[[Array], Array]) -> Callable[[Model, Array], Array]:
    """The network with its input gradient replaced by ``change(gradient)``."""

    @jax.custom_vjp
    def identity(images: Array) -> Array:
        return images

    identity.defvjp(lambda images: (images, None), lambda _, g: (change(g),))
    return lambda model, images: model(identity(images))


def noisy(gradient: Array) -> Array:
    return gradient + 100 * jnp.abs(gradient).max() * jax.random.normal(KEY, gradient.shape)


def negative(gradient: Array) -> Array:
    return -gradient


noisy_backward, flipped = with_gradient(noisy), with_gradient(negative)


def small(**options: Any) -> dict[str, Attack]:
    return {"pgd": Attack(pgd, BALL, {"steps": 5, "random_start": False, **options})}


def detached_loss(logits: Array, labels: Array) -> Array:
    return jax.lax.stop_gradient(losses.cross_entropy(logits, labels))


KINDS: dict[str, Kind] = {
    "quantised": Kind("the input is rounded to 8 levels", on(quantised), "gradients", "zero_gradient"),
    "stepped": Kind("the input is thresholded at a half", on(stepped), "gradients", "zero_gradient"),
    "thermometer": Kind(
        "thermometer encoding of ten levels, trained so",
        lambda: fitted(partial(thermometer, jax.nn.relu), layers((640, 64, 10))), "gradients", "zero_gradient",
    ),
    "jpeg": Kind("rounded cosine coefficients, as in JPEG", on(jpeg), "gradients", "zero_gradient"),
    "detached": Kind("stop_gradient on the input", on(detached), "gradients", "zero_gradient"),
    "dead zones": Kind(
        "pixels close to a quarter snap to it", on(dead_zones), "attacks", "huge_radius", PGD
    ),
    "random resizing": Kind("a new zoom at every call", on(host_resized), "logits", "random_logits"),
    "random padding": Kind("a new shift at every call", on(padded), "logits", "random_logits"),
    "stochastic pruning": Kind("a fifth of the input dropped at random", on(pruned), "logits", "random_logits"),
    "hashed resizing": Kind("a zoom drawn from the image's bits", on(hash_resized), "logits", "jumping_logits"),
    "switch": Kind(
        "one of two networks, by the image's bits", lambda: jax.tree_util.Partial(switched, ensemble(2)), "logits",
        "jumping_logits",
    ),
    "scaled logits": Kind("logits times 1e6", on(scaled), "gradients", "saturated_loss"),
    "temperature": Kind("logits times 1,000", on(thousandfold), "gradients", "saturated_loss"),
    "distillation": Kind(
        "trained at a temperature of 100, used at 1", partial(perceptron, loss=distilled, steps=1000), "gradients",
        "saturated_loss",
    ),
    "clipped logits": Kind("logits clipped to ±5", on(clipped), "logits", "clipped_logits", PGD_WIDE),
    "softmax": Kind("probabilities as logits", on(softmax), "logits", "probabilities"),
    "saturated softmax": Kind("a softmax of logits times 1,000", on(saturated_softmax), "logits", "probabilities"),
    "votes": Kind(
        "the votes of three networks", lambda: jax.tree_util.Partial(votes, ensemble(3)), "gradients", "zero_gradient"
    ),
    "rejection": Kind("NaN for whatever is perturbed", on(rejecting), "logits", "non_finite"),
    "nearest neighbour": Kind(
        "the label of the nearest training image",
        lambda: jax.tree_util.Partial(nearest, (IMAGES[:TRAIN], LABELS[:TRAIN])), "gradients", "zero_gradient",
    ),
    "k winners": Kind(
        "k-winners-take-all activations", partial(perceptron, winners, (64, 512, 10)), "attacks", "other_losses",
        {"pgd": Attack(pgd, ThreatModel("additive", "linf", 0.15), {"steps": 10})},
    ),
    "steep tanh": Kind("tanh(200 h) activations", partial(perceptron, steep_tanh), "gradients", "misleading_gradient"),
    "train mode": Kind(
        "BatchNorm in train mode", lambda: jax.tree_util.Partial(in_train_mode, Normalised().init(KEY, FEW[:1])),
        "logits", "dependent_examples",
    ),
    "no gradient": Kind(
        "a host function without gradient", on(without_gradient), "gradients", "no_gradient",
        {"square": Attack(square, BALL, {"queries": 20})},
    ),
    "infinite gradient": Kind("a square root at 0", on(rooted), "gradients", "nan_gradient"),
    "noisy backward": Kind("noise added to the gradient", on(noisy_backward), "gradients", "misleading_gradient"),
    "flipped gradient": Kind("the gradient's sign turned", on(flipped), "gradients", "misleading_gradient"),
    "grey radius": Kind(
        "8/255 divided by 255 once more", perceptron, "logits", "tiny_radius",
        {"pgd": Attack(pgd, ThreatModel("additive", "linf", 8 / 255**2), {"steps": 10})},
    ),
    "normalised radius": Kind(
        "a flow of 0.001 px", perceptron, "logits", "tiny_radius",
        {"pgd": Attack(pgd, ThreatModel("flow", "linf", 0.001), {"steps": 10})},
    ),
    "few small steps": Kind(
        "PGD that cannot reach its radius", perceptron, "attacks", "more_steps", small(step_size=0.008)
    ),
    "detached loss": Kind(
        "PGD on a loss of one's own behind stop_gradient", perceptron, "outcomes", "unmoved_loss",
        {"pgd": Attack(pgd, BALL, {"steps": 10, "loss": detached_loss})},
    ),
    "without queries": Kind(
        "a rounded input, evaluated with Square", on(quantised), "outcomes", "black_box",
        PGD | {"square": Attack(square, BALL, {"queries": 200})},
    ),
}  # fmt: skip
"""NAME -> what was planted: gradients first, then attacks that are too weak."""


def flat_levels(model: Model, images: Array) -> Array:
    """A staircase of sines, flat at every grey level of the scanner and steep between them."""
    return model(images - jnp.sin(32 * jnp.pi * images) / (32 * jnp.pi))


def rippled(model: Model, images: Array) -> Array:
    """Waves of a length far below the radius on top of the logits: steep, but not high."""
    waves = layers((64, 10), seed=1)[0][0]
    return model(images) + 0.5 * jnp.sin(3000 * images.reshape(len(images), -1) @ waves)


def softly_clipped(model: Model, images: Array) -> Array:
    return 5 * jnp.tanh(model(images))


def largest_only(model: Model, images: Array) -> Array:
    """All logits but the largest are 0."""
    logits = model(images)
    return jnp.where(logits == logits.max(-1, keepdims=True), logits, 0)


def vanishing(gradient: Array) -> Array:
    return gradient * 1e-42


def of_neighbour(gradient: Array) -> Array:
    return jnp.roll(gradient, 1, 0)


LATER: dict[str, Kind] = {
    "flat levels": Kind("a smooth staircase, flat at the grey levels", on(flat_levels), "attacks", ""),
    "ripples": Kind("fine waves on the logits", on(rippled), "gradients", "misleading_gradient"),
    "soft clipping": Kind("5 tanh of the logits", on(softly_clipped), "logits", "clipped_logits", PGD_WIDE),
    "largest only": Kind("all logits but the largest are 0", on(largest_only), "logits", "clipped_logits"),
    "underflow": Kind("a gradient times 1e-42", on(with_gradient(vanishing)), "gradients", "zero_gradient"),
    "neighbour": Kind(
        "the gradient of the next image of the batch", on(with_gradient(of_neighbour)), "gradients",
        "misleading_gradient",
    ),
}  # fmt: skip
"""Kinds that were invented after the probe had been finished."""
