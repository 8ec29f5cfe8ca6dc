"""Mixing the pictures and the labels of a batch with one another: mixup and CutMix. One-hot and smoothed labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment_ops import check_images


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

    mixup        alpha of the Beta(alpha, alpha) that the share is drawn from; 0 for no mixup
    cutmix       the same for CutMix, where the share is the area that the picture keeps; 0 for no CutMix
    probability  that a batch is mixed at all

    Where both are on, each batch gets one of them, with equal probability. Partners are a random permutation of
    the batch. Every picture has its own share (and box), where the papers draw one for the whole batch: all
    batches then hold the same mixture, so that batch norm's running statistics fit each of them, and losses of
    one batch and the next are less unlike. CutMix's boxes reach over the border and are clipped by it; labels
    are mixed by the area that is left.

    Sources: Zhang et al., "mixup" (ICLR 2018, arXiv 1710.09412); Yun et al., "CutMix" (ICCV 2019, arXiv
    1905.04899). Raises ValueError for a value out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0.0 <= alpha < math.inf:
                raise ValueError(f"{name} is {alpha}; give 0 (none) or a finite number above it, for example 1.0")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability is {self.probability}; give 0 (never mix) to 1 (mix every batch)")

    @property
    def enabled(self) -> bool:
        """Whether a batch is ever changed; else labels may stay whole numbers."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, images_BCHW: Tensor, targets_BC: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a uint8 batch and its soft labels (`one_hot`), float B×classes; both are left as they are.

        The generator lives on the device of the batch, and nothing here waits for that device. Mixed pictures
        are rounded to the nearest value. Raises ValueError for images or targets of another shape or type.
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
        """How much of each pixel is the picture's own, 0..1; B×1×H×W, or B×1×1×1 where all pixels are alike."""
        batch, _, height, width = images_BCHW.shape
        mixed, cut = torch.rand((2, 1, 1, 1, 1), generator=generator, device=images_BCHW.device)
        blended_B111 = kept_B1HW = torch.ones((), device=images_BCHW.device)
        if self.mixup:
            blended_B111 = symmetric_beta(self.mixup, batch, generator).view(-1, 1, 1, 1)
        if self.cutmix:
            share_B = symmetric_beta(self.cutmix, batch, generator)
            kept_B1HW = (~_cut_boxes(share_B, height, width, generator)).unsqueeze(1).float()
        if self.mixup and self.cutmix:
            # Decided on the device, at the price of drawing for both: asking on the host would wait for it.
            weight_B1HW = torch.where(cut < 0.5, kept_B1HW, blended_B111)
        else:
            weight_B1HW = kept_B1HW if self.cutmix else blended_B111
        return torch.where(mixed < self.probability, weight_B1HW, 1.0)


def symmetric_beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha) on the generator's device, float32: one of two Gammas to their sum."""
    concentration_2N = torch.full((2, count), alpha, dtype=torch.float64, device=generator.device)
    # What torch.distributions draws with, which takes no generator. Its least value is above 0, so no sum is 0.
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
