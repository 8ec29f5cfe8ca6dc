"""The image operations of the augmentation policies, on whole uint8 batches, one magnitude for each sample.

Each gives what Pillow (ImageOps, ImageEnhance, Image.transform) gives for a single picture, and takes and
returns uint8 B×C×H×W with 3 channels (RGB) or 1 (grey) on any device. Magnitudes are vectors of length B on
that device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Colour = tuple[int, ...]
Interpolation = Literal["nearest", "bilinear"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear")


def check_images(images_BCHW: Tensor) -> None:
    """Raise ValueError unless the argument is a batch of 8-bit pictures, uint8 B×C×H×W."""
    if images_BCHW.ndim != 4 or images_BCHW.dtype != torch.uint8:
        raise ValueError(
            f"images have shape {tuple(images_BCHW.shape)} and type {images_BCHW.dtype}; augmentation takes "
            "uint8 B×C×H×W: stack the pictures and keep them unnormalised"
        )


def check_colour(name: str, colour: int | Colour) -> None:
    """Raise ValueError unless every channel of the colour is an 8-bit value."""
    channels = (colour,) if isinstance(colour, int) else colour
    if not channels or any(not 0 <= value <= 255 for value in channels):
        raise ValueError(f"{name} is {colour}; give whole numbers from 0 to 255, one or one for each channel")


def colour_1C11(colour: int | Colour, images_BCHW: Tensor) -> Tensor:
    """A colour as a tensor that broadcasts over the batch; one number stands for every channel.

    Raises ValueError when the colour has another number of channels than the images.
    """
    check_colour("fill", colour)
    channel_count = images_BCHW.shape[1]
    channels = (colour,) * channel_count if isinstance(colour, int) else colour
    if len(channels) != channel_count:
        raise ValueError(
            f"fill {colour} has {len(channels)} channels, the images have {channel_count}: give one number, "
            f"or {channel_count} of them"
        )
    return _channels_1C11(channels, images_BCHW.dtype, images_BCHW.device)


# Made once: each copy from the host would have a GPU finish all that it was given before. Not to be changed in place.
@lru_cache(maxsize=64)
def _channels_1C11(channels: Colour, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(channels, dtype=dtype, device=device).view(1, -1, 1, 1)


def memory_format_of(images_BCHW: Tensor) -> torch.memory_format:
    """The layout in which an augmented copy of the batch is handed back: that of the batch."""
    if images_BCHW.is_contiguous(memory_format=torch.channels_last) and not images_BCHW.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _per_sample_B111(values_B: Tensor, images_BCHW: Tensor) -> Tensor:
    check_images(images_BCHW)
    if values_B.shape != images_BCHW.shape[:1]:
        raise ValueError(
            f"magnitudes have shape {tuple(values_B.shape)} for {images_BCHW.shape[0]} images; give one for each image"
        )
    return values_B.view(-1, 1, 1, 1)


# Colours and tones


def invert(images_BCHW: Tensor) -> Tensor:
    """The negative (ImageOps.invert)."""
    check_images(images_BCHW)
    return 255 - images_BCHW


def posterize(images_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the top 0 to 8 bits of each channel (ImageOps.posterize)."""
    bits_B111 = _per_sample_B111(bits_B, images_BCHW).to(torch.int32)
    return images_BCHW & (256 - (1 << (8 - bits_B111))).to(torch.uint8)


