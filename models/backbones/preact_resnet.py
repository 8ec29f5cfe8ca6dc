"""Pre-activation ResNet (He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016) and WideResNet.

The latter is the CIFAR kind, WRN-depth-k (Zagoruyko & Komodakis, BMVC 2016), without the dropout inside its blocks.
Norm and ReLU come before every convolution, so that the shortcuts pass unchanged sums from block to block. Exits read
those sums; only the last stage ends with a norm and a ReLU of its own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.residual import MakeBlock, residual_backbone
from offramp.models.backbones.stem import preactivation_stem
from offramp.models.config import ModelConfig
from offramp.models.layers import Projection


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
    """1x1 down, 3x3 with the stride, 1x1 up, each after a norm and a ReLU."""

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
    # As in the paper, it takes the activated input, and the identity takes the sums.
    if stride == 1 and in_channels == out_channels:
        return None
    return Projection(in_channels, out_channels, stride)


# Kind of block, its output channels relative to the width, and blocks a stage. Each stage doubles the channels.
PREACT_RESNETS: dict[str, tuple[MakeBlock, int, tuple[int, ...]]] = {
    "preact_resnet18": (PreActBlock, 1, (2, 2, 2, 2)),
    "preact_resnet34": (PreActBlock, 1, (3, 4, 6, 3)),
    "preact_resnet50": (PreActBottleneck, 4, (3, 4, 6, 3)),
}
WIDE_RESNETS: dict[str, tuple[MakeBlock, int, tuple[int, ...]]] = {
    "wrn16_2": (PreActBlock, 2, (2, 2, 2)),
    "wrn16_4": (PreActBlock, 4, (2, 2, 2)),
    "wrn28_10": (PreActBlock, 10, (4, 4, 4)),
    "wrn40_2": (PreActBlock, 2, (6, 6, 6)),
    "wrn40_4": (PreActBlock, 4, (6, 6, 6)),
}


def build_preact_resnet(config: ModelConfig) -> Backbone:
    """Four stages, cut as those of the ResNet of the same depth; three for a WideResNet."""
    block, expansion, blocks = (PREACT_RESNETS | WIDE_RESNETS)[config.architecture]
    out_channels = [config.width * expansion * 2**index for index in range(len(blocks))]
    last = (nn.BatchNorm2d(out_channels[-1]), nn.ReLU())
    return residual_backbone(preactivation_stem(config), config.width, out_channels, blocks, block, last)
