"""Layers that heads and backbones share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, activation: type[nn.Module] = nn.ReLU
) -> list[nn.Module]:
    """Convolution, batch norm, activation: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)), odd kernels."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), activation()]


class DepthwiseConv(nn.Conv2d):
    """3x3 depthwise convolution: (B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride)).

    On a CPU it stays in float32 under autocast: a strided one, forward and backward, takes 9 to 19 times as long in
    bfloat16 (docs/decisions.md).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Projection(nn.Conv2d):
    """1x1 convolution of a shortcut, (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).

    In training on a CPU it picks the pixels before it multiplies. The sums are the same, and the backward pass of the
    strided 1x1 convolution does not run: in torch 2.13 it writes beyond its memory (float32, channels-last, up to 8
    channels at 64x64).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)
