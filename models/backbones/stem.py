"""The layers in front of the first block, for small and for large pictures."""

from __future__ import annotations

from torch import nn

from offramp.models.config import ModelConfig
from offramp.models.layers import conv_norm


def stem(config: ModelConfig) -> nn.Sequential:
    """(B, 3, H, W) -> (B, width, H, W) by a 3x3 convolution, or (B, width, H/4, W/4) by 7x7 and max-pool."""
    if config.stem == "cifar":
        return nn.Sequential(*conv_norm(3, config.width, 3))
    return nn.Sequential(*conv_norm(3, config.width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))


def preactivation_stem(config: ModelConfig) -> nn.Module:
    """The same, but without norm and ReLU for small pictures: there the first block begins with its own."""
    return bare_convolution(config) if config.stem == "cifar" else stem(config)


def bare_convolution(config: ModelConfig) -> nn.Conv2d:
    """3x3, (B, 3, H, W) -> (B, width, H, W)."""
    return nn.Conv2d(3, config.width, 3, padding=1, bias=False)
