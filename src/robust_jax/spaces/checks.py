"""Checks of threat models and perturbations against the images that they are to change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from robust_jax.checks import called, has_channels_first, is_concrete
from robust_jax.options.hints import described
from robust_jax.spaces import registry, threat_models
from robust_jax.spaces.perturbations import Perturbation
from robust_jax.spaces.threat_models import ThreatModel


def check_threat(threat: Any, images: Any) -> None:
    """Raises ValueError for what is no threat model, or does not fit the images.

    A perturbation of the user's own must change nothing at δ = 0; one that moves pixels passes `check_layout`.
    """
    space = getattr(threat, "perturbation", None)
    if space is None:
        raise ValueError(
            f"threat={threat!r} is not a threat model: give robust_jax.ThreatModel(perturbation, norm, radius)."
        )
    check_layout(space, images)
    warn_of_radius(threat, images.shape)
    jax.eval_shape(lambda x: threat_models.in_radii(threat, space.zeros(x)), images)  # whether the radius fits δ
    check_space(space, images)


def check_layout(space: Perturbation, images: Any) -> None:
    """Raises ValueError if the perturbation moves pixels and the images have their channels first, by their shape.

    Images of more channels than rows are taken to be ``[B, C, H, W]``, unless they have at most four channels. For
    images that are meant so give ``dataclasses.replace(perturbation, moves_pixels=False)``. Other perturbations do not
    care which axis is which, but a network does: they warn once.
    """
    moving = [part for part in space.parts or (space,) if part.moves_pixels]
    _, height, _, channels = images.shape
    if not has_channels_first(images.shape):
        return
    if not moving:
        text = "images %s have %d channels but %d rows. If channels come first, give jnp.moveaxis(images, 1, -1)."
        logging.log_first_n(logging.WARNING, text, 1, images.shape, channels, height)
    if moving:
        raise ValueError(
            f"images {images.shape} have {channels} channels but {height} rows, and {moving[0].name} moves pixels: "
            f"with channels first give jnp.moveaxis(images, 1, -1) to it and to the model; if this is meant, give the "
            f"perturbation dataclasses.replace({moving[0].name}, moves_pixels=False)."
        )


def check_space(space: Perturbation, images: Any) -> None:
    """Raises ValueError for a perturbation of the user's own that is not what a `Perturbation` is.

    It fails, changes an image at δ = 0, has one δ for all images, or mixes the images of a batch.
    """
    for part in space.parts or (space,):
        if part not in registry.built_in().values():
            _check_own(part, images)


def _check_own(part: Perturbation, images: Any) -> None:
    zeros_of, apply_of = (f"perturbation {part.name}: {name}" for name in ("zeros", "apply"))
    shape = jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype)
    two = called(zeros_of, lambda x: jax.eval_shape(part.zeros, x), shape)
    if shared := [leaf.shape for leaf in jax.tree.leaves(two) if leaf.shape[:1] != (2,)]:
        raise ValueError(
            f"{zeros_of}(images) must have an entry for each image, [B, ...]; for 2 images it is {shared[0]}. One δ "
            f"for all images is for attacks.universal_gradient and the like to make."
        )
    made = called(apply_of, lambda x: jax.eval_shape(part.apply, x, two), shape)
    if getattr(made, "shape", None) != shape.shape:
        raise ValueError(f"{apply_of}(images, zeros(images)) must return images unchanged, not {described(made)}.")
    if not is_concrete(images) or not len(images):
        return
    few: Any = np.asarray(images)[:2]
    few = np.concatenate([few, few[:1, ::-1]])  # several, and another number than that of rows or columns
    with jax.ensure_compile_time_eval():
        zeros = part.zeros(few)
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(zeros)):
            raise ValueError(f"{zeros_of}(images) must be 0 everywhere: the δ that has no effect.")
        if not np.allclose(called(apply_of, lambda x: part.apply(x, zeros), few), few, atol=1e-2):
            raise ValueError(f"{apply_of}(images, zeros(images)) must return images unchanged.")
        draw = np.random.default_rng(0)
        delta = jax.tree.map(lambda z: jnp.asarray(0.1 * draw.standard_normal(z.shape), z.dtype), zeros)
        together = np.asarray(called(apply_of, lambda x: part.apply(x, delta), few))
        alone = [part.apply(few[i : i + 1], jax.tree.map(lambda d, i=i: d[i : i + 1], delta)) for i in range(len(few))]
    if not np.allclose(together, np.concatenate(alone), atol=1e-2, equal_nan=True):
        raise ValueError(
            f"{apply_of}(images, δ) must change each image by its own entry of δ: a batch gives other images than one "
            f"after another. Are axes missing, as in δ[:, None, None, None], or is something averaged over the batch?"
        )


def warn_of_radius(threat: ThreatModel, shape: tuple[int, ...] = ()) -> None:
    """Warns, once, of a radius whose ball holds every image, or that may move every pixel out of the image.

    Of the norms that bound each number: a /255 was forgotten, or rotations and shifts were given one radius, which is
    one of degrees and of pixels. Of flows and shifts only if the shape of the images is given.
    """
    one = not threat.perturbation.parts
    parts = (threat.perturbation,) if one else threat.perturbation.parts
    norms, radii = ((threat.norm,), (threat.radius,)) if one else (threat.norm, threat.radius)
    side = max(shape[1:3], default=np.inf)
    for part, norm, radius in zip(parts, norms, radii, strict=True):
        if norm not in ("linf", "l2inf") or not is_concrete(radius):
            continue
        shift = np.ravel(radius)[-2:] if part.name == "affine" else np.ravel(radius)
        if part.name == "additive" and np.max(radius) > 1:
            text = "radius=%g of an additive linf ball holds every image: intensities lie in [0, 1]. Is it %g/255?"
            logging.log_first_n(logging.WARNING, text, 1, np.max(radius), np.max(radius))
        elif part.name in ("flow", "affine") and np.max(shift) >= side:
            text = "radius=%g of %s moves pixels as far as images %s are wide: it is in pixels%s."
            more = ", and for affine (degrees, pixels down, pixels across)" if part.name == "affine" else ""
            logging.log_first_n(logging.WARNING, text, 1, np.max(shift), part.name, shape, more)


def warn_of_sigma(space: Perturbation, sigma: Any, images: Any) -> None:
    """Warns, once, of noise that leaves nothing of an image: intensities above 1, flows longer than the image."""
    parts = space.parts or (space,)
    sigmas = sigma if space.parts and isinstance(sigma, tuple | list) else (sigma,) * len(parts)
    for part, value in zip(parts, sigmas, strict=False):  # `gaussian_delta` refuses another number of them
        most = {"additive": 1, "flow": max(images.shape[1:3])}.get(part.name)
        if most and is_concrete(value) and np.max(value) > most:
            text = (
                "sigma=%g of %s noise leaves nothing of images %s: it is in units of δ (intensity in [0, 1], pixels)."
            )
            logging.log_first_n(logging.WARNING, text, 1, np.max(value), part.name, images.shape)
