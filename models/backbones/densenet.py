"""DenseNet-BC (Huang, Liu, van der Maaten, Weinberger, CVPR 2017): every layer sees all layers before it.

A block's last stage ends after its transition, which halves channels and size, so that few features pass to the next.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.stem import preactivation_stem
from offramp.models.config import ModelConfig

# For each block, the layers of each of its stages. The growth rate is half the stem's width, as in the paper. The first
# block of the small network does 0.7 of its work, so that only an exit in its middle is shallow.
DENSENETS = {
    "densenet100_12": ((8, 8), (16,), (16,)),
    "densenet121": ((6,), (12,), (24,), (16,)),
}


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 to four times the growth, norm, ReLU, 3x3, appended: (B, C, H, W) -> (B, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat((x, y), dim=1)


def build_densenet(config: ModelConfig) -> Backbone:
    """A stage for each dense block, or part of one. Raises ValueError for an odd width, which has no half."""
    if config.width % 2:
        raise ValueError(
            f"width {config.width} does not fit {config.architecture}: its layers grow by half the width; "
            "give an even number"
        )
    blocks, growth = DENSENETS[config.architecture], config.width // 2
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    parts: list[nn.Module] = [preactivation_stem(config)]
    width = config.width
    for index, block in enumerate(blocks):
        for count in block:
            stages.append([*parts, *(DenseLayer(width + growth * layer, growth) for layer in range(count))])
            width += growth * count
            channels.append(width)
            parts = []
        stages[-1].extend((nn.BatchNorm2d(width), nn.ReLU()))
        if index < len(blocks) - 1:
            stages[-1].extend((nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2, ceil_mode=True)))
            width //= 2
            channels[-1] = width
    return Backbone([nn.Sequential(*modules) for modules in stages], channels)
