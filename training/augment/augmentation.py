"""Augmentation of whole batches on their device, with random numbers of one generator.

Each function takes and returns uint8 images, B×C×H×W, and treats each image on its own. The generator lives on the
device of the images. The same seed, batch and device give the same result. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.training.augment.policies import FILL, auto_augment, memory_format_of, rand_augment, trivial_augment

Policy = Literal["none", "auto", "auto_imagenet", "rand", "trivial"]
Range = tuple[float, float]
Colour = tuple[int, int, int]

# Draws of a box for each image, before a box that never fits is shrunk.
TRIES = 10
# Ranges of the width-to-height ratio of resized crops, and of area and ratio of erased boxes.
CROP_ASPECT: Range = (3 / 4, 4 / 3)
ERASE_AREA: Range = (0.02, 0.4)
ERASE_ASPECT: Range = (0.3, 1 / 0.3)


def check_images(images_BCHW: Tensor) -> None:
    """Raise ValueError unless the argument is a batch of 8-bit pictures, uint8 B×C×H×W."""
    if images_BCHW.ndim != 4 or images_BCHW.dtype != torch.uint8:
        raise ValueError(
            f"images have shape {tuple(images_BCHW.shape)} and type {images_BCHW.dtype}; augmentation takes "
            "uint8 B×C×H×W: stack the pictures and keep them unnormalised"
        )


def random_crop(images_BCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `padding` pixels along both axes: add a grey border, crop at a random place."""
    if padding == 0:
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    windows_BCYXHW = F.pad(images_BCHW, [padding] * 4, value=FILL).unfold(2, height, 1).unfold(3, width, 1)
    top_B, left_B = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator, device=device)
    # Adjacent indices keep their place in the result. The permutation makes those of B, Y and X adjacent.
    windows_BYXCHW = windows_BCYXHW.permute(0, 2, 3, 1, 4, 5)
    cropped_BCHW = windows_BYXCHW[torch.arange(batch, device=device), top_B, left_B]
    return cropped_BCHW.contiguous(memory_format=memory_format_of(images_BCHW))


