"""The loop that all residual families share: stages of equal blocks, the first block of a stage changes the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone


class Projection(nn.Conv2d):
    """1x1 convolution of a shortcut, (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).

    Trained on a CPU it picks the pixels before it multiplies: the same sums, without the backward pass of the strided
    1x1 convolution, which in torch 2.13 writes beyond its memory (float32, channels-last, up to 8 channels at 64x64).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)


class MakeBlock(Protocol):
    """Builds one residual block: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __call__(self, in_channels: int, out_channels: int, stride: int) -> nn.Module: ...


def residual_backbone(
    first: nn.Module,
    in_channels: int,
    out_channels: Sequence[int],
    blocks: Sequence[int],
    make_block: MakeBlock,
    last: Sequence[nn.Module] = (),
) -> Backbone:
    """A stage for each of `out_channels`, of as many blocks as `blocks` says; all stages but the first halve the size.

    first: the stem, run in stage 1, with `in_channels` leaving it. last: what ends the last stage.
    """
    stages = []
    for index, (width, count) in enumerate(zip(out_channels, blocks, strict=True)):
        parts: list[nn.Module] = [] if index else [first]
        for block in range(count):
            parts.append(make_block(in_channels, width, stride=2 if index and not block else 1))
            in_channels = width
        stages.append(parts)
    stages[-1].extend(last)
    return Backbone([nn.Sequential(*parts) for parts in stages], list(out_channels))
