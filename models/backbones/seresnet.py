"""SE-ResNet (Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018): a ResNet that weighs its channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.residual import residual_backbone
from offramp.models.backbones.resnet import BasicBlock, Bottleneck
from offramp.models.backbones.stem import stem
from offramp.models.config import ModelConfig

REDUCTION = 16
FEWEST_SQUEEZED = 4

# Blocks a stage, and whether they are bottlenecks.
SERESNETS = {
    "seresnet18": ((2, 2, 2, 2), False),
    "seresnet34": ((3, 4, 6, 3), False),
    "seresnet50": ((3, 4, 6, 3), True),
}


class SqueezeExcitation(nn.Module):
    """Weighs each channel by what all channels' averages say of the picture: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(FEWEST_SQUEEZED, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_BC: Tensor = self.excite(F.relu(self.squeeze(x_BCHW.mean(dim=(2, 3))))).sigmoid()
        return x_BCHW * weight_BC[:, :, None, None]


class SEBasicBlock(BasicBlock):
    """A BasicBlock whose residual is weighed before the shortcut is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.gate = SqueezeExcitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.gate(self.bn2(self.conv2(y))) + self.shortcut(x))


class SEBottleneck(Bottleneck):
    """A Bottleneck whose residual is weighed before the shortcut is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels // 4, out_channels, stride, groups=1)
        self.gate = SqueezeExcitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.gate(self.bn3(self.conv3(y))) + self.shortcut(x))


def build_seresnet(config: ModelConfig) -> Backbone:
    """Four stages, cut as those of the ResNet of the same depth."""
    blocks, bottleneck = SERESNETS[config.architecture]
    out_channels = [config.width * (4 if bottleneck else 1) * 2**index for index in range(4)]
    block = SEBottleneck if bottleneck else SEBasicBlock
    return residual_backbone(stem(config), config.width, out_channels, blocks, block)
