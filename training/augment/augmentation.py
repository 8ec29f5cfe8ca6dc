"""Augmentation of whole batches on the device they live on, with random numbers of one generator.

Everything takes and returns uint8 images, B×C×H×W, and treats each sample on its own: crop, flip, a policy
(`augment.policies`), cutout, erasing. The generator must live on the device of the images. The same seed, batch and
device give the same result. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.training.augment.policies import (
    Colour,
    auto_augment,
    check_colour,
    check_images,
    colour_1C11,
    memory_format_of,
    rand_augment,
    trivial_augment,
)

Policy = Literal["none", "auto", "auto_imagenet", "rand", "trivial"]
Range = tuple[float, float]

# Draws of a box for each sample, before one that never fits is shrunk.
TRIES = 10
# Ranges of the width-to-height ratio of resized crops, and of area and ratio of erased boxes.
CROP_ASPECT: Range = (3 / 4, 4 / 3)
ERASE_AREA: Range = (0.02, 0.4)
ERASE_ASPECT: Range = (0.3, 1 / 0.3)


def random_crop(images_BCHW: Tensor, padding: int, generator: torch.Generator, fill: int | Colour = 0) -> Tensor:
    """Shift each image by up to `padding` pixels along both axes: pad all round, crop at a random place.

    fill: the value of the border, one for all channels or one for each.
    Raises ValueError for a negative padding or a fill that does not fit.
    """
    check_images(images_BCHW)
    if padding < 0:
        raise ValueError(f"padding is {padding} pixels; give 0 or more (4 is usual for 32×32 images)")
    if padding == 0:
        return images_BCHW
    batch, channels, height, width = images_BCHW.shape
    device, layout = images_BCHW.device, memory_format_of(images_BCHW)
    padded_BCHW = torch.empty(
        (batch, channels, height + 2 * padding, width + 2 * padding),
        dtype=images_BCHW.dtype,
        device=device,
        memory_format=layout,
    )
    padded_BCHW.copy_(colour_1C11(fill, images_BCHW))
    padded_BCHW[:, :, padding : padding + height, padding : padding + width] = images_BCHW
    windows_BCYXHW = padded_BCHW.unfold(2, height, 1).unfold(3, width, 1)
    top_B, left_B = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator, device=device)
    # Adjacent indices keep their place in the result; this makes those of B, Y and X adjacent.
    windows_BYXCHW = windows_BCYXHW.permute(0, 2, 3, 1, 4, 5)
    cropped_BCHW = windows_BYXCHW[torch.arange(batch, device=device), top_B, left_B]
    return cropped_BCHW.contiguous(memory_format=layout)


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
    device, intervals = images_BCHW.device, []
    for length in images_BCHW.shape[2:]:
        centre_B = torch.randint(0, max(length, 1), (len(images_BCHW), 1), generator=generator, device=device)[:, 0]
        intervals.append(_interval(centre_B - size // 2, size, length))
    return torch.where(_rectangle(*intervals), colour_1C11(fill, images_BCHW), images_BCHW)


def _interval(first_B: Tensor, length_B: Tensor | int, count: int) -> Tensor:
    """Which of `count` pixels lie in an interval, B×count."""
    offset_BL = torch.arange(count, device=first_B.device) - first_B.unsqueeze(1)
    return (offset_BL >= 0) & (offset_BL < (length_B.unsqueeze(1) if isinstance(length_B, Tensor) else length_B))


def _rectangle(rows_BH: Tensor, columns_BW: Tensor) -> Tensor:
    """The pixels in rows and columns of an interval each, B×1×H×W."""
    return (rows_BH.unsqueeze(2) & columns_BW.unsqueeze(1)).unsqueeze(1)


@dataclass(frozen=True)
class Boxes:
    """A box inside each picture. height_B, width_B: its sides in pixels, not rounded.

    down_B, across_B: its place, as shares (0..1) of the room that the box leaves along each axis.
    """

    height_B: Tensor
    width_B: Tensor
    down_B: Tensor
    across_B: Tensor


def check_area(name: str, area: Range) -> None:
    """Raise ValueError unless the range holds shares of a picture's area, the lower one first."""
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"{name} is {area}; give the least and the greatest share of the area, above 0 and up to 1")


