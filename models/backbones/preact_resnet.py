"""Pre-activation ResNet (He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016).

Norm and ReLU stand in front of every convolution, so that the shortcuts carry unchanged sums from block to block. Exits
read those sums; only the last stage ends with a norm and a ReLU of its own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.residual import Projection, residual_backbone
from offramp.models.backbones.stem import preactivation_stem
from offramp.models.config import ModelConfig

# Blocks a stage, and whether they are bottlenecks.
PREACT_RESNETS = {
    "preact_resnet18": ((2, 2, 2, 2), False),
    "preact_resnet34": ((3, 4, 6, 3), False),
    "preact_resnet50": ((3, 4, 6, 3), True),
}


class PreActBlock(nn.Module):
    """Twice norm, ReLU, 3x3 convolution: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return y + shortcut


class PreActBottleneck(nn.Module):
    """1x1 down, 3x3 (which carries the stride), 1x1 up, each behind a norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner_channels = out_channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + shortcut


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    # It takes the activated input, where the identity takes the sums: so the paper.
    if stride == 1 and in_channels == out_channels:
        return None
    return Projection(in_channels, out_channels, stride)


def build_preact_resnet(config: ModelConfig) -> Backbone:
    """Four stages, cut as those of the ResNet of the same depth."""
    blocks, bottleneck = PREACT_RESNETS[config.architecture]
    out_channels = [config.width * (4 if bottleneck else 1) * 2**index for index in range(4)]
    block = PreActBottleneck if bottleneck else PreActBlock
    last = (nn.BatchNorm2d(out_channels[-1]), nn.ReLU())
    return residual_backbone(preactivation_stem(config), config.width, out_channels, blocks, block, last)
