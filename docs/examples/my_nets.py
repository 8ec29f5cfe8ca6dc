"""A network of one's own: offramp train photos --backbones docs/examples/my_nets.py --architecture split_net …

Everything here is plain PyTorch but the last lines, which give it exits. Four stages for pictures of about 64 pixels;
50 M multiply-adds and 1.0 M parameters there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.attach import attach_exits
from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig


class SqueezeExcite(nn.Module):
    """Weighs every channel by what all channels say on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 8)
        self.excite = nn.Linear(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.adaptive_avg_pool2d(x, 1).flatten(1)
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(weights))))
        return x * weights[:, :, None, None]


class SplitBlock(nn.Module):
    """Half of the channels goes through two convolutions, is joined with the other half again, mixed and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.attend = SqueezeExcite(channels)

    def forward(self, x: Tensor) -> Tensor:
        untouched, y = x.chunk(2, dim=1)
        y = F.relu(self.norm1(self.conv1(y)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm(self.mix(torch.cat([untouched, y], dim=1)))
        return F.relu(x + self.attend(y))


def stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    """Halves the side, then computes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        *(SplitBlock(out_channels) for _ in range(blocks)),
    )


class SplitNet(nn.Module):
    """(B, 3, H, W) -> (B, classes)."""

    def __init__(self, num_classes: int, width: int = 32, drop: float = 0.1) -> None:
        super().__init__()
        self.stage1 = stage(3, width, 1)
        self.stage2 = stage(width, 2 * width, 2)
        self.stage3 = stage(2 * width, 4 * width, 2)
        self.stage4 = stage(4 * width, 8 * width, 1)
        self.drop = drop
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        x = F.dropout(x, self.drop, training=self.training)
        return self.classifier(x)


def build_split_net(config: ModelConfig) -> Backbone:
    """The network with an exit behind each stage."""
    network = SplitNet(config.num_classes)
    return attach_exits(network, at=["stage1", "stage2", "stage3"], input_size=config.input_size)


BACKBONES = {"split_net": build_split_net}