def random_boxes(
    batch: int,
    height: int,
    width: int,
    area: Range,
    aspect: Range,
    generator: torch.Generator,
    device: torch.device,
) -> Boxes:
    """A box for each sample: area uniform in a range, aspect (width to height) log-uniform, place uniform.

    Area and aspect are drawn again until the box fits, up to ten times. A box that never fits is shrunk.
    Raises ValueError for a range that is empty, negative or in the wrong order.
    """
    check_area("area", area)
    if not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ValueError(f"aspect is {aspect}; give the least and the greatest width to height, both above 0")
    area_TB, aspect_TB = torch.rand((2, TRIES, batch), generator=generator, device=device)
    area_TB = (area[0] + (area[1] - area[0]) * area_TB) * (height * width)
    aspect_TB = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * aspect_TB)
    height_TB, width_TB = (area_TB / aspect_TB).sqrt(), (area_TB * aspect_TB).sqrt()
    shrink_TB = torch.minimum(height / height_TB, width / width_TB).clamp(max=1.0)
    # argmax gives the first of equal values, so the first that fits.
    chosen_1B = (shrink_TB == 1.0).int().argmax(0, keepdim=True)
    shrink_B = shrink_TB.gather(0, chosen_1B)[0]
    height_B = (height_TB.gather(0, chosen_1B)[0] * shrink_B).clamp(max=height)
    width_B = (width_TB.gather(0, chosen_1B)[0] * shrink_B).clamp(max=width)
    down_B, across_B = torch.rand((2, batch), generator=generator, device=device)
    return Boxes(height_B, width_B, down_B, across_B)


