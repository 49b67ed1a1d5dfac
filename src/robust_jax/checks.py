"""Checks of what users pass in: images, labels, functions of images, and names of attacks.

Of traced arrays only shapes are known, so that under `jax.jit` a check costs a moment of tracing and nothing after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax.extensions import check_name
from robust_jax.files import file_name
from robust_jax.options import raised_by_library
from robust_jax.options.hints import described
from robust_jax.spaces import per_example

ROUNDING = 1e-3
"""How far outside [0, 1] intensities may be for rounding to be the likely reason."""
MOST_RADII = 1000
COLOURS = 4
"""The most channels of a photograph; images of more channels than rows, and than these, have their channels first."""


def is_concrete(*arrays: Any) -> bool:
    """Whether the values of all of them are known: JAX traces none of them."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def has_channels_first(shape: Sequence[int]) -> bool:
    """Whether images of this shape look like ``[B, C, H, W]``."""
    return len(shape) == 4 and shape[3] > max(shape[1], COLOURS)


def check_images(images: Any, in_box: bool = True) -> None:
    """Raises ValueError unless images are floats ``[B, H, W, C]`` of any precision, in [0, 1] if ``in_box``."""
    wanted = f"images must be floats [B, H, W, C]{' in [0, 1]' if in_box else ''}"
    is_array = isinstance(images, np.ndarray | jax.Array)
    if not is_array or images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        whole = is_array and jnp.issubdtype(images.dtype, jnp.integer)
        way_out = ": robust_jax.data.to_float divides bytes by 255" if whole else ""
        raise ValueError(f"{wanted}, got {described(images)}{way_out}.")
    if 0 in images.shape[1:]:
        raise ValueError(f"{wanted}, got {images.shape}: images without pixels.")
    if in_box and is_concrete(images) and images.size:
        values = np.asarray(images)  # not jnp: inside jit JAX traces operations on constants too
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1], got values from {low:.9g} to {high:.9g}: {_remedy(low, high)}."
            )


def _remedy(low: float, high: float) -> str:
    if not np.isfinite([low, high]).all():
        return "some are not finite"
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return "this looks like rounding, so clip them, jnp.clip(images, 0, 1)"
    if low >= 0:
        return "divide bytes by 255"
    return "leave mean and std to the model (robust_jax.models normalise inside), and divide bytes by 255"


def check_batch(images: Any, labels: Any, logits_fn: Callable[[Any], Any]) -> None:
    """Raises ValueError unless images, labels and model fit together.

    Images pass `check_images` and are at least one, labels are integers ``[B]`` below the number of logits, and the
    model passes `checked_logits`.
    """
    check_images(images)
    if not len(images):
        raise ValueError(f"images {images.shape} hold no example: give at least one.")
    is_array = isinstance(labels, np.ndarray | jax.Array)
    if not is_array or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be an array of integers [{len(images)}], one per image; got {described(labels)}."
        )
    logits_fn = checked_logits(logits_fn)
    if is_concrete(images, labels):
        classes = jax.eval_shape(logits_fn, images).shape[1]
        low, high = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels range from {low} to {high}, but the model has {classes} classes (0 to {classes - 1})."
            )


def checked_logits(logits_fn: Any) -> Callable[[Any], Any]:
    """The function, which raises ValueError where it is called unless it returns floats ``[B, K]`` with K >= 2.

    The result is a pytree if the function is one.

    Raises:
      ValueError: a module, of Flax or PyTorch, or something else that is no function.
    """
    if getattr(logits_fn, "func", None) is _logits:
        return logits_fn
    check_function("logits_fn", logits_fn)
    whole = jax.tree_util.all_leaves([logits_fn])
    return jax.tree_util.Partial(_logits, jax.tree_util.Partial(logits_fn) if whole else logits_fn)


def _logits(logits_fn: Callable[[Any], Any], images: Any) -> Any:
    logits = called("logits_fn", logits_fn, images)
    _check_output("logits_fn", logits, "logits [B, K]", "return the logits alone")
    if len(logits.shape) != 2 or logits.shape[0] != len(images):
        raise ValueError(f"logits_fn must return [B, K]; for {len(images)} images it returns {logits.shape}.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits_fn returns {logits.shape}, but a label needs at least one other class, so two logits or more: of "
            f"a sigmoid model with the logit z [B] return jnp.stack([0 * z, z], -1)."
        )
    return per_example.widened(logits)  # attacks compute with them in the precision of images


