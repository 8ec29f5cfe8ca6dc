"""Augmentation policies for whole uint8 batches of RGB: AutoAugment, RandAugment and TrivialAugment.

A policy draws an operation and a strength for each image. There are three kinds of operations. Each kind runs once over
the whole batch, and leaves images with an operation of another kind as they are:

- a table of 256 values for each channel: posterize, solarize, auto_contrast, equalize, invert
- a blend with a poorer picture: brightness, saturation, contrast, sharpness
- an affine map: shears, translations, rotate

So all shapes are fixed, and nothing is read back from the device. Each operation gives what Pillow (ImageOps,
ImageEnhance, Image.transform) gives for a single picture.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Searched = Literal["cifar10", "imagenet"]
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]

# The place of a name is the number of the operation.
OPERATIONS: tuple[str, ...] = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize", "invert",
)  # fmt: skip
GEOMETRIC = frozenset(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"))
BLENDS = frozenset(("brightness", "saturation", "contrast", "sharpness"))
SIGNED = GEOMETRIC | BLENDS
# The operations of TrivialAugment and RandAugment: all but the last, so that a number means the same operation.
UNLEARNED_OPERATIONS = OPERATIONS[:-1]

# Value of the pixels from outside the image, in every channel.
FILL = 128
TRIVIAL_LEVELS = 31
# RandAugment as in its paper for CIFAR: two operations at strength 9, where 10 is AutoAugment's strongest.
RAND_OPERATIONS, RAND_STRENGTH = 2, 0.9

# The sub-policies of AutoAugment, one set for each data set of its search. A sub-policy is two operations, each with
# its probability and its strength, 0 to 9. Source: Cubuk et al., "AutoAugment" (CVPR 2019, arXiv 1805.09501), appendix.
CIFAR10_SUB_POLICIES: tuple[SubPolicy, ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)), (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)), (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)), (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("saturation", 0.4, 3), ("brightness", 0.6, 7)), (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)), (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("saturation", 0.7, 7), ("translate_x", 0.5, 8)), (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)), (("brightness", 0.9, 6), ("saturation", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)), (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)), (("saturation", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)), (("brightness", 0.1, 3), ("saturation", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)), (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)), (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)  # fmt: skip

IMAGENET_SUB_POLICIES: tuple[SubPolicy, ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)), (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)), (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)), (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)), (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)), (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("saturation", 0.4, 0)), (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)), (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)), (("rotate", 0.8, 8), ("saturation", 1.0, 2)),
    (("saturation", 0.8, 8), ("solarize", 0.8, 7)), (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)), (("saturation", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)), (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)), (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)  # fmt: skip

SUB_POLICIES: dict[Searched, tuple[SubPolicy, ...]] = {
    "cifar10": CIFAR10_SUB_POLICIES,
    "imagenet": IMAGENET_SUB_POLICIES,
}


def memory_format_of(images_BCHW: Tensor) -> torch.memory_format:
    """The memory layout of the batch, which is also that of its augmented copy."""
    if images_BCHW.is_contiguous(memory_format=torch.channels_last) and not images_BCHW.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def auto_augment(images_BCHW: Tensor, generator: torch.Generator, searched: Searched = "cifar10") -> Tensor:
    """Give each image one of the 25 sub-policies that AutoAugment found on CIFAR-10 or on ImageNet.

    Each of its two operations happens with its own probability. Geometric operations and blends get a random sign.
    """
    device = images_BCHW.device
    table_S23 = _auto_table(searched, *images_BCHW.shape[2:], device)
    chosen_B = _draw(len(SUB_POLICIES[searched]), images_BCHW, generator)
    for place in range(2):
        number_B, probability_B, strength_B = table_S23[chosen_B, place].unbind(1)
        happens_B = torch.rand(len(images_BCHW), generator=generator, device=device) < probability_B
        operation_B = torch.where(happens_B, number_B.long(), 0)
        strength_B = _with_random_sign(operation_B, strength_B, generator)
        images_BCHW = apply_operations(images_BCHW, operation_B, strength_B)
    return images_BCHW


def rand_augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Give each image two operations, each any of fourteen, all at one strength.

    Geometric operations and blends get a random sign. Source: Cubuk et al., "RandAugment" (NeurIPS 2020,
    arXiv 1909.13719).
    """
    strength_O = _rand_table(*images_BCHW.shape[2:], images_BCHW.device)
    for _ in range(RAND_OPERATIONS):
        operation_B = _draw(len(UNLEARNED_OPERATIONS), images_BCHW, generator)
        strength_B = _with_random_sign(operation_B, strength_O[operation_B], generator)
        images_BCHW = apply_operations(images_BCHW, operation_B, strength_B)
    return images_BCHW


