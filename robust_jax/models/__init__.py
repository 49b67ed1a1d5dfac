"""Image classifiers as flax modules: `create` makes one by name, `bind` joins it to its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robust_jax.models.digits_cnn import DigitsCNN
from robust_jax.models.maxout import MaxoutCIFAR, MaxoutCNN, MaxoutMLP
from robust_jax.models.mlp import MLP
from robust_jax.models.resnet import PreActResNet, ResNet, WideResNet
from robust_jax.models.small_cnn import SmallCNN
from robust_jax.models.torch_weights import from_torch, to_torch
from robust_jax.models.vgg import VGG

__all__ = [
    "MODELS", "BoundModel", "DigitsCNN", "MLP", "MaxoutCIFAR", "MaxoutCNN", "MaxoutMLP", "PreActResNet", "ResNet",
    "SmallCNN", "VGG", "WideResNet", "bind", "create", "from_torch", "to_torch",
]  # fmt: skip

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "small_cnn": SmallCNN,
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "vgg19": partial(VGG, depth=19),
    "mlp": MLP,
    "maxout_mlp": MaxoutMLP,
    "maxout_cnn": MaxoutCNN,
    "maxout_cifar": MaxoutCIFAR,
    "resnet20": partial(ResNet, depth=20),
    "resnet32": partial(ResNet, depth=32),
    "resnet56": partial(ResNet, depth=56),
    "wrn_16_4": partial(WideResNet, depth=16, width=4),
    "wrn_28_10": partial(WideResNet, depth=28, width=10),
    "wrn_34_10": partial(WideResNet, depth=34, width=10),
    "preact_resnet18": PreActResNet,
}


def create(
    name: str,
    *,
    num_classes: int,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> nn.Module:
    """Makes a model that takes images `[B, H, W, C]` in [0, 1] and gives logits `[B, num_classes]`.

    `model.init(key, images)` makes float32 variables and `model.apply(variables, images,
    train=False)` gives the logits, float32 whatever `dtype` is (float64 where that is asked for).
    `train=True` needs `mutable=["batch_stats"]` where the model has BatchNorm and
    `rngs={"dropout": key}` where it has dropout. Equal arguments make equal, hashable models.

    Args:
        name: one of `MODELS`.
        num_classes: the number of logits.
        mean: subtracted from the images inside the model, one number or one a channel.
        std: what they are divided by then.
        dtype: the compute dtype, e.g. `"bfloat16"`.
        **fields: the module's own, e.g. `dropout` (small_cnn, mlp, maxout_*, wrn_*), `activation` (all
            but digits_cnn and maxout_*), `batch_norm_axis` (vgg*, resnet*, wrn_*, preact_*),
            `remat` (resnet*, wrn_*, preact_*; less memory for more computation) or `conv_general_dilated`
            (all with convolutions; `jax.lax`'s instead of the one that is fast on CPU).

    Raises:
        ValueError: for an unknown name or field, listing all there are.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    maker = MODELS[name]
    if fields.get("batch_norm_axis", "") is None:
        del fields["batch_norm_axis"]  # the default, and right for a model without BatchNorm too
    preset = maker.keywords if isinstance(maker, partial) else {}
    module: Any = maker.func if isinstance(maker, partial) else maker
    known = sorted({f.name for f in dataclass_fields(module)} - set(preset) - {"parent", "name"})
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"model {name!r} has no field {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
    mean, std = _as_tuple(mean), _as_tuple(std)
    if any(value <= 0 for value in std):
        raise ValueError(f"std is {std}; every value must be positive")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return maker(num_classes=num_classes, mean=mean, std=std, dtype=jnp.dtype(dtype), **fields)


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in jnp.ravel(jnp.asarray(values)).tolist())


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["model"])
@dataclass(frozen=True, eq=False)  # hashed by identity: its variables are no hashable value
class BoundModel:
    """A model and its variables: a function of images and a pytree of the variables."""

    model: nn.Module
    variables: Mapping[str, Any]

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Logits of the images in eval mode."""
        logits: Any = self.model.apply(self.variables, images, train=False)
        return logits


def bind(model: nn.Module, variables: Mapping[str, Any]) -> BoundModel:
    """Joins a model to its variables: `bind(model, variables)(images)` gives logits in eval mode.

    The result is a pytree, so that it can be an argument of a jitted function, which then compiles
    once for all weights of equal models:

        attack = jax.jit(functools.partial(pgd, steps=40))
        for variables in checkpoints:
            attack(bind(model, variables), images, labels, threat, key=key)
    """
    return BoundModel(model, variables)