def checked_losses(loss_fn: Any, has_aux: bool = False) -> Callable[[Any], Any]:
    """The function, which raises ValueError where it is called unless it returns floats ``[B]``, a loss per image.

    Args:
      loss_fn: ``images -> [B]``.
      has_aux: whether it returns ``([B], aux)``.

    Raises:
      ValueError: something that is no function.
    """
    check_function("loss_fn", loss_fn)

    def losses(images: Any) -> Any:
        found = called("loss_fn", loss_fn, images)
        if has_aux and not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError(f"loss_fn must return (losses [B], aux) with has_aux=True, got {described(found)}.")
        loss = found[0] if has_aux else found
        _check_output("loss_fn", loss, "losses [B]", "return the losses alone, or set has_aux=True")
        if loss.shape != (len(images),):
            raise ValueError(
                f"loss_fn must return one loss per image, [{len(images)}], not their mean or one per class; it "
                f"returned {loss.shape}."
            )
        return found

    return losses


def check_function(name: str, function: Any) -> None:
    """Raises ValueError unless it is a function: models are functions once they are joined to their weights."""
    libraries = {base.__module__.split(".")[0] for base in type(function).__mro__}
    if "flax" in libraries and hasattr(function, "init") and getattr(function, "scope", None) is None:
        raise ValueError(f"{name} is a Flax module without weights: give robust_jax.model(module, variables).")
    if "torch" in libraries:
        raise ValueError(
            f"{name} is a PyTorch module: JAX cannot differentiate it, and its images have channels first. For attacks "
            f"without gradients give robust_jax.model(module), for others convert it by robust_jax.models.from_torch."
        )
    if not callable(function):
        raise ValueError(f"{name} must be a function of images, got {described(function)}.")


def called(name: str, function: Callable[[Any], Any], images: Any) -> Any:
    """``function(images)``; what libraries raise in it becomes one message, the function's own ValueErrors pass."""
    try:
        return function(images)
    except RuntimeError:  # memory, or what a host callback raised: no mistake in the function's form
        raise
    except Exception as error:
        its_own = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, ValueError) and its_own and not raised_by_library(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{name} fails for {described(images)} images: {_reason(error, images)}{type(error).__name__}: {first}"
        ) from error


# By the names of flax's errors, since flax is not imported here.
_REASONS = {
    "TraceContextError": "it changes its own variables, as BatchNorm does in training: give robust_jax.model(network)",
    "ModifyScopeVariableError": (
        "it updates its statistics in evaluation too: give BatchNorm use_running_average=not train"
    ),
    "InvalidRngError": "it draws random numbers in evaluation too: let it do so only in training",
}


def _reason(error: Exception, images: Any) -> str:
    leaves_jax = jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError
    if isinstance(error, (*leaves_jax, jax.errors.TracerIntegerConversionError)):
        return (
            "it uses values that JAX traces, in NumPy, int() or an if. Write it in jax.numpy, or for attacks without "
            "gradients give robust_jax.attacks.black_box(function, num_classes). "
        )
    if has_channels_first(getattr(images, "shape", ())):
        return "their channels seem to come first: give jnp.moveaxis(images, 1, -1). "
    if isinstance(error, TypeError) and "'train'" in str(error):
        return "its module takes no train: give lambda images: module.apply(variables, images). "
    known = _REASONS.get(type(error).__name__)
    return f"{known}. " if known else ""


def _check_output(name: str, found: Any, wanted: str, alone: str) -> None:
    if isinstance(found, tuple | list | dict) or not hasattr(found, "shape") or not hasattr(found, "dtype"):
        remedy = "is a return missing?" if found is None else f"{alone}."
        raise ValueError(f"{name} must return an array of {wanted}, got {described(found)}: {remedy}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must return {wanted} as floats, got {described(found)}.")


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
