"""Networks without any defence that masks gradients, of many kinds: no sign may accuse them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks.masking.networks import (
    FEW,
    IMAGES,
    KEY,
    LABELS,
    THEIRS,
    TRAIN,
    Model,
    chain,
    fitted,
    layers,
    perceptron,
)
from benchmarks.masking.planted import Normalised
from robust_jax import losses
from robust_jax.attacks import pgd
from robust_jax.evaluation.attack import Attack
from robust_jax.penalties.gradient_norms import value_and_gradient_norm
from robust_jax.spaces.threat_models import ThreatModel

BALL = ThreatModel("additive", "linf", 0.1)


def attacks(radius: float = 0.1, pixels: float = 0.155) -> dict[str, Attack]:
    """What an evaluation of the digits runs."""
    settings = {"steps": 20, "restarts": 2}
    return {
        "additive": Attack(pgd, ThreatModel("additive", "linf", radius), settings),
        "flow": Attack(pgd, ThreatModel("flow", "linf", pixels), settings),
    }


class Honest(NamedTuple):
    """A model, the images on which it is evaluated, and how."""

    says: str
    model: Callable[[], Model]
    images: Array = FEW
    labels: Array = THEIRS
    attacks: Mapping[str, Attack] = attacks()


def adversarial(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """Adversarial training (Madry et al. 2018)."""
    found = pgd(model, images, labels, BALL, key=key, steps=5, keep="last")
    return losses.cross_entropy(model(jax.lax.stop_gradient(found.images)), labels).mean()


def trades(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """TRADES (Zhang et al. 2019) with β = 6."""
    clean = model(images)

    def apart(logits: Array, _: Array) -> Array:
        return losses.kl_divergence(logits, jax.lax.stop_gradient(clean))

    found = pgd(model, images, labels, BALL, key=key, steps=5, keep="last", loss=apart)
    near = model(jax.lax.stop_gradient(found.images))
    return (losses.cross_entropy(clean, labels) + 6 * losses.kl_divergence(near, clean)).mean()


def fgr(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """Flow-gradient regularisation (Xia & Li 2021)."""
    loss, penalty = value_and_gradient_norm(
        lambda x: losses.cross_entropy(model(x), labels), images, "flow", norm="l2", power=2
    )
    return (loss + 3 * penalty).mean()


def hinge(model: Model, images: Array, labels: Array, key: Array) -> Array:
    """A margin of 20 in the logits."""
    return jnp.maximum(20 + losses.margin(model(images), labels), 0).mean()


def linear() -> Model:
    return fitted(partial(chain, jax.nn.relu), layers((64, 10)))


def two_classes() -> Model:
    return fitted(partial(chain, jax.nn.relu), layers((64, 64, 2)), data=(IMAGES[:TRAIN], LABELS[:TRAIN] % 2))


def pairs(images: Array, labels: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Two digits beside each other: 100 classes."""
    left, right = np.random.default_rng(seed).integers(0, len(images), (2, count))
    return jnp.concatenate([images[left], images[right]], 2), 10 * labels[left] + labels[right]


def hundred_classes() -> Model:
    data = pairs(IMAGES[:TRAIN], LABELS[:TRAIN], 20_000, 0)
    return fitted(partial(chain, jax.nn.relu), layers((128, 256, 100)), data=data, steps=800)


def in_half(weights: Any, images: Array) -> Array:
    """The forward pass in bfloat16."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    return chain(jax.nn.relu, half, images.astype(jnp.bfloat16)).astype(jnp.float32)


def batch_norm() -> Model:
    """BatchNorm, trained in train mode, used in eval mode."""
    net, optimizer = Normalised(), optax.adam(2e-3)
    variables = net.init(KEY, FEW[:1])
    state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables: Any, state: Any, index: Array) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[Array, Any]:
            given = variables | {"params": params}
            logits, new = net.apply(given, IMAGES[index], train=True, mutable=["batch_stats"])
            return losses.cross_entropy(logits, LABELS[index]).mean(), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state

    rng = np.random.default_rng(0)
    for _ in range(300):
        variables, state = step(variables, state, rng.integers(0, TRAIN, 64))
    return jax.tree_util.Partial(net.apply, variables)


def untrained() -> Model:
    return jax.tree_util.Partial(partial(chain, jax.nn.relu), layers((64, 64, 10)))


SIDE_BY_SIDE = pairs(IMAGES[TRAIN:], LABELS[TRAIN:], 64, 1)

MODELS: dict[str, Honest] = {
    "standard": Honest("standard training", perceptron),
    "long": Honest("standard training, ten times as long", partial(perceptron, steps=3000)),
    "PGD": Honest("adversarial training", partial(perceptron, loss=adversarial)),
    "TRADES": Honest("TRADES", partial(perceptron, loss=trades)),
    "FGR": Honest("flow-gradient regularisation", partial(perceptron, loss=fgr)),
    "linear": Honest("a linear classifier", linear, attacks=attacks(0.05)),
    "large margin": Honest("a hinge loss with a margin of 20", partial(perceptron, loss=hinge)),
    "tanh": Honest("tanh activations", partial(perceptron, jnp.tanh)),
    "2 classes": Honest("even or odd", two_classes, labels=THEIRS % 2),
    "100 classes": Honest("two digits side by side", hundred_classes, *SIDE_BY_SIDE, attacks=attacks(0.05, 0.1)),
    "bfloat16": Honest("computed in bfloat16", lambda: jax.tree_util.Partial(in_half, perceptron().args[0])),
    "BatchNorm": Honest("BatchNorm in eval mode", batch_norm),
    "random": Honest(
        "random weights, its own predictions as labels", untrained, labels=untrained()(FEW).argmax(-1),
        attacks=attacks(0.02, 0.05),
    ),
}  # fmt: skip
