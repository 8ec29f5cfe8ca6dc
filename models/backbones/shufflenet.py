"""ShuffleNetV2 (Ma, Zhang, Zheng, Sun, ECCV 2018).

The paper's four sizes differ in their stages; their stem has 24 channels. Another `width` scales the whole network.
For small pictures the stem keeps the size, as in the published CIFAR versions, so that 32x32 ends at 4x4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig
from offramp.models.layers import DepthwiseConv, conv_norm

PAPERS_WIDTH = 24

# Channels of the three sizes of features, and of the last 1x1 convolution.
SHUFFLENETS = {
    "shufflenetv2_x0_5": (48, 96, 192, 1024),
    "shufflenetv2_x1_0": (116, 232, 464, 1024),
    "shufflenetv2_x1_5": (176, 352, 704, 1024),
    "shufflenetv2_x2_0": (244, 488, 976, 2048),
}
# Units after each halving; the middle eight are two stages, so that four exits share the work evenly.
UNITS = ((4,), (4, 4), (4,))


class ShuffleUnit(nn.Module):
    """Half the channels pass unchanged, a branch changes the others, both are interleaved: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        unchanged, changed = x.chunk(2, dim=1)
        return _interleave(unchanged, self.branch(changed))


class DownUnit(nn.Module):
    """Two branches over all channels, interleaved: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            DepthwiseConv(in_channels, stride=2),
            nn.BatchNorm2d(in_channels),
            *conv_norm(in_channels, half),
        )
        self.right = _branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return _interleave(self.left(x), self.right(x))


def _branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm(in_channels, out_channels),
        DepthwiseConv(out_channels, stride),
        nn.BatchNorm2d(out_channels),
        *conv_norm(out_channels, out_channels),
    )


def _interleave(left_BCHW: Tensor, right_BCHW: Tensor) -> Tensor:
    # The paper's concatenation and channel shuffle in one: left 0, right 0, left 1, right 1, ...
    return torch.stack((left_BCHW, right_BCHW), dim=2).flatten(1, 2)


def build_shufflenetv2(config: ModelConfig) -> Backbone:
    """Four stages, at 1/2, 1/4, 1/4 and 1/8 of the stem's size; the last ends with the final 1x1 convolution."""
    *widths, last = (2 * round(c * config.width / PAPERS_WIDTH / 2) for c in SHUFFLENETS[config.architecture])
    parts = conv_norm(3, config.width, 3, stride=1 if config.stem == "cifar" else 2)
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
    stages[-1].extend(conv_norm(in_channels, last))
    channels[-1] = last
    return Backbone([nn.Sequential(*modules) for modules in stages], channels)