def random_resized_crop(
    images_BCHW: Tensor,
    area: Range,
    generator: torch.Generator,
    aspect: Range = CROP_ASPECT,
    side: int | None = None,
) -> Tensor:
    """Resize a random box of each image to one size, bilinearly.

    area: the range of the box's share of the image; (0.08, 1) is usual for ImageNet. side: side of the square result in
    pixels; None for the size of the images.
    Raises ValueError for a range out of order. Source: Szegedy et al., "Going deeper with convolutions"
    (CVPR 2015, arXiv 1409.4842), section 6.
    """
    check_images(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    boxes = random_boxes(batch, height, width, area, aspect, generator, images_BCHW.device)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the image.
    y_BH = _sampled_places(boxes.height_B, boxes.down_B, height, side or height) * (2 / height) - 1
    x_BW = _sampled_places(boxes.width_B, boxes.across_B, width, side or width) * (2 / width) - 1
    grid_BHW2 = torch.stack(torch.broadcast_tensors(x_BW.unsqueeze(1), y_BH.unsqueeze(2)), 3)
    values_BCHW = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
    # The border is continued outside the picture, as in Pillow's resize with a box.
    enlarged_BCHW = F.grid_sample(values_BCHW, grid_BHW2, "bilinear", "border", align_corners=False)
    return enlarged_BCHW.round_().to(torch.uint8, memory_format=memory_format_of(images_BCHW))


def _sampled_places(side_B: Tensor, place_B: Tensor, length: int, count: int) -> Tensor:
    """The centres of `count` equal cells of each box along one axis of `length` pixels, in pixels, B×count."""
    share_L = (torch.arange(count, device=side_B.device) + 0.5) / count
    start_B = place_B * (length - side_B)
    return start_B.unsqueeze(1) + side_B.unsqueeze(1) * share_L


def random_erase(images_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Paint random pixels over a random box of each image, with a probability for each image.

    The ranges of area and aspect are the paper's; the aspect is log-uniform here, so that tall and wide boxes are
    equally likely. Raises ValueError for a probability outside 0..1. Source: Zhong et al., "Random Erasing Data
    Augmentation" (AAAI 2020, arXiv 1708.04896).
    """
    check_images(images_BCHW)
    if not 0 <= probability <= 1:
        raise ValueError(f"erase probability is {probability}; give 0 (never) to 1 (always), for example 0.5")
    if probability == 0:
        return images_BCHW
    erased_B1HW = erased_pixels(images_BCHW, probability, generator)
    noise_BCHW = torch.randint(
        0, 256, images_BCHW.shape, dtype=torch.uint8, generator=generator, device=images_BCHW.device
    )
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
    return _rectangle(rows_BH, columns_BW)


def _whole_pixels(side_B: Tensor, place_B: Tensor, length: int) -> Tensor:
    """The pixels that each box covers along one axis, its side rounded, all places equally likely, B×length."""
    pixels_B = side_B.round().clamp(1, max(length, 1))
    room_B = length - pixels_B
    first_B = torch.minimum((place_B * (room_B + 1)).floor(), room_B)
    return _interval(first_B, pixels_B, length)


@dataclass(frozen=True)
class Augmentation:
    """The variations of each training image, in this order: crop, flip, policy, cutout, erasing.

    crop_padding: pixels added on each side before the random crop; 0 for no crop.
    flip: mirror left to right with probability one half.
    policy: "none", "auto" (AutoAugment for CIFAR-10), "auto_imagenet" (AutoAugment for ImageNet), "rand" (RandAugment)
        or "trivial" (TrivialAugment wide).
    cutout: side of the hidden square in pixels; 0 for none.
    fill: colour of the pixels from outside the image.
    mean_colour: colour of the hidden square, the mean of the data set (default CIFAR-100): zero after normalisation.
    erase: probability of random erasing; 0 for none.
    resized_crop: range of the share of the area that is cropped and resized to the whole, in place of the padded crop
        (crop_padding 0); (0.08, 1) is usual for ImageNet; None for none.
    resized_side: side of the resized crop in pixels; None for that of the images.
    Raises ValueError for a value out of range.
    """

    crop_padding: int = 4
    flip: bool = True
    policy: Policy = "none"
    cutout: int = 0
    fill: tuple[int, int, int] = (128, 128, 128)
    mean_colour: tuple[int, int, int] = (129, 124, 112)
    erase: float = 0.0
    resized_crop: Range | None = None
    resized_side: int | None = None

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding is {self.crop_padding} pixels; give 0 (no crop) or more, for example 4")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy is {self.policy!r}; give one of {', '.join(get_args(Policy))}")
        if self.cutout < 0:
            raise ValueError(f"cutout is {self.cutout} pixels; give 0 (none) or more, for example 16")
        check_colour("fill", self.fill)
        check_colour("mean_colour", self.mean_colour)
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
        """Augment a uint8 batch. The generator lives on its device. The input is not changed."""
        if self.resized_crop is not None:
            images_BCHW = random_resized_crop(images_BCHW, self.resized_crop, generator, side=self.resized_side)
        else:
            images_BCHW = random_crop(images_BCHW, self.crop_padding, generator, self.fill)
        if self.flip:
            images_BCHW = random_flip(images_BCHW, generator)
        match self.policy:
            case "auto":
                images_BCHW = auto_augment(images_BCHW, generator, self.fill)
            case "auto_imagenet":
                images_BCHW = auto_augment(images_BCHW, generator, self.fill, searched="imagenet")
            case "rand":
                images_BCHW = rand_augment(images_BCHW, generator, self.fill)
            case "trivial":
                images_BCHW = trivial_augment(images_BCHW, generator, self.fill)
        images_BCHW = cutout(images_BCHW, self.cutout, generator, self.mean_colour)
        return random_erase(images_BCHW, self.erase, generator)
