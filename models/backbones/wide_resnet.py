"""WideResNet of the CIFAR kind, WRN-depth-k (Zagoruyko & Komodakis, BMVC 2016): few, wide pre-activation blocks."""

from __future__ import annotations

from torch import nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.backbones.preact_resnet import PreActBlock
from offramp.models.backbones.residual import residual_backbone
from offramp.models.backbones.stem import preactivation_stem
from offramp.models.config import ModelConfig

# Depth in convolutions, and k, how many times wider than the stem the first stage is.
WIDE_RESNETS = {
    "wrn16_2": (16, 2),
    "wrn16_4": (16, 4),
    "wrn28_10": (28, 10),
    "wrn40_2": (40, 2),
    "wrn40_4": (40, 4),
}


def build_wide_resnet(config: ModelConfig) -> Backbone:
    """Three stages; the paper's dropout inside the blocks is left out, as in its own tables without."""
    depth, k = WIDE_RESNETS[config.architecture]
    out_channels = [config.width * k * 2**index for index in range(3)]
    blocks = [(depth - 4) // 6] * 3
    last = (nn.BatchNorm2d(out_channels[-1]), nn.ReLU())
    return residual_backbone(preactivation_stem(config), config.width, out_channels, blocks, PreActBlock, last)
