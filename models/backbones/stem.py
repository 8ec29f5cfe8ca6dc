"""What stands in front of the first block, for small pictures and for large ones."""

from __future__ import annotations

from torch import nn

from offramp.models.config import ModelConfig


def stem(config: ModelConfig) -> nn.Sequential:
    """(B, 3, H, W) -> (B, width, H, W) by a 3x3 convolution, or (B, width, H/4, W/4) by 7x7 and max-pool."""
    if config.stem == "cifar":
        return nn.Sequential(bare_convolution(config), nn.BatchNorm2d(config.width), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(config.width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def preactivation_stem(config: ModelConfig) -> nn.Module:
    """As `stem`, but for small pictures the bare convolution: the first block begins with its own norm and ReLU."""
    return bare_convolution(config) if config.stem == "cifar" else stem(config)


def bare_convolution(config: ModelConfig) -> nn.Conv2d:
    """3x3, (B, 3, H, W) -> (B, width, H, W)."""
    return nn.Conv2d(3, config.width, 3, padding=1, bias=False)