def random_flip(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    flipped_B = torch.rand(len(images_BCHW), generator=generator, device=images_BCHW.device) < 0.5
    return torch.where(flipped_B.view(-1, 1, 1, 1), images_BCHW.flip(3), images_BCHW)


def cutout(images_BCHW: Tensor, size: int, generator: torch.Generator, colour: Colour) -> Tensor:
    """Paint a square of `size` × `size` pixels over each image, centred anywhere in it and clipped by its border.

    Source: DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (arXiv 1708.04552). Their square is zero after normalisation: `colour` is the mean colour of the data set.
    """
    if size == 0:
        return images_BCHW
    device, intervals = images_BCHW.device, []
    for length in images_BCHW.shape[2:]:
        centre_B = torch.randint(0, max(length, 1), (len(images_BCHW),), generator=generator, device=device)
        intervals.append(interval(centre_B - size // 2, size, length))
    return torch.where(rectangle(*intervals), _colour_1C11(colour, device), images_BCHW)


# Cached, because a GPU finishes its work before each copy from the host. Never changed in place.
@lru_cache(maxsize=64)
def _colour_1C11(colour: Colour, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(colour, dtype=torch.uint8, device=device).view(1, -1, 1, 1)


def interval(first_B: Tensor, length_B: Tensor | int, count: int) -> Tensor:
    """Which of `count` pixels lie in an interval, B×count."""
    offset_BL = torch.arange(count, device=first_B.device) - first_B.unsqueeze(1)
    return (offset_BL >= 0) & (offset_BL < (length_B.unsqueeze(1) if isinstance(length_B, Tensor) else length_B))


def rectangle(rows_BH: Tensor, columns_BW: Tensor) -> Tensor:
    """The pixels in an interval of rows and an interval of columns, B×1×H×W."""
    return (rows_BH.unsqueeze(2) & columns_BW.unsqueeze(1)).unsqueeze(1)


@dataclass(frozen=True)
class Boxes:
    """A box inside each image. height_B, width_B: its sides in pixels, not rounded.

    down_B, across_B: its place, as shares (0..1) of the room that the box leaves along each axis.
    """

    height_B: Tensor
    width_B: Tensor
    down_B: Tensor
    across_B: Tensor


def random_boxes(
    batch: int, height: int, width: int, area: Range, aspect: Range, generator: torch.Generator, device: torch.device
) -> Boxes:
    """A box for each image: area uniform in a range, aspect (width to height) log-uniform, place uniform.

    Area and aspect are drawn again until the box fits, up to ten times. A box that never fits is shrunk.
    """
    area_TB, aspect_TB = torch.rand((2, TRIES, batch), generator=generator, device=device)
    area_TB = (area[0] + (area[1] - area[0]) * area_TB) * (height * width)
    aspect_TB = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * aspect_TB)
    height_TB, width_TB = (area_TB / aspect_TB).sqrt(), (area_TB * aspect_TB).sqrt()
    shrink_TB = torch.minimum(height / height_TB, width / width_TB).clamp(max=1.0)
    # argmax gives the first of equal values, so the first box that fits.
    chosen_1B = (shrink_TB == 1.0).int().argmax(0, keepdim=True)
    shrink_B = shrink_TB.gather(0, chosen_1B)[0]
    height_B = (height_TB.gather(0, chosen_1B)[0] * shrink_B).clamp(max=height)
    width_B = (width_TB.gather(0, chosen_1B)[0] * shrink_B).clamp(max=width)
    down_B, across_B = torch.rand((2, batch), generator=generator, device=device)
    return Boxes(height_B, width_B, down_B, across_B)


def random_resized_crop(
    images_BCHW: Tensor, area: Range, generator: torch.Generator, aspect: Range = CROP_ASPECT, side: int | None = None
) -> Tensor:
    """Resize a random box of each image to one size, bilinearly.

    area: range of the box's share of the image. side: side of the square result in pixels; None for the images' size.
    Source: Szegedy et al., "Going deeper with convolutions" (CVPR 2015, arXiv 1409.4842), section 6.
    """
    batch, _, height, width = images_BCHW.shape
    boxes = random_boxes(batch, height, width, area, aspect, generator, images_BCHW.device)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the image.
    y_BH = _sampled_places(boxes.height_B, boxes.down_B, height, side or height) * (2 / height) - 1
    x_BW = _sampled_places(boxes.width_B, boxes.across_B, width, side or width) * (2 / width) - 1
    grid_BHW2 = torch.stack(torch.broadcast_tensors(x_BW.unsqueeze(1), y_BH.unsqueeze(2)), 3)
    values_BCHW = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
    # The border is continued outside the picture, as in Pillow's resize with a box.
    resized_BCHW = F.grid_sample(values_BCHW, grid_BHW2, "bilinear", "border", align_corners=False)
    return resized_BCHW.round_().to(torch.uint8, memory_format=memory_format_of(images_BCHW))


def _sampled_places(side_B: Tensor, place_B: Tensor, length: int, count: int) -> Tensor:
    """The centres of `count` equal cells of each box along one axis of `length` pixels, in pixels, B×count."""
    share_L = (torch.arange(count, device=side_B.device) + 0.5) / count
    start_B = place_B * (length - side_B)
    return start_B.unsqueeze(1) + side_B.unsqueeze(1) * share_L


def random_erase(images_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Paint random pixels over a random box of each image, with a probability for each image.

    The ranges of area and aspect are the paper's. The aspect is log-uniform here, so that tall and wide boxes are
    equally likely. Source: Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020, arXiv 1708.04896).
    """
    if probability == 0:
        return images_BCHW
    device = images_BCHW.device
    erased_B1HW = erased_pixels(images_BCHW, probability, generator)
    noise_BCHW = torch.randint(0, 256, images_BCHW.shape, dtype=torch.uint8, generator=generator, device=device)
    erased_BCHW = torch.where(erased_B1HW, noise_BCHW, images_BCHW)
    return erased_BCHW.contiguous(memory_format=memory_format_of(images_BCHW))


def erased_pixels(
    images_BCHW: Tensor,
    probability: float,
    generator: torch.Generator,
    area: Range = ERASE_AREA,
    aspect: Range = ERASE_ASPECT,
) -> Tensor:
    """Which pixels erasing hides, B×1×H×W: with `probability` a box that lies wholly inside the image."""
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    chosen_B = torch.rand(batch, generator=generator, device=device) < probability
    boxes = random_boxes(batch, height, width, area, aspect, generator, device)
    rows_BH = _whole_pixels(boxes.height_B, boxes.down_B, height)
    columns_BW = _whole_pixels(boxes.width_B, boxes.across_B, width) & chosen_B.unsqueeze(1)
    return rectangle(rows_BH, columns_BW)


def _whole_pixels(side_B: Tensor, place_B: Tensor, length: int) -> Tensor:
    """The pixels that each box covers along one axis, B×length. Its side is rounded; all places are equally likely."""
    pixels_B = side_B.round().clamp(1, max(length, 1))
    room_B = length - pixels_B
    first_B = torch.minimum((place_B * (room_B + 1)).floor(), room_B)
    return interval(first_B, pixels_B, length)


@dataclass(frozen=True)
class Augmentation:
    """The variations of each training image, in this order: crop, flip, policy, cutout, erasing.

    crop_padding: pixels added on each side before the random crop; 0 for no crop.
    flip: mirror left to right with probability one half.
    policy: "none", "auto" (AutoAugment for CIFAR-10), "auto_imagenet" (AutoAugment for ImageNet), "rand" (RandAugment)
        or "trivial" (TrivialAugment wide).
    cutout: side of the hidden square in pixels; 0 for none.
    mean_colour: colour of the hidden square, the mean of the data set (default CIFAR-100).
    erase: probability of random erasing.
    resized_crop: range of the share of the area that is cropped and resized to the whole, in place of the padded crop
        (crop_padding 0); (0.08, 1) is usual for ImageNet; None for none.
    resized_side: side of the resized crop in pixels; None for that of the images.
    Raises ValueError for a value out of range.
    """

    crop_padding: int = 4
    flip: bool = True
    policy: Policy = "none"
    cutout: int = 0
    mean_colour: Colour = (129, 124, 112)
    erase: float = 0.0
    resized_crop: Range | None = None
    resized_side: int | None = None

    def __post_init__(self) -> None:
        crop, side = self.resized_crop, self.resized_side
        checks = (
            ("crop_padding", self.crop_padding >= 0, "0 (no crop) or more pixels, for example 4"),
            ("policy", self.policy in get_args(Policy), f"one of {', '.join(get_args(Policy))}"),
            ("cutout", self.cutout >= 0, "0 (none) or more pixels, for example 16"),
            ("mean_colour", all(0 <= value <= 255 for value in self.mean_colour), "whole numbers from 0 to 255"),
            ("erase", 0.0 <= self.erase <= 1.0, "a probability of 0 (none) to 1, for example 0.25"),
            (
                "resized_crop",
                crop is None or 0 < crop[0] <= crop[1] <= 1,
                "the least and the greatest share of the area, above 0 and up to 1",
            ),
            ("resized_side", side is None or (crop and side >= 1), "a side in pixels, together with resized_crop"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give {allowed}")
        if crop is not None and self.crop_padding:
            raise ValueError(
                f"resized_crop {crop} takes the place of the padded crop, but crop_padding is {self.crop_padding}; "
                "set one of them to None or 0"
            )

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a uint8 batch. The generator lives on its device. The input is not changed.

        Raises ValueError for a batch of another type or shape.
        """
        check_images(images_BCHW)
        if self.resized_crop is not None:
            images_BCHW = random_resized_crop(images_BCHW, self.resized_crop, generator, side=self.resized_side)
        else:
            images_BCHW = random_crop(images_BCHW, self.crop_padding, generator)
        if self.flip:
            images_BCHW = random_flip(images_BCHW, generator)
        match self.policy:
            case "auto":
                images_BCHW = auto_augment(images_BCHW, generator)
            case "auto_imagenet":
                images_BCHW = auto_augment(images_BCHW, generator, "imagenet")
            case "rand":
                images_BCHW = rand_augment(images_BCHW, generator)
            case "trivial":
                images_BCHW = trivial_augment(images_BCHW, generator)
        images_BCHW = cutout(images_BCHW, self.cutout, generator, self.mean_colour)
        return random_erase(images_BCHW, self.erase, generator)