def solarize(images_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert the values at or above a threshold (ImageOps.solarize); 256 leaves the image as it is."""
    above_BCHW = images_BCHW >= _per_sample_B111(threshold_B, images_BCHW)
    return torch.where(above_BCHW, 255 - images_BCHW, images_BCHW)


def auto_contrast(images_BCHW: Tensor) -> Tensor:
    """Stretch each channel to 0..255 (ImageOps.autocontrast without cutoff); a flat channel stays."""
    check_images(images_BCHW)
    low_BC1 = images_BCHW.amin((2, 3)).unsqueeze(2).double()
    range_BC1 = images_BCHW.amax((2, 3)).unsqueeze(2).double() - low_BC1
    level_256 = torch.arange(256, device=images_BCHW.device, dtype=torch.float64)
    # Pillow's operations in double precision, so that values next to a whole number truncate alike: a number
    # over a tensor would be its reciprocal times the number.
    scale_BC1 = torch.full_like(range_BC1, 255.0) / range_BC1.clamp(min=1.0)
    stretched_BCL = (level_256 * scale_BC1 + -low_BC1 * scale_BC1).clamp(0, 255).trunc()
    return _look_up(images_BCHW, torch.where(range_BC1 > 0, stretched_BCL, level_256))


def equalize(images_BCHW: Tensor) -> Tensor:
    """Flatten the histogram of each channel (ImageOps.equalize)."""
    check_images(images_BCHW)
    batch, channels, height, width = images_BCHW.shape
    rows = batch * channels
    bin_BCHW = images_BCHW.long() + 256 * torch.arange(rows, device=images_BCHW.device).view(batch, channels, 1, 1)
    count_BCL = bin_BCHW.reshape(-1).bincount(minlength=256 * rows).view(batch, channels, 256)
    level_256 = torch.arange(256, device=images_BCHW.device)
    brightest_count_BC1 = count_BCL.gather(2, images_BCHW.amax((2, 3)).long().unsqueeze(2))
    step_BC1 = (height * width - brightest_count_BC1) // 255
    darker_BCL = count_BCL.cumsum(2) - count_BCL
    equalized_BCL = ((darker_BCL + step_BC1 // 2) // step_BC1.clamp(min=1)).clamp(max=255)
    return _look_up(images_BCHW, torch.where(step_BC1 > 0, equalized_BCL, level_256))


def _look_up(images_BCHW: Tensor, table_BCL: Tensor) -> Tensor:
    level_BCP = images_BCHW.flatten(2).long()
    result_BCHW = table_BCL.to(torch.uint8).gather(2, level_BCP).view(images_BCHW.shape)
    return result_BCHW.contiguous(memory_format=memory_format_of(images_BCHW))


# Enhancement: a blend of the image with a poorer version of itself; a factor of 1 is the image


def brightness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with black (ImageEnhance.Brightness)."""
    return _blend(torch.zeros_like(images_BCHW[:, :1, :1, :1]), images_BCHW, factor_B)


def saturation(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the grey image (ImageEnhance.Color)."""
    return _blend(_luminance_B1HW(images_BCHW), images_BCHW, factor_B)


def contrast(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the mean grey of the image (ImageEnhance.Contrast)."""
    mean_B111 = _luminance_B1HW(images_BCHW).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean_B111 + 0.5).floor(), images_BCHW, factor_B)


def sharpness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the image smoothed by a 3×3 kernel, its border unsmoothed (ImageEnhance.Sharpness)."""
    values_BCHW = images_BCHW.to(torch.int16)
    columns_BCHW = values_BCHW[..., :-2] + values_BCHW[..., 1:-1] + values_BCHW[..., 2:]
    box_BCHW = columns_BCHW[:, :, :-2] + columns_BCHW[:, :, 1:-1] + columns_BCHW[:, :, 2:]
    weighted_BCHW = box_BCHW + 4 * values_BCHW[:, :, 1:-1, 1:-1]
    smooth_BCHW = values_BCHW.clone()
    # The kernel is ones around a five: thirteen in all, rounded to nearest in whole numbers.
    smooth_BCHW[:, :, 1:-1, 1:-1] = (2 * weighted_BCHW + 13) // 26
    return _blend(smooth_BCHW, images_BCHW, factor_B)


def _luminance_B1HW(images_BCHW: Tensor) -> Tensor:
    """Grey values with Pillow's integer weights (ITU-R 601-2, 16 bits)."""
    check_images(images_BCHW)
    channel_count = images_BCHW.shape[1]
    if channel_count == 1:
        return images_BCHW
    if channel_count != 3:
        raise ValueError(f"images have {channel_count} channels; saturation and contrast take 3 (RGB) or 1 (grey)")
    red, green, blue = images_BCHW.to(torch.int32).split(1, dim=1)
    luminance_B1HW: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luminance_B1HW


