"""The networks of `robust_jax.models` in PyTorch, to compare with: images [B, C, H, W] in [0, 1], normalised inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen
import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, relu

from robust_jax import models
from robust_jax.models.vgg import STAGES


class Normalized(nn.Module):
    """`(images - mean) / std` before `network`; the state dict is that of `network`."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (torch.tensor(list(v)).reshape(1, -1, 1, 1) for v in (mean, std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.network((images - self.mean) / self.std)


def small_cnn(channels: int = 1, num_classes: int = 10) -> nn.Module:
    """SmallCNN for 28 x 28 images."""
    convolutions: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64)):
        convolutions += [nn.Conv2d(before, after, 3), nn.ReLU(), nn.Conv2d(after, after, 3), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, num_classes)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def mlp(numbers: int = 784, num_classes: int = 10) -> nn.Module:
    """The fully connected network of sigmoid units, for 28 x 28 images."""
    hidden = [nn.Linear(numbers, 500), nn.Sigmoid(), nn.Linear(500, 500), nn.Sigmoid()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(500, num_classes))


def vgg(depth: int = 11, channels: int = 3, num_classes: int = 10) -> nn.Module:
    """VGG with BatchNorm for 32 x 32 images."""
    parts: list[nn.Module] = []
    for stage in STAGES[depth]:
        for features in stage:
            parts += [nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU()]
            channels = features
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels, num_classes))


def _conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Of ResNet-20: the shortcut takes every second row and column, and zeros for new channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, after - before
        self.conv1, self.bn1 = _conv3x3(before, after, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv3x3(after, after), nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` with the strided size."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new)))


class PreActBlock(nn.Module):
    """Of WideResNet and PreActResNet."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _conv3x3(before, after, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _conv3x3(after, after)
        if stride != 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` with the strided size."""
        z = relu(self.bn1(x))
        shortcut = self.shortcut(z) if hasattr(self, "shortcut") else x
        return self.conv2(relu(self.bn2(self.conv1(z)))) + shortcut


def _residual(block: type[nn.Module], first: int, widths: Sequence[int], blocks: int, *after: nn.Module) -> nn.Module:
    parts: list[nn.Module] = []
    before = first
    for stage, width in enumerate(widths):
        for i in range(blocks):
            parts.append(block(before, width, 2 if stage and not i else 1))
            before = width
    return nn.Sequential(*parts, *after, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def resnet(depth: int = 20) -> nn.Module:
    """ResNet for CIFAR-10, of depth 6n + 2."""
    stem = [_conv3x3(3, 16), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, _residual(BasicBlock, 16, (16, 32, 64), (depth - 2) // 6))


def wide_resnet(depth: int = 28, width: int = 10) -> nn.Module:
    """WideResNet for CIFAR-10, of depth 6n + 4."""
    widths = [width * w for w in (16, 32, 64)]
    last = (nn.BatchNorm2d(widths[-1]), nn.ReLU())
    return nn.Sequential(_conv3x3(3, 16), _residual(PreActBlock, 16, widths, (depth - 4) // 6, *last))


def preact_resnet18() -> nn.Module:
    """PreActResNet-18 for CIFAR-10."""
    return nn.Sequential(_conv3x3(3, 64), _residual(PreActBlock, 64, (64, 128, 256, 512), 2))


# Keys are names in `robust_jax.models.MODELS`.
NETWORKS = {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "vgg11": vgg,
    "resnet20": resnet,
    "wrn_16_4": lambda: wide_resnet(16, 4),
    "wrn_28_10": wide_resnet,
    "preact_resnet18": preact_resnet18,
}


def converted(
    name: str, model: flax.linen.Module, variables: Mapping[str, Any], image_shape: tuple[int, ...]
) -> Normalized:
    """The network with the weights and the normalisation of a flax model."""
    network = NETWORKS[name]()
    network.load_state_dict(models.to_torch(model, variables, network.state_dict(), image_shape))
    return Normalized(network, model.mean, model.std)


def tensors(
    images: np.ndarray, labels: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, H, W, C] and labels for PyTorch."""
    turned = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
    return turned, torch.tensor(labels.astype("int64"), device=device)
