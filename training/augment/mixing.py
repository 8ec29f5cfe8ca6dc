"""mixup and CutMix: pictures and labels of a batch are mixed with one another. One-hot and smoothed labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.training.augment.policies import check_images


def one_hot(labels_B: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels as probabilities, float32 B×classes: 1 - smoothing for the label, and smoothing spread over all.

    Raises ValueError for labels that are not int64 of one dimension, or a smoothing outside 0..1 (1 excluded).
    Source of the smoothing: Szegedy et al., "Rethinking the Inception Architecture" (CVPR 2016, arXiv
    1512.00567), section 7.
    """
    if labels_B.ndim != 1 or labels_B.dtype != torch.int64:
        raise ValueError(
            f"labels have shape {tuple(labels_B.shape)} and type {labels_B.dtype}; give one int64 class for each image"
        )
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing is {smoothing}; give 0 (none) up to but not including 1, for example 0.1")
    spread = smoothing / num_classes
    targets_BC = torch.full((len(labels_B), num_classes), spread, device=labels_B.device)
    return targets_BC.scatter_(1, labels_B.unsqueeze(1), 1.0 - smoothing + spread)


@dataclass(frozen=True)
class Mixing:
    """Mixes each picture of a batch, and its label by the same share, with another picture of the batch.

    mixup: alpha of the Beta(alpha, alpha) distribution of the share; 0 for no mixup.
    cutmix: the same for CutMix, where the share is the area that the picture keeps; 0 for no CutMix.

    With both on, each batch gets one of them, with equal probability. Partners are a random permutation of the batch.
    Every picture has its own share (and box); the papers draw one for the whole batch. So all batches hold the same
    mixture, batch norm's running statistics fit each of them, and losses vary less from batch to batch. CutMix's boxes
    reach over the border and are clipped by it. Labels are mixed by the remaining area.

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
        """Mix a uint8 batch and its soft labels (`one_hot`), float B×classes; both are left as they are.

        The generator lives on the device of the batch; nothing here waits for that device. Values of mixed pictures are
        rounded to nearest. Raises ValueError for images or targets of another shape or type.
        """
        check_images(images_BCHW)
        if targets_BC.ndim != 2 or len(targets_BC) != len(images_BCHW) or not targets_BC.is_floating_point():
            raise ValueError(
                f"targets have shape {tuple(targets_BC.shape)} and type {targets_BC.dtype} for {len(images_BCHW)} "
                "images; give probabilities, images × classes: one_hot makes them of labels"
            )
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
        # The first number has no use any more. It is drawn so that a seed gives the same batches as before.
        _, coin = torch.rand((2, 1, 1, 1, 1), generator=generator, device=images_BCHW.device)
        own_B111 = own_B1HW = torch.ones((), device=images_BCHW.device)
        if self.mixup:
            own_B111 = symmetric_beta(self.mixup, batch, generator).view(-1, 1, 1, 1)
        if self.cutmix:
            share_B = symmetric_beta(self.cutmix, batch, generator)
            own_B1HW = (~_cut_boxes(share_B, height, width, generator)).unsqueeze(1).float()
        if self.mixup and self.cutmix:
            # Both are drawn, and the device chooses: a choice on the host would wait for the device.
            return torch.where(coin < 0.5, own_B1HW, own_B111)
        return own_B1HW if self.cutmix else own_B111


def symmetric_beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha) on the generator's device, float32: one of two Gammas to their sum."""
    concentration_2N = torch.full((2, count), alpha, dtype=torch.float64, device=generator.device)
    # torch.distributions draws with this function, but takes no generator. Its least value is above 0, so no sum is 0.
    gamma_2N = torch._standard_gamma(concentration_2N, generator=generator)
    return (gamma_2N[0] / gamma_2N.sum(0)).float()


def _cut_boxes(kept_share_B: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """The pixels that come from the partner, B×H×W: as CutMix's, of the proportions of the picture."""
    side_share_B = (1.0 - kept_share_B).sqrt()
    hidden_BH = _cut_interval(side_share_B, height, generator)
    hidden_BW = _cut_interval(side_share_B, width, generator)
    return hidden_BH.unsqueeze(2) & hidden_BW.unsqueeze(1)


def _cut_interval(side_share_B: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Which of `length` pixels are inside an interval of that share, centred anywhere and clipped, B×length."""
    size_B1 = (length * side_share_B).long().unsqueeze(1)
    centre_B1 = torch.randint(0, max(length, 1), size_B1.shape, generator=generator, device=size_B1.device)
    first_B1, end_B1 = centre_B1 - size_B1 // 2, centre_B1 + size_B1 // 2
    place_L = torch.arange(length, device=size_B1.device)
    return (place_L >= first_B1) & (place_L < end_B1)
