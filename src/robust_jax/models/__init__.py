"""Image classifiers as flax modules: `create` makes one by name, `bind` joins it to its weights."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp

from robust_jax import extensions
from robust_jax.data.known import is_well_known
from robust_jax.models.adapter import Model, model
from robust_jax.models.bound import BoundModel, bind
from robust_jax.models.digits_cnn import DigitsCNN
from robust_jax.models.maxout import MaxoutCIFAR, MaxoutCNN, MaxoutMLP
from robust_jax.models.mlp import MLP
from robust_jax.models.network import COLLECTIONS, LinenNetwork, Made, Network, NNXNetwork
from robust_jax.models.resnet import FourStageResNet, PreActResNet, ResNet, WideResNet
from robust_jax.models.small_cnn import SmallCNN
from robust_jax.models.torch_weights import from_torch, to_torch
from robust_jax.models.trainable import checked_variables, is_nnx, trainable
from robust_jax.models.vgg import VGG
from robust_jax.options import Range
from robust_jax.options.signatures import check_arguments, checks_arguments

__all__ = [
    "COLLECTIONS", "MODELS", "BoundModel", "DigitsCNN", "FourStageResNet", "LinenNetwork", "MLP", "MaxoutCIFAR",
    "MaxoutCNN", "MaxoutMLP", "Model", "NNXNetwork", "Network", "PreActResNet", "ResNet", "SmallCNN", "VGG",
    "WideResNet", "bind", "checked_variables", "create", "from_torch", "model", "to_torch", "trainable",
]  # fmt: skip

MODELS: dict[str, Callable[..., Any]] = {
    name: maker
    for module in pkgutil.iter_modules(__path__)
    for name, maker in getattr(importlib.import_module(f"{__name__}.{module.name}"), "PRESETS", {}).items()
}
"""Name -> class, or class with some fields set: the ``PRESETS`` of all files of this package."""


@checks_arguments
def create(
    name: str | Callable[..., Any],
    *,
    num_classes: Annotated[int, Range(least=2)],
    mean: Annotated[Any, Range(least=0, most=1, tuples=True)] = 0.0,
    std: Annotated[Any, Range(above=0, most=1, tuples=True)] = 1.0,
    dtype: Any = jnp.float32,
    image_shape: tuple[int, ...] | None = None,
    **fields: Any,
) -> Network:
    """Makes a model that takes images `[B, H, W, C]` in [0, 1] and returns logits `[B, num_classes]`.

    `model.init(key, images)` makes float32 variables and `model.apply(variables, images,
    train=False)` returns the logits, float32 whatever `dtype` is (float64 if that is asked for).
    `train=True` needs `mutable=["batch_stats"]` if the model has BatchNorm and
    `rngs={"dropout": key}` if it has dropout. Equal arguments make equal, hashable models.

    Args:
        name: a key of `MODELS`, or `module:name` of your own, or your own itself: a class of flax's modules, Linen's or
            NNX's, or a function that returns a module. It takes at least `num_classes`, and for NNX `rngs`. `mean`,
            `std`, `dtype` and `image_shape` are passed on if it takes them: without `mean` and `std` it sees the
            images in [0, 1], and without `dtype` only float32 may be asked for.
        num_classes: the number of logits.
        mean: subtracted from the images inside the model, one number or one per channel.
        std: what the images are then divided by, one number or one per channel.
        dtype: the dtype of the model's computations, e.g. `"bfloat16"`.
        image_shape: `(H, W, C)`, for modules of your own whose layers have to know it.
        **fields: the module's own, e.g. `dropout` (small_cnn, mlp, maxout_*, wrn_*), `activation` (all
            but digits_cnn and maxout_*), `batch_norm_axis` (vgg*, resnet*, wrn_*, preact_*),
            `remat` (resnet*, wrn_*, preact_*; less memory for more computation), `padding` (of the same: where strided
            convolutions read zeros) or `conv_general_dilated` (all with convolutions; `jax.lax`'s instead of the one
            that is fast on CPU).

    Raises:
        ValueError: an unknown name or field, listing all valid ones; a model of your own that cannot be imported, does
            not take `num_classes`, or is no flax module.

    Example::

        # my_models.py, then --config.model.name=my_models:Linear
        class Linear(nnx.Module):
            def __init__(self, num_classes, image_shape, rngs):
                self.dense = nnx.Linear(math.prod(image_shape), num_classes, rngs=rngs)

            def __call__(self, images):
                return self.dense(images.reshape(len(images), -1))
    """
    maker = extensions.find("model.name", name, MODELS) if isinstance(name, str) else name
    built_in = isinstance(name, str) and name in MODELS
    name = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    known, takes_any = _fields_of(name, maker)
    if fields.get("batch_norm_axis", "") is None:
        del fields["batch_norm_axis"]  # the default, and valid for models without BatchNorm too
    dtype = _float_dtype(dtype)
    shared = {"num_classes": num_classes, "mean": _as_tuple(mean), "std": _as_tuple(std), "dtype": dtype}
    if not takes_any:
        _refuse_unknown(name, {"num_classes", *fields, *(("dtype",) if dtype != jnp.float32 else ())}, known)
        _check_statistics(name, shared["mean"], shared["std"], known)
    if image_shape is not None and "image_shape" in known:
        shared["image_shape"] = tuple(image_shape)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if built_in:
        check_arguments(maker, (), fields, f"model {name!r}")
    options = {k: v for k, v in shared.items() if takes_any or k in known} | fields
    if "rngs" in known or is_nnx(maker):
        return NNXNetwork(Made(maker, tuple(sorted(options.items()))))
    model = maker(**options)
    if built_in:
        return model
    if not (isinstance(model, nn.Module) or is_nnx(model)):
        raise ValueError(
            f"model {name!r} returned {model!r}: it must return a flax.linen.Module, or take rngs and return a "
            f"flax.nnx.Module"
        )
    return trainable(model)


def _check_statistics(name: str, mean: tuple[float, ...], std: tuple[float, ...], known: Sequence[str]) -> None:
    """Raises ValueError for means or deviations of one's own that the model does not take."""
    lost = {
        field: value
        for field, value, none in (("mean", mean, 0), ("std", std, 1))
        if field not in known and any(one != none for one in value)
    }
    if lost and not is_well_known(mean, std):
        raise ValueError(
            f"model {name!r} does not take {' and '.join(lost)}, so {lost} would have no effect: it is given images in "
            f"[0, 1]. Normalise in the model, or give it the fields mean and std."
        )


def _refuse_unknown(name: str, wanted: set[str], known: Sequence[str]) -> None:
    """Raises ValueError for fields that a model does not have."""
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"model {name!r} has no field {', '.join(map(repr, unknown))}; it has {', '.join(known)}")


def _fields_of(name: str, maker: Callable[..., Any]) -> tuple[list[str], bool]:
    """The keyword arguments of a class or function that are not set already, and whether it takes any others too."""
    if not callable(maker):
        raise ValueError(f"model {name!r} is {maker!r}: it must be a class of flax's modules, or a function")
    preset: dict[str, Any] = {}
    while isinstance(maker, partial):
        preset, maker = maker.keywords | preset, maker.func
    # The signature of a class of NNX is that of its metaclass.
    parameters = inspect.signature(maker.__init__ if is_nnx(maker) else maker).parameters  # type: ignore[misc]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return sorted(named - set(preset) - {"parent", "name", "self"}), takes_any


def _float_dtype(dtype: Any) -> Any:
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype={dtype!r} is no type of floats: give float32, bfloat16 or float16.")
    return found


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in jnp.ravel(jnp.asarray(values)).tolist())