def trivial_augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Give each image one operation of fourteen at one strength of 31, all with equal probability.

    Source: Müller & Hutter, "TrivialAugment" (ICCV 2021, arXiv 2103.10158), the "wide" space.
    """
    operation_B = _draw(len(UNLEARNED_OPERATIONS), images_BCHW, generator)
    level_B = _draw(TRIVIAL_LEVELS, images_BCHW, generator)
    strength_B = _with_random_sign(operation_B, _trivial_table(images_BCHW.device)[operation_B, level_B], generator)
    return apply_operations(images_BCHW, operation_B, strength_B)


def _draw(count: int, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A whole number below `count` for each image."""
    return torch.randint(0, count, images_BCHW.shape[:1], generator=generator, device=images_BCHW.device)


def _with_random_sign(operation_B: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    signed_B = _signed_table(operation_B.device)[operation_B]
    negative_B = torch.rand(operation_B.shape, generator=generator, device=operation_B.device) < 0.5
    return torch.where(signed_B & negative_B, -strength_B, strength_B)


def apply_operations(images_BCHW: Tensor, operation_B: Tensor, strength_B: Tensor) -> Tensor:
    """Give each image the operation of its number (its place in OPERATIONS) at its strength."""
    layout = memory_format_of(images_BCHW)
    has = {name: operation_B == number for number, name in enumerate(OPERATIONS)}
    images_BCHW = _by_table(images_BCHW, has, strength_B)
    images_BCHW = _by_blend(images_BCHW, has, strength_B)
    images_BCHW = _by_affine_map(images_BCHW, has, strength_B)
    return images_BCHW.contiguous(memory_format=layout)


def _by_table(images_BCHW: Tensor, has: dict[str, Tensor], strength_B: Tensor) -> Tensor:
    """Replace each value by that of a table of its picture and channel, B×C×256."""
    level_L = torch.arange(256, device=images_BCHW.device)
    strength_B11 = strength_B.view(-1, 1, 1)
    # posterize keeps the top bits; solarize inverts the values from a threshold on.
    bits_B11 = strength_B11.clamp(0, 8).int()
    tables = {
        "invert": 255 - level_L,
        "posterize": level_L & (256 - (1 << (8 - bits_B11))),
        "solarize": torch.where(level_L >= strength_B11, 255 - level_L, level_L),
        "auto_contrast": _stretched_BCL(images_BCHW, level_L),
        "equalize": _equalized_BCL(images_BCHW, level_L),
    }
    table_BCL = level_L.expand(*images_BCHW.shape[:2], -1)
    for name, other_BCL in tables.items():
        table_BCL = torch.where(has[name].view(-1, 1, 1), other_BCL, table_BCL)
    return table_BCL.to(torch.uint8).gather(2, images_BCHW.flatten(2).long()).view(images_BCHW.shape)


def _stretched_BCL(images_BCHW: Tensor, level_L: Tensor) -> Tensor:
    """Tables that stretch each channel to 0..255 (ImageOps.autocontrast without cutoff); a flat channel stays."""
    low_BC1 = images_BCHW.amin((2, 3)).unsqueeze(2).double()
    range_BC1 = images_BCHW.amax((2, 3)).unsqueeze(2).double() - low_BC1
    # Pillow's operations in double precision, so that values next to a whole number truncate alike. `255 / tensor`
    # would multiply by the reciprocal.
    scale_BC1 = torch.full_like(range_BC1, 255.0) / range_BC1.clamp(min=1.0)
    stretched_BCL = (level_L.double() * scale_BC1 + -low_BC1 * scale_BC1).clamp(0, 255).long()
    return torch.where(range_BC1 > 0, stretched_BCL, level_L)


def _equalized_BCL(images_BCHW: Tensor, level_L: Tensor) -> Tensor:
    """Tables that flatten the histogram of each channel (ImageOps.equalize)."""
    level_BCP = images_BCHW.flatten(2).long()
    batch, channels, pixels = level_BCP.shape
    count_BCL = level_BCP.new_zeros(batch, channels, 256).scatter_add_(2, level_BCP, torch.ones_like(level_BCP))
    brightest_count_BC1 = count_BCL.gather(2, level_BCP.amax(2, keepdim=True))
    step_BC1 = (pixels - brightest_count_BC1) // 255
    darker_BCL = count_BCL.cumsum(2) - count_BCL
    equalized_BCL = ((darker_BCL + step_BC1 // 2) // step_BC1.clamp(min=1)).clamp(max=255)
    return torch.where(step_BC1 > 0, equalized_BCL, level_L)


def _by_blend(images_BCHW: Tensor, has: dict[str, Tensor], strength_B: Tensor) -> Tensor:
    """Blend each picture with a poorer one: black, its grey picture, its mean grey, or its smoothed picture.

    A strength changes the factor 1, which is the picture itself.
    """
    factor_B = torch.where(torch.stack([has[name] for name in BLENDS]).any(0), 1 + strength_B.float(), 1.0)
    grey_B1HW = _luminance_B1HW(images_BCHW)
    mean_B111 = (grey_B1HW.double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    # brightness: the poorer picture is black.
    poorer_BCHW = torch.where(has["saturation"].view(-1, 1, 1, 1), grey_B1HW.float(), 0.0)
    poorer_BCHW = torch.where(has["contrast"].view(-1, 1, 1, 1), mean_B111.float(), poorer_BCHW)
    poorer_BCHW = torch.where(has["sharpness"].view(-1, 1, 1, 1), _smoothed(images_BCHW).float(), poorer_BCHW)
    blended_BCHW = poorer_BCHW + factor_B.view(-1, 1, 1, 1) * (images_BCHW.float() - poorer_BCHW)
    # The conversion truncates, as Pillow's blend does.
    return blended_BCHW.clamp_(0, 255).to(torch.uint8)


def _luminance_B1HW(images_BCHW: Tensor) -> Tensor:
    """Grey values with Pillow's integer weights (ITU-R 601-2, 16 bits)."""
    red, green, blue = images_BCHW.to(torch.int32).split(1, dim=1)
    luminance_B1HW: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luminance_B1HW


def _smoothed(images_BCHW: Tensor) -> Tensor:
    """The picture under a 3×3 kernel, its border unchanged (ImageFilter.SMOOTH)."""
    values_BCHW = images_BCHW.to(torch.int16)
    columns_BCHW = values_BCHW[..., :-2] + values_BCHW[..., 1:-1] + values_BCHW[..., 2:]
    box_BCHW = columns_BCHW[:, :, :-2] + columns_BCHW[:, :, 1:-1] + columns_BCHW[:, :, 2:]
    weighted_BCHW = box_BCHW + 4 * values_BCHW[:, :, 1:-1, 1:-1]
    # The kernel is ones around a five: thirteen in all, rounded to nearest in whole numbers.
    values_BCHW[:, :, 1:-1, 1:-1] = (2 * weighted_BCHW + 13) // 26
    return values_BCHW


def _by_affine_map(images_BCHW: Tensor, has: dict[str, Tensor], strength_B: Tensor) -> Tensor:
    """Fetch pixel (x, y) from (a·x + b·y + c, d·x + e·y + f), the nearest one; pixels from outside are FILL.

    Coordinates are in pixels, pixel centres at halves, as in Image.transform. Strengths are pixels a row or column for
    shears, pixels to the left or up for translations, degrees counter-clockwise about the centre for rotations.
    """
    _, channels, height, width = images_BCHW.shape
    amount_B = strength_B.double()
    angle_B = torch.where(has["rotate"], -torch.deg2rad(amount_B), 0.0)
    # Rounded like Pillow's, so that quarter turns, whose samples may lie on the edges of pixels, are exact.
    cos_B, sin_B = angle_B.cos().round(decimals=15), angle_B.sin().round(decimals=15)
    centre_x, centre_y = width / 2, height / 2
    b_B = torch.where(has["shear_x"], amount_B, sin_B)
    c_B = torch.where(has["translate_x"], amount_B, centre_x - cos_B * centre_x - sin_B * centre_y)
    d_B = torch.where(has["shear_y"], amount_B, -sin_B)
    f_B = torch.where(has["translate_y"], amount_B, centre_y + sin_B * centre_x - cos_B * centre_y)
    a, b, c, d, e, f = (value_B.view(-1, 1, 1) for value_B in (cos_B, b_B, c_B, d_B, cos_B, f_B))
    x_W = torch.arange(width, device=images_BCHW.device, dtype=torch.float64) + 0.5
    y_H1 = torch.arange(height, device=images_BCHW.device, dtype=torch.float64).unsqueeze(1) + 0.5
    x_BHW, y_BHW = a * x_W + b * y_H1 + c, d * x_W + e * y_H1 + f
    inside_BHW = (x_BHW >= 0) & (x_BHW < width) & (y_BHW >= 0) & (y_BHW < height)
    index_BHW = y_BHW.floor().clamp(0, height - 1).long() * width + x_BHW.floor().clamp(0, width - 1).long()
    index_BCP = index_BHW.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    moved_BCHW = images_BCHW.flatten(2).gather(2, index_BCP).view(images_BCHW.shape)
    return torch.where(inside_BHW.unsqueeze(1), moved_BCHW, FILL)


def auto_strengths(share: float, height: int, width: int) -> dict[str, float]:
    """AutoAugment's strength of each operation at a share (0..1) of the range, for images of this size.

    Translations are at most the paper's 150 of 331 pixels, in proportion and in whole pixels.
    """
    return _strengths(share, 0.3, height * 150 / 331, width * 150 / 331, degrees=30, change=0.9, dropped_bits=4)


def trivial_strengths(share: float) -> dict[str, float]:
    """TrivialAugment's strength of each operation at a share (0..1) of its "wide" range."""
    return _strengths(share, 0.99, 32, 32, degrees=135, change=0.99, dropped_bits=6)


def _strengths(
    share: float, shear: float, down_px: float, across_px: float, *, degrees: float, change: float, dropped_bits: int
) -> dict[str, float]:
    """A share of the strongest values, which are the other arguments; 0 for operations without a strength."""
    return {
        **dict.fromkeys(OPERATIONS, 0.0),
        **dict.fromkeys(("shear_x", "shear_y"), shear * share),
        **dict.fromkeys(BLENDS, change * share),
        "translate_x": float(int(across_px * share)),
        "translate_y": float(int(down_px * share)),
        "rotate": degrees * share,
        "posterize": 8.0 - round(dropped_bits * share),
        "solarize": 256.0 * (1 - share),
    }


# The tables below are cached and shared. Never change them in place.


@lru_cache(maxsize=16)
def _auto_table(searched: Searched, height: int, width: int, device: torch.device) -> Tensor:
    """Number, probability and strength of the two operations of each of S sub-policies, S×2×3."""
    strengths = [auto_strengths(level / 9, height, width) for level in range(10)]
    rows = [
        [(OPERATIONS.index(name), probability, strengths[level][name]) for name, probability, level in pair]
        for pair in SUB_POLICIES[searched]
    ]
    return torch.tensor(rows, device=device)


@lru_cache(maxsize=16)
def _rand_table(height: int, width: int, device: torch.device) -> Tensor:
    strengths = auto_strengths(RAND_STRENGTH, height, width)
    return torch.tensor([strengths[name] for name in UNLEARNED_OPERATIONS], device=device)


@lru_cache(maxsize=16)
def _trivial_table(device: torch.device) -> Tensor:
    levels = [trivial_strengths(level / (TRIVIAL_LEVELS - 1)) for level in range(TRIVIAL_LEVELS)]
    return torch.tensor([[strengths[name] for strengths in levels] for name in UNLEARNED_OPERATIONS], device=device)


@lru_cache(maxsize=16)
def _signed_table(device: torch.device) -> Tensor:
    return torch.tensor([name in SIGNED for name in OPERATIONS], device=device)
