"""Residual networks with BatchNorm: ResNet for CIFAR and for ImageNet, WideResNet and PreActResNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from robust_jax.models import cpu_convolution, layers

# torch's kaiming_normal_(mode="fan_out"): variance 2 / (kernel height * width * features).
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """`activation(norm(conv(activation(norm(conv(x))))) + shortcut)`, the first convolution with the stride.

    The shortcut is option A of He et al.: x at every `stride`-th row and column, and zeros as the new channels.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        y = self.activation(self.norm()(self.conv(self.features, strides=self.stride)(x)))
        y = self.norm()(self.conv(self.features)(y))
        return self.activation(y + self.shortcut(x))

    def shortcut(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """The input in the shape of the result."""
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


class ProjectedBlock(BasicBlock):
    """A `BasicBlock` with option B: where size or channels change, the shortcut is a 1x1 convolution and BatchNorm."""

    def shortcut(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """The input itself, or its projection."""
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        return self.norm()(self.conv(self.features, kernel_size=(1, 1), strides=self.stride, padding=0)(x))


class PreActBlock(nn.Module):
    """`conv(dropout(activation(norm(conv(z))))) + shortcut` of `z = activation(norm(x))`, strided as in BasicBlock.

    The shortcut is x, or a 1x1 convolution of z if the size or the number of channels changes.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array]
    dropout: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        z = self.activation(self.norm()(x))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, kernel_size=(1, 1), strides=self.stride, padding=0)(z)
        y = self.conv(self.features, strides=self.stride)(z)
        y = self.dropout()(self.activation(self.norm()(y)))
        return self.conv(self.features)(y) + shortcut


class _Residual(nn.Module):
    """What the networks share: 3x3 convolutions without bias, BatchNorm, the mean over the last map.

    With `remat` only the input of each block is kept for the backward passes; the rest is computed again. A strided
    convolution of a map of even size reads one row and column of zeros: with `padding="symmetric"` before the map, as
    PyTorch does, with "same" behind it, as TensorFlow, JAX's "SAME" and the WideResNets of Gowal et al. 2020
    (arXiv:2010.03593) do.
    """

    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Callable = cpu_convolution.conv_general_dilated
    batch_norm_axis: str | None = None
    activation: layers.Activation = "relu"
    remat: bool = False
    padding: Literal["symmetric", "same"] = "symmetric"

    def stages(
        self, x: Array, block: type[nn.Module], features: Sequence[int], blocks: Sequence[int], **parts: Any
    ) -> Array:
        """Stages of `blocks[i]` blocks of `features[i]` channels; all but the first begin with stride 2."""
        # Twice: once for each differentiation of a penalty. The names are set explicitly, so that weights are the same
        # with and without `remat`.
        made, count = nn.remat(nn.remat(block)) if self.remat else block, 0
        for stage, (width, several) in enumerate(zip(features, blocks, strict=True)):
            for i in range(several):
                x = made(width, 2 if stage and not i else 1, name=f"{block.__name__}_{count}", **parts)(x)
                count += 1
        return x

    def parts(self, kernel_init: nn.initializers.Initializer, train: bool) -> dict[str, Any]:
        """The convolution, BatchNorm and activation that the blocks are made of."""
        conv = partial(
            layers.Conv3x3,
            padding=1 if self.padding == "symmetric" else "SAME",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init,
            conv_general_dilated=self.conv_general_dilated,
        )
        norm = partial(
            layers.BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.batch_norm_axis,
        )
        return dict(conv=conv, norm=norm, activation=layers.activation(self.activation))

    def logits(self, x: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """The linear layer, applied to the mean over the map."""
        full = layers.logits_dtype(self.dtype)
        return nn.Dense(self.num_classes, dtype=full, kernel_init=layers.torch_uniform)(x.astype(full).mean((1, 2)))


class ResNet(_Residual):
    """ResNet for CIFAR of He et al. 2016 (arXiv:1512.03385, section 4.2), of depth 6n + 2.

    A convolution of 16 channels, then n `BasicBlock`s each of 16, 32 and 64 channels, the latter two with stride
    2. Shortcuts have no parameters (option A), convolutions start Kaiming-normal (fan-in). ResNet-20,
    32 and 56 have 269,722, 464,154 and 853,018 parameters for 3 channels and 10 classes. BatchNorm
    as in `VGG`; `activation` is one of `layers.ACTIVATIONS`.
    """

    depth: int = 20

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        blocks, rest = divmod(self.depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a ResNet for CIFAR has a depth of 6n + 2 (20, 32, 56, ...), not {self.depth}")
        layers.check_images(images, f"resnet{self.depth}", least=4)
        parts = self.parts(nn.initializers.he_normal(), train)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = parts["activation"](parts["norm"]()(parts["conv"](16)(x)))
        return self.logits(self.stages(x, BasicBlock, (16, 32, 64), 3 * [blocks], **parts))


class FourStageResNet(_Residual):
    """ResNet of He et al. 2016 for ImageNet (arXiv:1512.03385), begun for images of 32 pixels.

    A convolution of 64 channels with stride 1 and no pooling, then `blocks` `ProjectedBlock`s of 64, 128, 256 and 512
    channels, all stages but the first with stride 2. Convolutions start Kaiming-normal (fan-out) as torchvision's.
    ResNet-18, the default, has 11,173,962 parameters for 3 channels and 10 classes, as in
    github.com/kuangliu/pytorch-cifar. `resnet20_xia`, with a third block of 128 channels, has 11,469,386: it is what
    the code of Xia & Li 2021 calls ResNet-20. BatchNorm as in `VGG`; `activation` is one of `layers.ACTIVATIONS`.
    """

    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, f"resnet{2 * sum(self.blocks) + 2}", least=8)
        parts = self.parts(fan_out_normal, train)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = parts["activation"](parts["norm"]()(parts["conv"](64)(x)))
        return self.logits(self.stages(x, ProjectedBlock, (64, 128, 256, 512), self.blocks, **parts))


class WideResNet(_Residual):
    """WRN-depth-width of Zagoruyko & Komodakis 2016 (arXiv:1605.07146), of depth 6n + 4.

    A convolution of 16 channels, n `PreActBlock`s each of 16, 32 and 64 times `width` channels, the latter two
    with stride 2, then BatchNorm and the activation. Convolutions start Kaiming-normal (fan-out) as in the
    authors' code. WRN-16-4, 16-8, 28-10 and 34-10 have 2,748,890, 10,961,370, 36,479,194 and 46,160,474
    parameters for 3 channels and 10 classes. `dropout` is the rate between the two convolutions of a block: 0.3 in
    some of the paper's networks. BatchNorm as in `VGG`; `activation` is one of `layers.ACTIVATIONS`.
    """

    depth: int = 28
    width: int = 10
    dropout: layers.Dropout = 0.0

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        blocks, rest = divmod(self.depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a WideResNet has a depth of 6n + 4 (16, 28, 34, 40, ...), not {self.depth}")
        layers.check_images(images, f"wrn_{self.depth}_{self.width}", least=4)
        parts = self.parts(fan_out_normal, train)
        dropout = partial(nn.Dropout, self.dropout, deterministic=not train)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = parts["conv"](16)(x)
        widths = [self.width * features for features in (16, 32, 64)]
        x = self.stages(x, PreActBlock, widths, 3 * [blocks], dropout=dropout, **parts)
        return self.logits(parts["activation"](parts["norm"]()(x)))


class PreActResNet(_Residual):
    """PreAct ResNet of He et al. 2016 (arXiv:1603.05027) as in github.com/kuangliu/pytorch-cifar.

    A convolution of 64 channels, then `blocks` `PreActBlock`s of 64, 128, 256 and 512 channels, all stages but
    the first with stride 2. As there, and unlike the paper, no BatchNorm and activation follow the
    last block, unless `final_norm` is set, as in the code of Rice et al. 2020 (arXiv:2002.11569). Weights start as
    torch's do. PreActResNet-18, the default, has 11,171,146 parameters for 3 channels and 10 classes, and 1,024 more
    with `final_norm`. BatchNorm as in `VGG`; `activation` is one of `layers.ACTIVATIONS`.
    """

    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    final_norm: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b classes"]:
        layers.check_images(images, f"preact_resnet{2 * sum(self.blocks) + 2}", least=8)
        parts = self.parts(layers.torch_uniform, train)
        dropout = partial(nn.Dropout, 0.0, deterministic=True)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = parts["conv"](64)(x)
        x = self.stages(x, PreActBlock, (64, 128, 256, 512), self.blocks, dropout=dropout, **parts)
        return self.logits(parts["activation"](parts["norm"]()(x)) if self.final_norm else x)


PRESETS = {
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (20, 32, 56)},
    **{f"wrn_{d}_{w}": partial(WideResNet, depth=d, width=w) for d, w in ((16, 4), (16, 8), (28, 10), (34, 10))},
    "preact_resnet18": PreActResNet,
    "resnet18": FourStageResNet,
    "resnet20_xia": partial(FourStageResNet, blocks=(2, 3, 2, 2)),
}
