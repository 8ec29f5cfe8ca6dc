"""mixup and CutMix: pictures and labels of a batch are mixed with one another. One-hot and smoothed labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.training.augment.augmentation import interval, rectangle


def one_hot(labels_B: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels as probabilities, float32 B×classes: 1 - smoothing for the label, and smoothing spread over all classes.

    smoothing: 0 up to 1, 1 excluded. Source: Szegedy et al., "Rethinking the Inception Architecture" (CVPR 2016, arXiv
    1512.00567), section 7.
    """
    spread = smoothing / num_classes
    targets_BC = torch.full((len(labels_B), num_classes), spread, device=labels_B.device)
    return targets_BC.scatter_(1, labels_B.unsqueeze(1), 1.0 - smoothing + spread)


@dataclass(frozen=True)
class Mixing:
    """Mixes each picture of a batch, and its label by the same share, with another picture of the batch.

    mixup: alpha of the Beta(alpha, alpha) distribution of the share; 0 for no mixup.
    cutmix: the same for CutMix, where the share is the area that the picture keeps; 0 for no CutMix.

    With both on, each batch gets one of them, with equal probability. Partners are a random permutation of the batch.
    Every picture has its own share and box; the papers draw one for the whole batch. So all batches hold the same
    mixture, batch norm's running statistics fit each of them, and losses vary less from batch to batch. CutMix's boxes
    are clipped by the picture's border. Labels are mixed by the area that remains.

    Sources: Zhang et al., "mixup" (ICLR 2018, arXiv 1710.09412); Yun et al., "CutMix" (ICCV 2019, arXiv
    1905.04899). Raises ValueError for a value out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0.0 <= alpha < math.inf:
                raise ValueError(f"{name} is {alpha}; give 0 (none) or a finite number above it, for example 1.0")

    @property
    def enabled(self) -> bool:
        """Whether batches are changed. If not, labels may stay class numbers."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images_BCHW: Tensor, targets_BC: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a uint8 batch and its soft labels (`one_hot`), float B×classes. Neither argument is changed.

        The generator lives on the device of the batch. Nothing here waits for that device. Values of mixed pictures are
        rounded to nearest.
        """
        if not self.enabled:
            return images_BCHW, targets_BC
        partner_B = torch.randperm(len(images_BCHW), generator=generator, device=images_BCHW.device)
        weight_B1HW = self._weights(images_BCHW, generator)
        mixed_BCHW = torch.lerp(images_BCHW[partner_B].float(), images_BCHW.float(), weight_B1HW)
        share_B1 = weight_B1HW.mean((1, 2, 3), dtype=torch.float64).unsqueeze(1).to(targets_BC.dtype)
        mixed_BC = torch.lerp(targets_BC[partner_B], targets_BC, share_B1)
        return mixed_BCHW.round_().to(torch.uint8), mixed_BC

    def _weights(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The picture's own share of each pixel, 0..1; B×1×H×W, or B×1×1×1 for mixup alone."""
        batch, _, height, width = images_BCHW.shape
        # The first number is not used. A seed gives the batches of published runs only if two numbers are drawn.
        _, coin = torch.rand((2, 1, 1, 1, 1), generator=generator, device=images_BCHW.device)
        own_B111 = own_B1HW = torch.ones((), device=images_BCHW.device)
        if self.mixup:
            own_B111 = symmetric_beta(self.mixup, batch, generator).view(-1, 1, 1, 1)
        if self.cutmix:
            share_B = symmetric_beta(self.cutmix, batch, generator)
            own_B1HW = (~_cut_boxes(share_B, height, width, generator)).float()
        if self.mixup and self.cutmix:
            # The device chooses between the two: a choice on the host would wait for the device.
            return torch.where(coin < 0.5, own_B1HW, own_B111)
        return own_B1HW if self.cutmix else own_B111


def symmetric_beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha) on the generator's device, float32: a Gamma draw over the sum of two."""
    concentration_2N = torch.full((2, count), alpha, dtype=torch.float64, device=generator.device)
    # torch.distributions draws with this function, but takes no generator. Its least value is above 0, so no sum is 0.
    gamma_2N = torch._standard_gamma(concentration_2N, generator=generator)
    return (gamma_2N[0] / gamma_2N.sum(0)).float()


def _cut_boxes(own_share_B: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """The pixels that come from the partner, B×1×H×W: a box with the picture's proportions, centred anywhere."""
    side_share_B = (1.0 - own_share_B).sqrt()
    intervals = []
    for length in (height, width):
        half_B = (length * side_share_B).long() // 2
        centre_B = torch.randint(0, max(length, 1), half_B.shape, generator=generator, device=half_B.device)
        intervals.append(interval(centre_B - half_B, 2 * half_B, length))
    return rectangle(*intervals)
