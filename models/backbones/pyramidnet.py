"""PyramidNet, additive (Han, Kim, Kim, "Deep Pyramidal Residual Networks", CVPR 2017): each block is a bit wider."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.stem import bare_convolution, stem
from offramp.models.config import ModelConfig

PAPERS_WIDTH = 16

# Depth in convolutions, and alpha, the channels gained from the stem to the last block at the paper's width.
PYRAMIDNETS = {
    "pyramidnet110_a48": (110, 48),
    "pyramidnet110_a84": (110, 84),
    "pyramidnet110_a270": (110, 270),
}


class PyramidBlock(nn.Module):
    """Norm, 3x3, norm, ReLU, 3x3, norm: one ReLU only. (B, in, H, W) -> (B, out, H/stride, W/stride).

    The shortcut has no weights: average pooling for a stride, and zeros for the additional channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.bn1(x))
        y = self.bn3(self.conv2(F.relu(self.bn2(y))))
        shortcut: Tensor = self.pool(x)
        return y + F.pad(shortcut, (0, 0, 0, 0, 0, y.shape[1] - shortcut.shape[1]))


def build_pyramidnet(config: ModelConfig) -> Backbone:
    """Four stages: three groups of as many blocks each, the first group in two stages. alpha scales with the width."""
    depth, alpha = PYRAMIDNETS[config.architecture]
    count = (depth - 2) // 6
    growth = alpha / PAPERS_WIDTH * config.width / (3 * count)
    widths = [round(config.width + growth * block) for block in range(3 * count + 1)]
    blocks: list[nn.Module] = [
        PyramidBlock(widths[block], widths[block + 1], stride=2 if block in (count, 2 * count) else 1)
        for block in range(3 * count)
    ]
    ends = (count // 2, count, 2 * count, 3 * count)
    stages = [blocks[before:after] for before, after in pairwise((0, *ends))]
    stages[0].insert(0, _stem(config))
    stages[-1].extend((nn.BatchNorm2d(widths[-1]), nn.ReLU()))
    return Backbone([nn.Sequential(*parts) for parts in stages], [widths[end] for end in ends])


def _stem(config: ModelConfig) -> nn.Module:
    if config.stem == "imagenet":
        return stem(config)
    return nn.Sequential(bare_convolution(config), nn.BatchNorm2d(config.width))
