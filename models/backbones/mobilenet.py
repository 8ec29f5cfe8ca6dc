"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018).

Width 32 is the paper's x1.0, 16 its x0.5, and so on. For small pictures the stem and the second group keep the size, as
in the published CIFAR versions, so that 32x32 ends at 4x4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig
from offramp.models.layers import DepthwiseConv, conv_norm

PAPERS_WIDTH = 32
LAST_CHANNELS = 1280


@dataclass(frozen=True)
class Group:
    """Blocks of one width, in the paper's channels. The first has the stride: `small_stride` on small pictures."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    small_stride: int


# A stage ends where the next group halves the size.
STAGES = (
    (Group(1, 16, 1, 1, 1), Group(6, 24, 2, 2, 1)),
    (Group(6, 32, 3, 2, 2),),
    (Group(6, 64, 4, 2, 2), Group(6, 96, 3, 1, 1)),
    (Group(6, 160, 3, 2, 2), Group(6, 320, 1, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, linear 1x1 down; a shortcut where shapes agree. (B, in, H, W) -> (B, out, H/s, W/s)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner_channels = in_channels * expansion
        expand = [] if expansion == 1 else conv_norm(in_channels, inner_channels, activation=nn.ReLU6)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            *expand,
            DepthwiseConv(inner_channels, stride),
            nn.BatchNorm2d(inner_channels),
            nn.ReLU6(),
            nn.Conv2d(inner_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


def build_mobilenetv2(config: ModelConfig) -> Backbone:
    """Four stages. The last ends with the final 1x1 convolution, which a narrow network has at the paper's width."""
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    width = config.width
    parts = conv_norm(3, width, 3, stride=1 if config.stem == "cifar" else 2, activation=nn.ReLU6)
    for groups in STAGES:
        for group in groups:
            out_channels = _scaled(group.channels, config)
            for block in range(group.blocks):
                stride = group.stride if config.stem == "imagenet" else group.small_stride
                parts.append(InvertedResidual(width, out_channels, 1 if block else stride, group.expansion))
                width = out_channels
        stages.append(parts)
        channels.append(width)
        parts = []
    channels[-1] = max(LAST_CHANNELS, _scaled(LAST_CHANNELS, config))
    stages[-1].extend(conv_norm(width, channels[-1], activation=nn.ReLU6))
    return Backbone([nn.Sequential(*modules) for modules in stages], channels)


def _scaled(channels: int, config: ModelConfig) -> int:
    # The authors' rule: a multiple of 8, at least nine tenths of the exact number.
    exact = channels * config.width / PAPERS_WIDTH
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded
