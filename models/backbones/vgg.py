"""VGG with batch norm (Simonyan & Zisserman, ICLR 2015), five stages that each end with a max-pool.

One linear layer follows them, as in "Be Your Own Teacher"; the ImageNet network has three. The stages are the same for
small and large pictures: VGG has no stem.
"""

from __future__ import annotations

from torch import nn

from offramp.models.backbones.backbone import Backbone
from offramp.models.config import ModelConfig
from offramp.models.layers import conv_norm

# 3x3 convolutions a stage; their width relative to the first stage's.
VGGS = {
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13_bn": (2, 2, 2, 2, 2),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vgg19_bn": (2, 2, 4, 4, 4),
}
RELATIVE_WIDTHS = (1, 2, 4, 8, 8)


def build_vgg(config: ModelConfig) -> Backbone:
    """Five stages; the convolutions have no bias, which the batch norm after each would undo."""
    stages, in_channels = [], 3
    channels = [config.width * relative for relative in RELATIVE_WIDTHS]
    for out_channels, count in zip(channels, VGGS[config.architecture], strict=True):
        parts: list[nn.Module] = []
        for _ in range(count):
            parts.extend(conv_norm(in_channels, out_channels, 3))
            in_channels = out_channels
        # Rounding up keeps a pixel for the last stages of pictures below 32 pixels.
        parts.append(nn.MaxPool2d(2, ceil_mode=True))
        stages.append(nn.Sequential(*parts))
    return Backbone(stages, channels)