def _blend(poorer_BCHW: Tensor, images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    factor_B111 = _per_sample_B111(factor_B, images_BCHW).float()
    start_BCHW = poorer_BCHW.float()
    blended_BCHW = start_BCHW + factor_B111 * (images_BCHW.float() - start_BCHW)
    # Pillow's blend truncates: so does the conversion.
    return blended_BCHW.clamp_(0, 255).to(torch.uint8)


# Geometry


def shear_x(
    images_BCHW: Tensor, amount_B: Tensor, fill: int | Colour = 128, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Move each row by `amount` pixels to the left for each row below the top."""
    one_B, zero_B = torch.ones_like(amount_B), torch.zeros_like(amount_B)
    rows = (one_B, amount_B, zero_B, zero_B, one_B, zero_B)
    return affine(images_BCHW, torch.stack(rows, 1), fill, interpolation)


def shear_y(
    images_BCHW: Tensor, amount_B: Tensor, fill: int | Colour = 128, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Move each column up by `amount` pixels for each column to the right of the left border."""
    one_B, zero_B = torch.ones_like(amount_B), torch.zeros_like(amount_B)
    rows = (one_B, zero_B, zero_B, amount_B, one_B, zero_B)
    return affine(images_BCHW, torch.stack(rows, 1), fill, interpolation)


def translate_x(
    images_BCHW: Tensor, pixels_B: Tensor, fill: int | Colour = 128, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Move each image to the left by so many pixels (negative: to the right)."""
    one_B, zero_B = torch.ones_like(pixels_B), torch.zeros_like(pixels_B)
    rows = (one_B, zero_B, pixels_B, zero_B, one_B, zero_B)
    return affine(images_BCHW, torch.stack(rows, 1), fill, interpolation)


def translate_y(
    images_BCHW: Tensor, pixels_B: Tensor, fill: int | Colour = 128, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Move each image up by so many pixels (negative: down)."""
    one_B, zero_B = torch.ones_like(pixels_B), torch.zeros_like(pixels_B)
    rows = (one_B, zero_B, zero_B, zero_B, one_B, pixels_B)
    return affine(images_BCHW, torch.stack(rows, 1), fill, interpolation)


def rotate(
    images_BCHW: Tensor, degrees_B: Tensor, fill: int | Colour = 128, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Turn each image counter-clockwise about its centre (Image.rotate)."""
    height, width = images_BCHW.shape[2:]
    angle_B = -torch.deg2rad(degrees_B.double())
    # Rounded like Pillow's, so that quarter turns, whose samples may lie on the edges of pixels, are exact.
    cos_B, sin_B = angle_B.cos().round(decimals=15), angle_B.sin().round(decimals=15)
    centre_x, centre_y = width / 2, height / 2
    offset_x_B = centre_x - cos_B * centre_x - sin_B * centre_y
    offset_y_B = centre_y + sin_B * centre_x - cos_B * centre_y
    rows = (cos_B, sin_B, offset_x_B, -sin_B, cos_B, offset_y_B)
    return affine(images_BCHW, torch.stack(rows, 1), fill, interpolation)


def affine(
    images_BCHW: Tensor, matrix_B6: Tensor, fill: int | Colour, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Fetch output pixel (x, y) from input (a·x + b·y + c, d·x + e·y + f), a row of the matrix being (a … f).

    Coordinates are in pixels, pixel centres at halves, as in Image.transform; what lies outside is `fill`.
    Raises ValueError for a matrix that is not B×6, or an unknown interpolation.
    """
    check_images(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    if matrix_B6.shape != (batch, 6):
        raise ValueError(f"matrix has shape {tuple(matrix_B6.shape)}; give {batch}×6, one row for each image")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is {interpolation!r}; give one of {', '.join(INTERPOLATIONS)}")
    x_W = torch.arange(width, device=images_BCHW.device, dtype=torch.float64) + 0.5
    y_H1 = torch.arange(height, device=images_BCHW.device, dtype=torch.float64).unsqueeze(1) + 0.5
    a, b, c, d, e, f = matrix_B6.double().view(batch, 6, 1, 1).unbind(1)
    x_BHW, y_BHW = a * x_W + b * y_H1 + c, d * x_W + e * y_H1 + f
    inside_BHW = (x_BHW >= 0) & (x_BHW < width) & (y_BHW >= 0) & (y_BHW < height)
    if interpolation == "nearest":
        sampled_BCHW = _pixels_at(images_BCHW, x_BHW.floor(), y_BHW.floor())
    else:
        sampled_BCHW = _bilinear_at(images_BCHW, x_BHW - 0.5, y_BHW - 0.5)
    result_BCHW = torch.where(inside_BHW.unsqueeze(1), sampled_BCHW, colour_1C11(fill, images_BCHW))
    return result_BCHW.contiguous(memory_format=memory_format_of(images_BCHW))


def _pixels_at(images_BCHW: Tensor, x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    """The pixels at whole coordinates, those beyond the border taken from the border."""
    _, channels, height, width = images_BCHW.shape
    index_BHW = y_BHW.clamp(0, height - 1).long() * width + x_BHW.clamp(0, width - 1).long()
    index_BCP = index_BHW.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return images_BCHW.flatten(2).gather(2, index_BCP).view(images_BCHW.shape)


def _bilinear_at(images_BCHW: Tensor, x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    left_BHW, top_BHW = x_BHW.floor(), y_BHW.floor()
    right_share_B1HW = (x_BHW - left_BHW).unsqueeze(1).float()
    lower_share_B1HW = (y_BHW - top_BHW).unsqueeze(1).float()
    upper_BCHW = torch.lerp(
        _pixels_at(images_BCHW, left_BHW, top_BHW).float(),
        _pixels_at(images_BCHW, left_BHW + 1, top_BHW).float(),
        right_share_B1HW,
    )
    lower_BCHW = torch.lerp(
        _pixels_at(images_BCHW, left_BHW, top_BHW + 1).float(),
        _pixels_at(images_BCHW, left_BHW + 1, top_BHW + 1).float(),
        right_share_B1HW,
    )
    return torch.lerp(upper_BCHW, lower_BCHW, lower_share_B1HW).to(torch.uint8)
