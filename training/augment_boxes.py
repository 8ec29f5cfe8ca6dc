"""What is done with a random box inside each picture of a batch: enlarging it to the whole, or erasing it.

Takes and returns uint8 B×C×H×W on the device the batch lives on, as all of `training.augment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment_ops import Colour, check_images, colour_1C11, memory_format_of

Range = tuple[float, float]

# Boxes drawn for each sample before one that fits nowhere is shrunk.
TRIES = 10


@dataclass(frozen=True)
class Boxes:
    """A box inside each picture: its sides in pixels, not whole numbers, and where it lies.

    down_B and across_B are shares, 0 to 1, of the room that the box leaves along each axis.
    """

    height_B: Tensor
    width_B: Tensor
    down_B: Tensor
    across_B: Tensor


def check_area(name: str, area: Range) -> None:
    """Raise ValueError unless the range holds shares of a picture's area, lower one first."""
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

    Area and aspect are drawn again until the box fits, up to ten times; one that still does not is shrunk
    until it does. Raises ValueError for a range that is empty, negative or turned round.
    """
    check_area("area", area)
    if not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ValueError(f"aspect is {aspect}; give the least and the greatest width to height, both above 0")
    area_TB, aspect_TB = torch.rand((2, TRIES, batch), generator=generator, device=device)
    area_TB = (area[0] + (area[1] - area[0]) * area_TB) * (height * width)
    aspect_TB = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * aspect_TB)
    height_TB, width_TB = (area_TB / aspect_TB).sqrt(), (area_TB * aspect_TB).sqrt()
    shrink_TB = torch.minimum(height / height_TB, width / width_TB).clamp(max=1.0)
    # The first of the greatest, so the first that fits.
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
    aspect: Range = (3 / 4, 4 / 3),
    side: int | None = None,
) -> Tensor:
    """Bring a random box of each image to one size, bilinearly.

    area: the range of the box's share of the image; (0.08, 1) is usual for ImageNet. side: of the square result in
    pixels; None for the size of the images.
    Raises ValueError for a range out of order. Source: Szegedy et al., "Going deeper with convolutions"
    (CVPR 2015, arXiv 1409.4842), section 6.
    """
    check_images(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    boxes = random_boxes(batch, height, width, area, aspect, generator, device)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the image.
    y_BH = _sampled_places(boxes.height_B, boxes.down_B, height, side or height) * (2 / height) - 1
    x_BW = _sampled_places(boxes.width_B, boxes.across_B, width, side or width) * (2 / width) - 1
    grid_BHW2 = torch.stack(torch.broadcast_tensors(x_BW.unsqueeze(1), y_BH.unsqueeze(2)), 3)
    values_BCHW = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
    # Beyond the border the border goes on, as in Pillow's resize with a box.
    enlarged_BCHW = F.grid_sample(values_BCHW, grid_BHW2, "bilinear", "border", align_corners=False)
    return enlarged_BCHW.round_().to(torch.uint8, memory_format=memory_format_of(images_BCHW))


def _sampled_places(side_B: Tensor, place_B: Tensor, length: int, count: int) -> Tensor:
    """The centres of `count` equal cells of each box along one axis of `length` pixels, in pixels, B×count."""
    share_L = (torch.arange(count, device=side_B.device) + 0.5) / count
    start_B = place_B * (length - side_B)
    return start_B.unsqueeze(1) + side_B.unsqueeze(1) * share_L


def random_erase(
    images_BCHW: Tensor,
    probability: float,
    generator: torch.Generator,
    fill: int | Colour | Literal["noise"] = "noise",
    area: Range = (0.02, 0.4),
    aspect: Range = (0.3, 1 / 0.3),
) -> Tensor:
    """With a probability for each image, paint over a random box that lies wholly inside it.

    `fill` is a colour, or "noise" for random pixels, which the paper found best. Its ranges of area and aspect
    are the defaults; the aspect is log-uniform here, so that tall and wide are alike. Raises ValueError for a
    probability outside 0..1, ranges out of order or a fill that does not fit. Source: Zhong et al., "Random
    Erasing Data Augmentation" (AAAI 2020, arXiv 1708.04896).
    """
    check_images(images_BCHW)
    if not 0 <= probability <= 1:
        raise ValueError(f"erase probability is {probability}; give 0 (never) to 1 (always), for example 0.5")
    if probability == 0:
        return images_BCHW
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    chosen_B = torch.rand(batch, generator=generator, device=device) < probability
    boxes = random_boxes(batch, height, width, area, aspect, generator, device)
    hidden_BH = _whole_pixels(boxes.height_B, boxes.down_B, height)
    hidden_BW = _whole_pixels(boxes.width_B, boxes.across_B, width) & chosen_B.unsqueeze(1)
    hidden_B1HW = (hidden_BH.unsqueeze(2) & hidden_BW.unsqueeze(1)).unsqueeze(1)
    if fill == "noise":
        paint = torch.randint(0, 256, images_BCHW.shape, dtype=torch.uint8, generator=generator, device=device)
    else:
        paint = colour_1C11(fill, images_BCHW)
    return torch.where(hidden_B1HW, paint, images_BCHW).contiguous(memory_format=memory_format_of(images_BCHW))


def _whole_pixels(side_B: Tensor, place_B: Tensor, length: int) -> Tensor:
    """Which pixels each box covers along one axis when its side is made whole, every place alike, B×length."""
    pixels_B = side_B.round().clamp(1, max(length, 1))
    room_B = length - pixels_B
    first_B = torch.minimum((place_B * (room_B + 1)).floor(), room_B)
    offset_BL = torch.arange(length, device=side_B.device) - first_B.unsqueeze(1)
    return (offset_BL >= 0) & (offset_BL < pixels_B.unsqueeze(1))
