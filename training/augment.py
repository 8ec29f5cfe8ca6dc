"""Augmentation of whole batches on the device they live on, drawn from one generator.

Everything takes and returns uint8 images, B×C×H×W, and treats each sample on its own: crop, flip, a policy
(`training.augment_policies`), cutout, erasing (`training.augment_boxes`). The generator must live on the device
of the images; the same seed, batch and device give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from training.augment_boxes import Range, check_area, random_erase, random_resized_crop
from training.augment_ops import Colour, check_colour, check_images, colour_1C11, memory_format_of
from training.augment_policies import auto_augment, check_rand, rand_augment, trivial_augment

Policy = Literal["none", "auto", "auto_imagenet", "rand", "trivial"]
CropBorder = Literal["fill", "reflect"]
EraseFill = Literal["noise", "mean"]


def _padded(images_BCHW: Tensor, padding: int, fill: int | Colour | Literal["reflect"]) -> Tensor:
    batch, channels, height, width = images_BCHW.shape
    if fill == "reflect":
        if padding >= min(height, width):
            raise ValueError(
                f"padding is {padding}; reflection of {height}×{width} images allows 0 to "
                f"{min(height, width) - 1}: use less padding or a constant fill"
            )
        rows = _reflected_indices(height, padding, images_BCHW.device)
        columns = _reflected_indices(width, padding, images_BCHW.device)
        return images_BCHW.index_select(2, rows).index_select(3, columns)
    padded_BCHW = torch.empty(
        (batch, channels, height + 2 * padding, width + 2 * padding),
        dtype=images_BCHW.dtype,
        device=images_BCHW.device,
        memory_format=memory_format_of(images_BCHW),
    )
    padded_BCHW.copy_(colour_1C11(fill, images_BCHW))
    padded_BCHW[:, :, padding : padding + height, padding : padding + width] = images_BCHW
    return padded_BCHW


def _reflected_indices(length: int, padding: int, device: torch.device) -> Tensor:
    distance = torch.arange(-padding, length + padding, device=device).abs()
    return (length - 1) - (length - 1 - distance).abs()


def random_crop(
    images_BCHW: Tensor,
    padding: int,
    generator: torch.Generator,
    fill: int | Colour | Literal["reflect"] = 0,
) -> Tensor:
    """Shift each image by up to `padding` pixels along both axes: pad all round, crop at a random place.

    `fill` is the value of the border (one for all channels or one for each), or "reflect" for the mirrored
    image. Raises ValueError for a negative padding, a fill that does not fit, and a reflection as wide as
    the image.
    """
    check_images(images_BCHW)
    if padding < 0:
        raise ValueError(f"padding is {padding} pixels; give 0 or more (4 is usual for 32×32 images)")
    if padding == 0:
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    windows_BCYXHW = _padded(images_BCHW, padding, fill).unfold(2, height, 1).unfold(3, width, 1)
    top_B, left_B = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator, device=device)
    # Adjacent indices keep their place in the result; those of B, Y and X are made so.
    windows_BYXCHW = windows_BCYXHW.permute(0, 2, 3, 1, 4, 5)
    cropped_BCHW = windows_BYXCHW[torch.arange(batch, device=device), top_B, left_B]
    return cropped_BCHW.contiguous(memory_format=memory_format_of(images_BCHW))


def random_flip(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    check_images(images_BCHW)
    batch = images_BCHW.shape[0]
    flipped_B = torch.rand(batch, generator=generator, device=images_BCHW.device) < 0.5
    return torch.where(flipped_B.view(-1, 1, 1, 1), images_BCHW.flip(3), images_BCHW)


def cutout(images_BCHW: Tensor, size: int, generator: torch.Generator, fill: int | Colour = 0) -> Tensor:
    """Paint a square of `size` × `size` pixels over each image, centred anywhere in it and clipped by it.

    Source: DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (arXiv 1708.04552). Theirs is zero after normalisation: give the mean colour of the data set as `fill`.
    Raises ValueError for a negative size or a fill that does not fit.
    """
    check_images(images_BCHW)
    if size < 0:
        raise ValueError(f"cutout size is {size} pixels; give 0 (none) or more (16 is usual for 32×32 images)")
    if size == 0:
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    hidden_BH = _hidden_interval(batch, height, size, generator, images_BCHW.device)
    hidden_BW = _hidden_interval(batch, width, size, generator, images_BCHW.device)
    hidden_B1HW = (hidden_BH.unsqueeze(2) & hidden_BW.unsqueeze(1)).unsqueeze(1)
    return torch.where(hidden_B1HW, colour_1C11(fill, images_BCHW), images_BCHW)


def _hidden_interval(batch: int, length: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    centre_B1 = torch.randint(0, max(length, 1), (batch, 1), generator=generator, device=device)
    offset_BL = torch.arange(length, device=device) - (centre_B1 - size // 2)
    return (offset_BL >= 0) & (offset_BL < size)


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training image, in this order: crop, flip, policy, cutout, erasing.

    crop_padding     pixels added on each side before the random crop; 0 for no crop
    flip             mirror left to right with probability one half
    policy           "none", "auto" (AutoAugment for CIFAR-10), "auto_imagenet" (AutoAugment for ImageNet),
                     "rand" (RandAugment) or "trivial" (TrivialAugment wide)
    cutout           side of the hidden square in pixels; 0 for none
    fill             colour of the pixels that come in from outside the image
    mean_colour      colour of the hidden square: the mean of the data set (default CIFAR-100), so that it is
                     zero after normalisation
    rand_operations  how many operations "rand" gives each image
    rand_magnitude   their strength, 0 to 20; 10 is the strongest of AutoAugment
    erase            probability of random erasing; 0 for none
    erase_fill       what the erased box gets: "noise" (random pixels) or "mean" (mean_colour)
    crop_border      what the crop pads with: "fill" or "reflect" (the mirrored image)
    resized_crop     range of the share of the area that is cropped and enlarged to the whole, in place of the
                     padded crop (crop_padding 0); (0.08, 1) is usual for ImageNet; None for none
    resized_side     side in pixels of what the resized crop gives; None for that of the images

    Raises ValueError for a value out of range.
    """

    crop_padding: int = 4
    flip: bool = True
    policy: Policy = "none"
    cutout: int = 0
    fill: tuple[int, int, int] = (128, 128, 128)
    mean_colour: tuple[int, int, int] = (129, 124, 112)
    rand_operations: int = 2
    rand_magnitude: int = 9
    erase: float = 0.0
    erase_fill: EraseFill = "noise"
    crop_border: CropBorder = "fill"
    resized_crop: Range | None = None
    resized_side: int | None = None

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding is {self.crop_padding} pixels; give 0 (no crop) or more, for example 4")
        for name, choices in (("policy", Policy), ("erase_fill", EraseFill), ("crop_border", CropBorder)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(choices))}")
        if self.cutout < 0:
            raise ValueError(f"cutout is {self.cutout} pixels; give 0 (none) or more, for example 16")
        check_colour("fill", self.fill)
        check_colour("mean_colour", self.mean_colour)
        check_rand(self.rand_operations, self.rand_magnitude)
        if not 0.0 <= self.erase <= 1.0:
            raise ValueError(f"erase is {self.erase}; give a probability of 0 (none) to 1, for example 0.25")
        if self.resized_crop is not None:
            check_area("resized_crop", self.resized_crop)
            if self.crop_padding:
                raise ValueError(
                    f"resized_crop {self.resized_crop} takes the place of the padded crop, but crop_padding is "
                    f"{self.crop_padding}; set one of them to None or 0"
                )
        if self.resized_side is not None and (self.resized_crop is None or self.resized_side < 1):
            raise ValueError(f"resized_side is {self.resized_side}; give a side in pixels, together with resized_crop")

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a uint8 batch; the generator lives on its device. The input is left as it is."""
        if self.resized_crop is not None:
            images_BCHW = random_resized_crop(images_BCHW, self.resized_crop, generator, side=self.resized_side)
        else:
            border = self.fill if self.crop_border == "fill" else self.crop_border
            images_BCHW = random_crop(images_BCHW, self.crop_padding, generator, border)
        if self.flip:
            images_BCHW = random_flip(images_BCHW, generator)
        images_BCHW = self._by_policy(images_BCHW, generator)
        images_BCHW = cutout(images_BCHW, self.cutout, generator, self.mean_colour)
        erased = self.mean_colour if self.erase_fill == "mean" else self.erase_fill
        return random_erase(images_BCHW, self.erase, generator, erased)

    def _by_policy(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        match self.policy:
            case "auto":
                return auto_augment(images_BCHW, generator, self.fill)
            case "auto_imagenet":
                return auto_augment(images_BCHW, generator, self.fill, searched="imagenet")
            case "rand":
                return rand_augment(
                    images_BCHW,
                    generator,
                    self.fill,
                    operations=self.rand_operations,
                    magnitude=self.rand_magnitude,
                )
            case "trivial":
                return trivial_augment(images_BCHW, generator, self.fill)
            case "none":
                return images_BCHW
