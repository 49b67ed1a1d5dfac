"""Weights from PyTorch and to it: `from_torch` reads a state dict, `to_torch` fills one. Neither imports torch.

Layers are matched by their order, not by their names, so that any PyTorch code of the same network works. In flax it is
the order of the calls, in PyTorch that of registration, where the 1x1 convolution of a block's shortcut comes last (as
in pytorch-cifar, the WideResNet of TRADES and torchvision).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from robust_jax.models.bound import BoundModel, bind
from robust_jax.options import Count
from robust_jax.options.hints import described
from robust_jax.options.signatures import checks_arguments

# Collection and name of a flax leaf, and its name in PyTorch.
_DENSE = {("params", "kernel"): "weight", ("params", "bias"): "bias"}
_NORM = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_LEAVES: dict[type[nn.Module], dict[tuple[str, str], str]] = {nn.Conv: _DENSE, nn.Dense: _DENSE, nn.BatchNorm: _NORM}


ImageShape = tuple[Count, Count, Count]


class _Pair(NamedTuple):
    """A flax leaf, the key of its tensor, and the number of channels of the map that a dense layer flattens."""

    path: tuple[str, ...]
    key: str
    channels: int


@checks_arguments
def from_torch(
    model: Any, state_dict: Mapping[str, Any], image_shape: ImageShape, check: tuple[Any, Any] | None = None
) -> dict[str, Any]:
    """The variables of `model` from the `state_dict()` of the same network in PyTorch.

        images = torch.rand(8, 3, 32, 32)
        check = (images.permute(0, 2, 3, 1), net.eval()(images))
        variables = rj.models.from_torch(model, net.state_dict(), (32, 32, 3), check)
        logits_fn = rj.bind(model, variables)

    Convolutions go from OIHW to HWIO, dense kernels are transposed, and where a dense layer takes a flattened map, its
    inputs go from CHW order to HWC order. PyTorch networks often take images that are normalised already: give
    `models.create` their mean and std.

    Args:
        model: a Linen module of convolutions, dense layers and BatchNorm, as all of `MODELS` are.
        state_dict: of tensors or numpy arrays; layers in the order of registration.
        image_shape: `(height, width, channels)` of one image.
        check: `(images, logits)`, some images `[B, H, W, C]` and the logits that the network in PyTorch gives for them
            in eval mode. Networks of the same weights may differ in padding, activations or normalisation, which the
            weights alone do not show.

    Raises:
        ValueError: no Linen module, such as one of NNX; if the numbers of layers, a shape or the presence of a bias
            differ, naming both; if the logits differ by more than a thousandth of the largest.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"from_torch: model is {described(model)}: give a Linen module (flax.linen.Module) of the same layers, in "
            f"the same order."
        )
    pairs = _pairs(model, state_dict, image_shape)
    variables = unflatten_dict(
        {p.path: jnp.asarray(_to_flax(_array(state_dict[p.key]), p.channels), jnp.float32) for p in pairs}
    )
    if check is not None:
        _compare(bind(model, variables), *map(_array, check))
    return variables


