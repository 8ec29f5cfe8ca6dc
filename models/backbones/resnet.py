"""ResNet, Wide ResNet and ResNeXt (He et al. 2016; Zagoruyko & Komodakis 2016; Xie et al. 2017) as four stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.residual import Projection, residual_backbone
from offramp.models.backbones.stem import stem
from offramp.models.config import ModelConfig


@dataclass(frozen=True)
class ResNetShape:
    """blocks: residual blocks a stage; inner: the 3x3 convolution's width in a bottleneck, relative to the stage's."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int = 1
    inner: float = 1.0


RESNETS = {
    "resnet18": ResNetShape((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetShape((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetShape((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetShape((3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetShape((3, 8, 36, 3), bottleneck=True),
    "wide_resnet50_2": ResNetShape((3, 4, 6, 3), bottleneck=True, inner=2.0),
    "wide_resnet101_2": ResNetShape((3, 4, 23, 3), bottleneck=True, inner=2.0),
    "resnext50_32x4d": ResNetShape((3, 4, 6, 3), bottleneck=True, groups=32, inner=2.0),
    "resnext101_32x8d": ResNetShape((3, 4, 23, 3), bottleneck=True, groups=32, inner=4.0),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, grouped 3x3 (which carries the stride), 1x1 up, and a shortcut."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Projection(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def build_resnet(config: ModelConfig) -> Backbone:
    """The four stages of `config.architecture`; stage 1 carries the stem.

    Raises ValueError when the width leaves a ResNeXt's groups without whole channels.
    """
    shape = RESNETS[config.architecture]
    if shape.bottleneck and (config.width * shape.inner) % shape.groups:
        raise ValueError(
            f"width {config.width} does not fit {config.architecture}: its 3x3 convolutions have {shape.groups} "
            f"groups; give a multiple of {round(shape.groups / shape.inner)}"
        )

    def block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if not shape.bottleneck:
            return BasicBlock(in_channels, out_channels, stride)
        inner_channels = round(out_channels // 4 * shape.inner)
        return Bottleneck(in_channels, inner_channels, out_channels, stride, shape.groups)

    expansion = 4 if shape.bottleneck else 1
    out_channels = [config.width * expansion * 2**index for index in range(4)]
    return residual_backbone(stem(config), config.width, out_channels, shape.blocks, block)
