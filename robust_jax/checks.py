"""Checks of images, labels, models and threat models that users pass in; of traced arrays only shapes are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from robust_jax.extensions import check_name
from robust_jax.files import file_name
from robust_jax.spaces import registry

MOST_RADII = 1000


def _concrete(*arrays: Any) -> bool:
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def check_images(images: Any) -> None:
    """Raises ValueError unless images are float ``[B, H, W, C]`` in [0, 1]."""
    if getattr(images, "ndim", None) != 4 or not np.issubdtype(images.dtype, np.floating):
        what = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"images must be floats [B, H, W, C] in [0, 1], got {what}.")
    if _concrete(images) and images.size:
        values = np.asarray(images)  # not jnp: inside jit JAX traces operations on constants too
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1], got values from {low:g} to {high:g}: divide bytes by 255, and "
                f"leave mean and std to the model (robust_jax.models normalise inside)."
            )


def check_batch(images: Any, labels: Any, logits_fn: Callable[[Any], Any], threat: Any = None) -> None:
    """Raises ValueError unless images, labels, model and threat model fit together.

    Images pass `check_images`, labels are integers ``[B]`` below the number of logits, the model returns ``[B, K]``,
    and the perturbation of ``threat`` changes nothing at δ = 0.
    """
    check_images(images)
    shape, dtype = getattr(labels, "shape", None), getattr(labels, "dtype", type(labels).__name__)
    if shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be an array of integers [{len(images)}], one per image; got {dtype} {shape}.")
    if threat is not None:
        _check_space(threat, images)
    if _concrete(images, labels) and labels.size:
        shape = jax.eval_shape(logits_fn, images).shape
        if len(shape) != 2 or shape[0] != len(images):
            raise ValueError(f"logits_fn must return [B, K]; for {len(images)} images it returns {shape}.")
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= shape[1]:
            raise ValueError(
                f"labels range from {low} to {high}, but the model has {shape[1]} classes (0 to {shape[1] - 1})."
            )


def check_attack_name(name: str) -> None:
    """Raises ValueError for an attack's name that results use for something else, or that cannot name a file."""
    check_name("attacks", name)
    if name in ("clean", "worst_case"):
        raise ValueError(f"attacks.{name}: results use this name already: choose another name for the attack.")


def check_attack_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that `check_attack_name` refuses, and for two whose pictures would be one file."""
    files: dict[str, str] = {}
    for name in names:
        check_attack_name(name)
        if (other := files.setdefault(file_name(name), name)) != name:
            raise ValueError(
                f"attacks {other!r} and {name!r} would write the same files, named {file_name(name)!r}: letters other "
                f"than A to Z, digits and _.- are replaced there. Choose names that differ in more."
            )


def check_curve(what: str, curve: Any) -> None:
    """Raises ValueError unless a curve is at most 1,000 finite multiples of the radius, none of them negative."""
    curve = curve.tolist() if hasattr(curve, "tolist") else curve
    if not isinstance(curve, Sequence) or isinstance(curve, str):
        raise ValueError(f"{what}={curve!r}: give a tuple of multiples of the radius, such as (0, 0.5, 1, 2).")
    if len(curve) > MOST_RADII:
        raise ValueError(f"{what} has {len(curve):,} radii: at most {MOST_RADII:,} are measured, each by an attack.")
    for multiple in curve:
        number = isinstance(multiple, int | float | np.number) and not isinstance(multiple, bool)
        if not number or not 0 <= multiple < np.inf:
            shown = f"({multiple!r}, ...)" if len(curve) > 20 else repr(curve)
            raise ValueError(f"{what}={shown}: give multiples >= 0 of the radius, such as (0, 0.5, 1, 2).")


def _check_space(threat: Any, images: Any) -> None:
    """Raises ValueError for anything but a threat model, and for a user's perturbation that changes images at δ = 0."""
    space = getattr(threat, "perturbation", None)
    if space is None:
        raise ValueError(
            f"threat={threat!r} is not a threat model: give robust_jax.ThreatModel(perturbation, norm, radius)."
        )
    if not _concrete(images) or not len(images):
        return
    for part in space.parts or (space,):
        if part in registry.built_in().values():
            continue
        one = np.asarray(images)[:1]
        with jax.ensure_compile_time_eval():
            zeros = part.zeros(one)
            same = np.asarray(part.apply(one, zeros))
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(zeros)):
            raise ValueError(f"perturbation {part.name}: zeros(images) must be 0 everywhere: the δ that has no effect.")
        if same.shape != one.shape or not np.allclose(same, one, atol=1e-2):
            raise ValueError(f"perturbation {part.name}: apply(images, zeros(images)) must return images unchanged.")
