"""Training steps in PyTorch, the peers of `steps.py`: plain, and FGR by double backprop through a gather sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def warp(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """`robust_jax.warp` for images [B, C, H, W] and flows [B, 2, H, W], (dy, dx) in pixels; twice differentiable.

    `grid_sample` is not: PyTorch has no second derivative of its backward pass.
    """
    b, c, h, w = images.shape
    device = images.device
    y = _bounded(torch.arange(h, device=device)[:, None] + flow[:, 0], h - 1.0)
    x = _bounded(torch.arange(w, device=device) + flow[:, 1], w - 1.0)
    top, left = y.detach().floor(), x.detach().floor()
    down, across = (y - top)[:, None], (x - left)[:, None]
    rows, columns = top.long(), left.long()
    flat = images.reshape(b, c, h * w)

    def tap(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        index = (i.clamp(max=h - 1) * w + j.clamp(max=w - 1)).reshape(b, 1, h * w).expand(b, c, h * w)
        return flat.gather(2, index).reshape(b, c, h, w)

    upper = tap(rows, columns) * (1 - across) + tap(rows, columns + 1) * across
    lower = tap(rows + 1, columns) * (1 - across) + tap(rows + 1, columns + 1) * across
    return upper * (1 - down) + lower * down


def _bounded(position: torch.Tensor, most: float) -> torch.Tensor:
    # On the bounds the full derivative, of which clamp takes half.
    return torch.where(position < 0, 0.0, torch.where(position > most, most, position))


def flow_penalty(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy, and the mean over examples of ‖∂ loss_i / ∂ flow‖₂² at flow 0."""
    flow = torch.zeros(len(images), 2, *images.shape[2:], device=images.device, requires_grad=True)
    losses = cross_entropy(network(warp(images, flow)), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), flow, create_graph=True)
    return losses.mean(), gradient.pow(2).sum() / len(images)


def stepper(
    network: nn.Module, loss: Callable[..., torch.Tensor], dtype: torch.dtype = torch.float32
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """``step(images, labels) -> loss``, the loss read so that all of the step is done when it returns."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step(images: torch.Tensor, labels: torch.Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            value = loss(images, labels)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def plain(network: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy."""
    return lambda images, labels: cross_entropy(network(images), labels)


def fgr(
    network: nn.Module, sigma: float = 0.155, weight: float = 4.4
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy and flow penalty at randomly warped images (Xia & Li 2021)."""

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        b, _, h, w = images.shape
        started = warp(images, sigma * torch.randn(b, 2, h, w, device=images.device))
        mean, penalty = flow_penalty(network, started, labels)
        return mean + weight * penalty

    return loss
