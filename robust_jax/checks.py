"""Checks of what users hand in: arrays (of traced ones, whose values are unknown, only shapes), names and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from robust_jax import perturbations


def _concrete(*arrays: Any) -> bool:
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def check_images(images: Any) -> None:
    """Raises ValueError unless images are float ``[B, H, W, C]`` in [0, 1]."""
    if getattr(images, "ndim", None) != 4 or not np.issubdtype(images.dtype, np.floating):
        what = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"images must be floats [B, H, W, C] in [0, 1], got {what}.")
    if _concrete(images) and images.size:
        values = np.asarray(images)  # inside jit JAX traces operations on constants too
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1], got values from {low:g} to {high:g}: divide bytes by 255, and "
                f"leave mean and std to the model (robust_jax.models normalise inside)."
            )


def check_batch(images: Any, labels: Any, logits_fn: Callable[[Any], Any], threat: Any = None) -> None:
    """`check_images`, labels are ``[B]`` integers below the number of logits, and at δ = 0 a threat changes nothing."""
    check_images(images)
    shape, dtype = getattr(labels, "shape", None), getattr(labels, "dtype", type(labels).__name__)
    if shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be an array of integers [{len(images)}], one an image; got {dtype} {shape}.")
    if threat is not None:
        _check_space(threat, images)
    if _concrete(images, labels) and labels.size:
        shape = jax.eval_shape(logits_fn, images).shape
        if len(shape) != 2 or shape[0] != len(images):
            raise ValueError(f"logits_fn must return [B, K]; for {len(images)} images it returns {shape}.")
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= shape[1]:
            raise ValueError(
                f"labels go from {low} to {high}, but the model has {shape[1]} classes (0 to {shape[1] - 1})."
            )


def check_attack_name(name: str) -> None:
    """Raises ValueError for the name of an attack that results have already."""
    if name in ("clean", "worst_case"):
        raise ValueError(f"attacks.{name}: results have that name already: give the attack another.")


def _check_space(threat: Any, images: Any) -> None:
    """Raises ValueError for what is no threat model, and for a space of the user's own whose δ = 0 is not no change."""
    space = getattr(threat, "perturbation", None)
    if space is None:
        raise ValueError(
            f"threat={threat!r} is no threat model: give robust_jax.ThreatModel(perturbation, norm, radius)."
        )
    if not _concrete(images) or not len(images):
        return
    for part in space.parts or (space,):
        if part in perturbations.PERTURBATIONS.values():
            continue
        one = np.asarray(images)[:1]
        with jax.ensure_compile_time_eval():
            zeros = part.zeros(one)
            same = np.asarray(part.apply(one, zeros))
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(zeros)):
            raise ValueError(f"perturbation {part.name}: zeros(images) must be 0 everywhere, the δ of no change.")
        if same.shape != one.shape or not np.allclose(same, one, atol=1e-2):
            raise ValueError(f"perturbation {part.name}: apply(images, zeros(images)) must be images, unchanged.")


GIVEN = ("key", "memory", "steps_done")  # by whoever calls it, not by a config


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a point, a term or an attack that a config gives: its options."""
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in GIVEN}


def choose(what: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError, with all choices, unless value is one of them."""
    choices = sorted(choices)
    if value not in choices:
        raise ValueError(f"{what}={value!r} is unknown: choose one of {choices}.")


_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def check_options(
    path: str, entry: Mapping[str, Any], known: Mapping[str, Callable[..., Any]], own: Iterable[str] = ()
) -> None:
    """Raises ValueError unless entry names a known kind and has the options of that kind, in their types.

    Args:
      path: of the entry in the config, for messages.
      entry: ``dict(kind=..., **options)``.
      known: kind -> function, whose keyword-only parameters are the options.
      own: names that are valid in every entry.
    """
    choose(f"{path}.kind", entry.get("kind"), known)
    options = options_of(known[entry["kind"]])
    valid = sorted({"kind", *own, *options})
    if unknown := sorted(set(entry) - set(valid)):
        raise ValueError(f"{path} (kind {entry['kind']}) has no option {unknown}: valid are {valid}.")
    if missing := [n for n, p in options.items() if p.default is p.empty and n not in entry]:
        raise ValueError(f"{path} (kind {entry['kind']}) lacks {missing}: valid options are {valid}.")
    for name, parameter in options.items():
        expected, value = _TYPES.get(str(parameter.annotation)), entry.get(name)
        wrong_bool = isinstance(value, bool) and expected is not bool
        if isinstance(value, Mapping):  # a schedule
            continue
        if expected and name in entry and (wrong_bool or not isinstance(value, expected)):
            raise ValueError(f"{path}.{name}={value!r} is of type {type(value).__name__}, not {parameter.annotation}.")
