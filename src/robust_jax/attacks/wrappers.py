"""Adapters for models that are not in JAX, have no useful gradient, or are random (Athalye et al. 2018).

    rj.attacks.square(black_box(predict, num_classes=10), ...)  # predict: any Python function of NumPy images
    quantise = bpda(lambda x: jnp.round(x * 7) / 7)  # gradients as of the identity
    rj.attacks.pgd(lambda x: model(quantise(x)), ...)
    rj.attacks.pgd(expectation(random_model, key, draws=20), ...)  # random_model: (images, key) -> logits

All results are pytrees, so that they can be arguments of jitted functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from robust_jax.attacks.result import LogitsFn
from robust_jax.extensions import choose
from robust_jax.options import Count
from robust_jax.options.signatures import checks_arguments
from robust_jax.spaces.perturbations import Images

MEANS = ("probabilities", "logits")


def as_pytree(function: Callable[..., Any]) -> Any:
    """A function as an argument of jitted ones: itself if it is a pytree, else static, part of the cache key."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def black_box(function: Callable[[np.ndarray], Any], num_classes: int) -> LogitsFn:
    """A Python function ``[B, H, W, C] -> [B, K]`` of NumPy images as a logits_fn for attacks that take no gradient.

    These are square, random_search, grid, nes, spsa, pointwise and the noises. The function is called on the host, with
    as many images as the attack computes at a time, and must be deterministic. On a CPU with a single core JAX may
    deadlock in it: set JAX_CPU_ENABLE_ASYNC_DISPATCH=0 in the environment.

    Args:
      function: float32 images in [0, 1] to logits, or to log-probabilities.
      num_classes: K.

    Raises:
      ValueError: something that is no function, fewer than two classes; if an attack takes a gradient.
    """
    if not callable(function) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise ValueError(
            f"black_box takes a function of NumPy images and num_classes, a whole number from 2 on; got "
            f"function={function!r}, num_classes={num_classes!r}."
        )

    def on_host(images: Any) -> np.ndarray:
        logits = np.asarray(function(np.asarray(images)), np.float32)
        if logits.shape != (len(images), num_classes):
            raise ValueError(
                f"black_box: for {len(images)} images the function returned {logits.shape}, not ({len(images)}, "
                f"{num_classes}), as num_classes={num_classes} says."
            )
        return logits

    @jax.custom_jvp
    def logits_fn(images: Array) -> Array:
        shape = jax.ShapeDtypeStruct((len(images), num_classes), jnp.float32)
        return jax.pure_callback(on_host, shape, images, vmap_method="sequential")

    @logits_fn.defjvp
    def _(*_: Any) -> Any:
        raise ValueError(
            "a black box has no gradient: use an attack without (square, random_search, grid, nes, spsa, pointwise), "
            "attacks.bpda with a differentiable substitute, or for a PyTorch module write it in Linen and convert its "
            "weights by robust_jax.models.from_torch."
        )

    return jax.tree_util.Partial(logits_fn)


@checks_arguments
def bpda(forward: Callable[[Array], Array], backward: Callable[[Array], Array] | None = None) -> Callable[..., Array]:
    """A function with the values of one and the derivative of another: BPDA (Athalye et al. 2018, section 4.1).

    Args:
      forward: the function of images that is computed: a step of preprocessing, or a whole model.
      backward: the function that is differentiated instead, at the same images, with results of the same shape; None:
        the identity, for steps that hardly change the image.

    Returns:
      The function. It is differentiable in images only, not in the weights of ``forward`` and ``backward``.
    """
    return jax.tree_util.Partial(_replaced, as_pytree(forward), as_pytree(backward or _identity))


def _identity(images: Array) -> Array:
    return images


@jax.custom_jvp
def _replaced(forward: Any, backward: Any, images: Array) -> Array:
    return forward(images)


@_replaced.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    forward, backward, images = primals
    value = forward(images)
    instead, tangent = jax.jvp(backward, (images,), (tangents[2],))
    if instead.shape != value.shape:
        raise ValueError(f"bpda: forward returns {value.shape}, but backward {instead.shape}: give equal shapes.")
    return value, tangent.astype(value.dtype)


@checks_arguments
def expectation(
    logits_fn: Callable[[Images, Key[Array, ""]], Float[Array, "b k"]],
    key: Key[Array, "..."],
    draws: Count = 20,
    mean: str = "probabilities",
) -> LogitsFn:
    """The mean over draws of a random model, the same draws at every call: EOT (Athalye et al. 2018, section 4.2).

    Its gradient is the mean gradient, and with fixed draws an attack maximises a single function. Success means that
    the mean of these draws is wrong: evaluate the images with other draws. Memory is that of ``draws`` times as many
    images.

    Args:
      logits_fn: ``(images, key) -> logits``, called with one image and key at a time under `jax.vmap`.
      key: one key, whose draws all images share, or one per image ``[B]``.
      draws: the number of draws.
      mean: of "probabilities" (the result is their logarithm) or "logits".

    Raises:
      ValueError: no draws, or an unknown mean.
    """
    choose("expectation: mean", mean, MEANS)
    return jax.tree_util.Partial(partial(_expected, draws, mean), as_pytree(logits_fn), key)


def _expected(draws: int, mean: str, logits_fn: Any, key: Array, images: Images) -> Array:
    def one(image: Array, key: Array) -> Array:
        logits = jax.vmap(lambda k: logits_fn(image[None], k)[0])(jax.random.split(key, draws))
        if mean == "logits":
            return logits.mean(0)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), 0) - jnp.log(draws)

    return jax.vmap(one, (0, 0 if key.ndim else None))(images, key)
