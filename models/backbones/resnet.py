"""ResNet and its variants as four stages.

Sources: ResNet (He et al. 2016), Wide ResNet (Zagoruyko & Komodakis 2016), ResNeXt (Xie et al. 2017), SE-ResNet (Hu,
Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.residual import residual_backbone
from offramp.models.backbones.stem import stem
from offramp.models.config import ModelConfig
from offramp.models.layers import Projection

REDUCTION = 16
FEWEST_SQUEEZED = 4


@dataclass(frozen=True)
class ResNetShape:
    """blocks: residual blocks a stage. inner: the 3x3 convolution's width in a bottleneck, relative to the stage's.

    has_gate: squeeze-and-excitation in each block.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int = 1
    inner: float = 1.0
    has_gate: bool = False


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
    "seresnet18": ResNetShape((2, 2, 2, 2), bottleneck=False, has_gate=True),
    "seresnet34": ResNetShape((3, 4, 6, 3), bottleneck=False, has_gate=True),
    "seresnet50": ResNetShape((3, 4, 6, 3), bottleneck=True, has_gate=True),
}


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a weight that depends on the means of all channels: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(FEWEST_SQUEEZED, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_BC: Tensor = self.excite(F.relu(self.squeeze(x_BCHW.mean(dim=(2, 3))))).sigmoid()
        return x_BCHW * weight_BC[:, :, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, a gate and a shortcut: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shape: ResNetShape) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.gate = SqueezeExcitation(out_channels) if shape.has_gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.gate(self.bn2(self.conv2(y))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, grouped 3x3 with the stride, 1x1 up, a gate and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shape: ResNetShape) -> None:
        super().__init__()
        inner_channels = round(out_channels // 4 * shape.inner)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(
            inner_channels, inner_channels, 3, stride=stride, padding=1, groups=shape.groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.gate = SqueezeExcitation(out_channels) if shape.has_gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.gate(self.bn3(self.conv3(y))) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Projection(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def build_resnet(config: ModelConfig) -> Backbone:
    """Four stages, the first with the stem. Raises ValueError for a width that a ResNeXt's groups do not divide."""
    shape = RESNETS[config.architecture]
    if shape.bottleneck and (config.width * shape.inner) % shape.groups:
        raise ValueError(
            f"width {config.width} does not fit {config.architecture}: its 3x3 convolutions have {shape.groups} "
            f"groups; give a multiple of {round(shape.groups / shape.inner)}"
        )

    block, expansion = (Bottleneck, 4) if shape.bottleneck else (BasicBlock, 1)
    out_channels = [config.width * expansion * 2**index for index in range(4)]
    return residual_backbone(stem(config), config.width, out_channels, shape.blocks, partial(block, shape=shape))