def _compare(logits_fn: BoundModel, images: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError unless the logits of the images are the expected ones, but for rounding."""
    if images.ndim != 4:
        raise ValueError(f"from_torch: check needs images [B, H, W, C] and logits [B, K], got {images.shape}.")
    found = np.asarray(logits_fn(jnp.asarray(images, jnp.float32)))
    if found.shape != expected.shape:
        raise ValueError(f"from_torch: the logits of check have the shape {expected.shape}, here it is {found.shape}.")
    # In float32, two orders of summation differ by some 1e-6 of the largest logit per layer: 1e-3 is far beyond.
    worst, largest = np.abs(found - expected).max(), np.abs(expected).max()
    if not worst <= 1e-3 * largest:
        raise ValueError(
            f"from_torch: the weights fit, but the logits of check differ by up to {worst:.3g}, and the largest is "
            f"{largest:.3g}: the networks differ in what has no weights. Look at mean and std, at paddings and strides "
            f"(a shortcut without weights), activations, the epsilon of BatchNorm, and that PyTorch's is in eval mode."
        )


@checks_arguments
def to_torch(
    model: nn.Module, variables: Mapping[str, Any], like: Mapping[str, Any], image_shape: ImageShape
) -> dict[str, Any]:
    """The inverse of `from_torch`: a state dict with the names and types of `like` and the values of `variables`.

        net.load_state_dict(rj.models.to_torch(model, variables, net.state_dict(), (32, 32, 3)))

    Args:
        model: as for `from_torch`.
        variables: its own.
        like: the state dict of the same network in PyTorch, of tensors or numpy arrays; entries without a
            counterpart, such as BatchNorm's `num_batches_tracked`, are kept.
        image_shape: `(height, width, channels)` of one image.

    Raises:
        ValueError: as `from_torch`.
    """
    flat = flatten_dict(dict(variables))
    filled = dict(like)
    for pair in _pairs(model, like, image_shape):
        if pair.path not in flat:
            raise ValueError(f"to_torch: variables lack {'/'.join(pair.path)}: give those that the model has.")
        value = np.ascontiguousarray(_to_torch(np.asarray(flat[pair.path]), pair.channels))
        old = like[pair.key]
        filled[pair.key] = old.new_tensor(value) if hasattr(old, "new_tensor") else value
    return filled


def _pairs(model: nn.Module, state_dict: Mapping[str, Any], image_shape: Sequence[int]) -> list[_Pair]:
    """The leaves of both, in order; raises ValueError if they do not match."""
    layers, leaves = _layers(model, image_shape)
    tensors: dict[str, list[str]] = {}
    for key in state_dict:
        name, _, leaf = key.rpartition(".")
        tensors.setdefault(name, []).append(leaf)
    if len(layers) != len(tensors):
        raise ValueError(
            f"the state dict has {len(tensors)} layers with weights, {type(model).__name__} has {len(layers)}; they "
            f"must be the same network. Leave out layers that its forward pass does not use, and numbers of no layer, "
            f"such as a mean, which models.create takes. There are: {', '.join(n or 'of no layer' for n in tensors)}"
        )
    pairs, channels = [], image_shape[-1]
    for (path, kind), (name, there) in zip(layers, tensors.items(), strict=True):
        here = {found: leaf for found, leaf in _LEAVES[kind].items() if (found[0], *path, found[1]) in leaves}
        if surplus := set(there) - {"num_batches_tracked"} ^ set(here.values()):
            raise ValueError(
                f"{name} of the state dict has {', '.join(there)}, but {'/'.join(path)} ({kind.__name__}) has "
                f"{', '.join(here.values())}: {', '.join(sorted(surplus))} is in one of them only"
            )
        for (collection, own), leaf in here.items():
            pair = _Pair((collection, *path, own), f"{name}.{leaf}", channels)
            shape = leaves[pair.path].shape
            expected, given = _to_torch(np.empty(shape, bool), channels).shape, tuple(state_dict[pair.key].shape)
            if expected != given:
                raise ValueError(f"{pair.key} has shape {given}; {'/'.join(path)} needs {expected} there")
            pairs.append(pair)
        if kind is not nn.BatchNorm:
            channels = leaves["params", *path, "kernel"].shape[-1]
    return pairs


def _layers(model: nn.Module, image_shape: Sequence[int]) -> tuple[list[tuple], dict[tuple, jax.ShapeDtypeStruct]]:
    """The path and class of each layer with weights, in PyTorch's order, and all leaves' shapes by path."""
    called: list[tuple[tuple[str, ...], type[nn.Module]]] = []

    def note(call, args, kwargs, context):
        if type(context.module) in _LEAVES and context.method_name == "__call__":
            called.append((context.module.path, type(context.module)))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    leaves = flatten_dict(variables)
    if others := sorted({"/".join(leaf[1:-1]) for leaf in leaves if leaf[1:-1] not in dict(called)}):
        raise ValueError(
            f"{type(model).__name__} has weights in {', '.join(others)}; only those of nn.Conv, nn.Dense and "
            "nn.BatchNorm can be converted"
        )

    def in_order(block):
        """The layers of a block, last of all its shortcut: a convolution by 1x1, and a BatchNorm that follows it."""
        body: list[Any] = []
        shortcut: list[Any] = []
        before = body
        for path, kind in block:
            is_one = kind is nn.Conv and leaves["params", *path, "kernel"].shape[:2] == (1, 1)
            follows = kind is nn.BatchNorm and shortcut and before is shortcut
            before = shortcut if is_one or follows else body
            before.append((path, kind))
        return body + shortcut

    blocks = [in_order(list(block)) for _, block in groupby(called, lambda layer: layer[0][:-1])]
    return [layer for block in blocks for layer in block], leaves


def _to_flax(value: np.ndarray, channels: int) -> np.ndarray:
    """Convolutions OIHW to HWIO; dense kernels [O, C n] to [n C, O] for maps of n pixels and C channels."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 2:
        features, inputs = value.shape
        return value.reshape(features, channels, -1).T.reshape(inputs, features)
    return value


def _to_torch(value: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `_to_flax`."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 2:
        inputs, features = value.shape
        return value.reshape(-1, channels, features).T.reshape(features, inputs)
    return value


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
