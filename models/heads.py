"""Heads: the layers between a stage and its exit, most often an attention module and a shallow classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.layers import DepthwiseConv, conv_norm

SCAN_CHANNELS = 128
LIGHT_CHANNELS, LIGHT_SIDE = 128, 4


class SepConv(nn.Sequential):
    """Depthwise 3x3 (stride 2) -> 1x1 -> BN -> ReLU -> depthwise 3x3 -> 1x1 -> BN -> ReLU.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H/2), ceil(W/2)). Source: the journal paper's public code.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            DepthwiseConv(in_channels, stride=2),
            *conv_norm(in_channels, in_channels),
            DepthwiseConv(in_channels, stride=1),
            *conv_norm(in_channels, out_channels),
        )


class Attention(nn.Module):
    """A mask over a stage's features: SepConv -> BN -> ReLU -> bilinear upsampling -> sigmoid.

    The ReLU before the sigmoid keeps the mask in [0.5, 1). (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = SepConv(channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        mask = F.relu(self.norm(self.down(features_BCHW)))
        mask = F.interpolate(mask, size=features_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return mask.sigmoid()


class Head(nn.Module, ABC):
    """The layers of one exit: an embedding of the stage's features, and a linear classifier on it."""

    classifier: nn.Linear

    @property
    def embedding_size(self) -> int:
        """D, the width of the embedding."""
        return self.classifier.in_features

    @abstractmethod
    def embed(self, features_BCHW: Tensor) -> Tensor:
        """The input of the classifier (B, D), pooled from the features."""

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (embedding (B, D), logits (B, classes))."""
        embedding_BD = self.embed(features_BCHW)
        return embedding_BD, self.classifier(embedding_BD)


class ShallowHead(Head):
    """Attention and a chain of SepConvs up to the backbone's last width, average pool, linear classifier.

    channels: the widths from this stage's to the last stage's; one SepConv for each step between them. The mask is for
    this head only; the next stage reads unmasked features.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.attention = Attention(channels[0])
        self.reduce = nn.Sequential(*(SepConv(before, after) for before, after in pairwise(channels)))
        self.classifier = nn.Linear(channels[-1], num_classes)

    def embed(self, features_BCHW: Tensor) -> Tensor:
        masked = features_BCHW * self.attention(features_BCHW)
        reduced: Tensor = self.reduce(masked)
        return reduced.mean(dim=(2, 3))


class ScanAttention(nn.Module):
    """SCAN's mask: dense 3x3 (stride 2) -> BN -> ReLU -> transposed 4x4 (stride 2) -> BN -> sigmoid.

    (B, C, H, W) -> (B, C, H, W). The journal's mask stays in [0.5, 1); this one can switch a channel off.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        height, width = features_BCHW.shape[-2:]
        mask: Tensor = self.up(F.relu(self.norm1(self.down(features_BCHW))))
        # The mask of an odd size is one pixel larger.
        mask = self.norm2(mask[..., :height, :width]).sigmoid()
        return mask


class ScanHead(Head):
    """SCAN's head (Zhang et al., NeurIPS 2019, arXiv 1906.03951), after the authors' public code.

    It differs from the journal's head in two ways. The mask comes from dense convolutions, up to full size, and has no
    lower bound. One bottleneck replaces the chain of SepConvs: 1x1 to 128 channels (at most a quarter of the last
    stage's) -> a convolution as wide as its stride -> 1x1 to the last width, each with BN and ReLU. On ResNet-18 these
    heads cost 21 % of the backbone, the journal's 5 %. Convolutions in front of batch norms have no bias here.

    channels: the widths from this stage's to the last stage's; the stride is 2 for each step between them.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        inner = min(SCAN_CHANNELS, max(1, channels[-1] // 4))
        self.stride = 2 ** (len(channels) - 1)
        self.attention = ScanAttention(channels[0])
        self.narrow = nn.Sequential(*conv_norm(channels[0], inner))
        self.shrink = nn.Sequential(
            nn.Conv2d(inner, inner, self.stride, stride=self.stride, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            *conv_norm(inner, channels[-1]),
        )
        self.classifier = nn.Linear(channels[-1], num_classes)

    def embed(self, features_BCHW: Tensor) -> Tensor:
        narrow_BCHW = self.narrow(features_BCHW * self.attention(features_BCHW))
        height, width = narrow_BCHW.shape[-2:]
        # Padded to a multiple of the stride: else the stride would skip pixels at the rim, or all of a small map.
        shrunk_BCHW: Tensor = self.shrink(F.pad(narrow_BCHW, (0, -width % self.stride, 0, -height % self.stride)))
        return shrunk_BCHW.mean(dim=(2, 3))


class LightHead(Head):
    """Average pool to at most 4x4 -> 1x1 to at most 128 channels -> BN -> ReLU -> average pool -> linear classifier.

    For networks whose journal heads cost more than they save: on ResNet-50 those cost 31 % of it, these 0.3 %. It has
    no attention. Its one non-linear layer lies between two pools, so that its cost does not grow with the picture.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        inner = min(LIGHT_CHANNELS, channels[-1])
        self.mix = nn.Sequential(*conv_norm(channels[0], inner))
        self.classifier = nn.Linear(inner, num_classes)

    def embed(self, features_BCHW: Tensor) -> Tensor:
        height, width = features_BCHW.shape[-2:]
        pooled_BCHW = F.adaptive_avg_pool2d(features_BCHW, (min(LIGHT_SIDE, height), min(LIGHT_SIDE, width)))
        mixed_BCHW: Tensor = self.mix(pooled_BCHW)
        return mixed_BCHW.mean(dim=(2, 3))


class FinalHead(Head):
    """The backbone's own classifier: average pool, linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, num_classes)

    def embed(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.mean(dim=(2, 3))


HEADS: dict[str, Callable[[list[int], int], Head]] = {"journal": ShallowHead, "scan": ScanHead, "light": LightHead}
