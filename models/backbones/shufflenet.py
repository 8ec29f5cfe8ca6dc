"""ShuffleNetV2 (Ma, Zhang, Zheng, Sun, ECCV 2018).

The paper's four sizes differ in their stages only, the stem has 24 channels in all; another `width` scales the whole.
For small pictures the stem keeps the size, as in the published CIFAR versions, so that 32x32 ends at 4x4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig
from offramp.models.heads import DepthwiseConv

PAPERS_WIDTH = 24

# Channels of the three sizes of features, and of the last 1x1 convolution.
SHUFFLENETS = {
    "shufflenetv2_x0_5": (48, 96, 192, 1024),
    "shufflenetv2_x1_0": (116, 232, 464, 1024),
    "shufflenetv2_x1_5": (176, 352, 704, 1024),
    "shufflenetv2_x2_0": (244, 488, 976, 2048),
}
# Units behind each halving; the middle eight are two stages, so that four exits share the work evenly.
UNITS = ((4,), (4, 4), (4,))


class ShuffleUnit(nn.Module):
    """Half the channels pass unchanged, half are worked on, then both are interleaved: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        return _interleave(kept, self.branch(worked))


class DownUnit(nn.Module):
    """Two branches over all channels, interleaved: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            DepthwiseConv(in_channels, stride=2),
            nn.BatchNorm2d(in_channels),
            *_pointwise(in_channels, half),
        )
        self.right = _branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return _interleave(self.left(x), self.right(x))


def _branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_pointwise(in_channels, out_channels),
        DepthwiseConv(out_channels, stride),
        nn.BatchNorm2d(out_channels),
        *_pointwise(out_channels, out_channels),
    )


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


def _interleave(left_BCHW: Tensor, right_BCHW: Tensor) -> Tensor:
    # The paper's concatenation and channel shuffle in one: left 0, right 0, left 1, right 1, ...
    return torch.stack((left_BCHW, right_BCHW), dim=2).flatten(1, 2)


def build_shufflenetv2(config: ModelConfig) -> Backbone:
    """Four stages, at a half, a quarter, a quarter and an eighth of the stem's size; the last carries the final 1x1."""
    *widths, last = (2 * round(c * config.width / PAPERS_WIDTH / 2) for c in SHUFFLENETS[config.architecture])
    parts: list[nn.Module] = [
        nn.Conv2d(3, config.width, 3, stride=1 if config.stem == "cifar" else 2, padding=1, bias=False),
        nn.BatchNorm2d(config.width),
        nn.ReLU(),
    ]
    if config.stem == "imagenet":
        parts.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    in_channels = config.width
    for width, counts in zip(widths, UNITS, strict=True):
        units = [DownUnit(in_channels, width), *(ShuffleUnit(width) for _ in range(sum(counts) - 1))]
        for count in counts:
            stages.append([*parts, *units[:count]])
            channels.append(width)
            parts, units = [], units[count:]
        in_channels = width
    stages[-1].extend(_pointwise(in_channels, last))
    channels[-1] = last
    return Backbone([nn.Sequential(*modules) for modules in stages], channels)
