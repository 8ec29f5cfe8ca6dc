"""Picture -> uint8 array: the one implementation, used by training, evaluation and the server's frontend."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)

Channels = tuple[float, float, float]

# Suffixes of the files that are taken for pictures, in lower case; the content decides how they are decoded.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# What Pillow raises on bytes that are no whole picture, while opening, decoding or converting them.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    # Of a damaged EXIF block Pillow only warns; whoever runs this may have made warnings errors.
    Warning,
)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size and mode becomes the network's input; stored in the bundle.

    size: side of the square input in pixels.
    crop_fraction: the centre crop's share of the resized picture; 1.0 keeps the whole shorter side,
        ImageNet practice is 0.875.
    mean, std: per-channel statistics of the training pixels on the 0..1 scale, applied on the device.
    """

    size: int
    crop_fraction: float = 1.0
    mean: Channels = CIFAR100_MEAN
    std: Channels = CIFAR100_STD

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 2048:
            raise ValueError(f"preprocessing size {self.size} is out of range: give a side of 8 to 2048 pixels")
        if not 0.0 < self.crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction {self.crop_fraction} is out of range: give a number in (0, 1]")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean {self.mean} and std {self.std} need three finite numbers each, one a channel")
        if min(self.std) <= 0.0:
            raise ValueError(f"std {self.std} is out of range: give numbers above 0")

    def apply(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Turn `image` itself the right way up, to RGB, resize the shorter side, cut the centre: uint8 (size, size, 3).

        Raises OSError or SyntaxError, as Pillow does, when the picture is truncated or corrupt.
        """
        ImageOps.exif_transpose(image, in_place=True)
        picture = to_rgb(image)
        shorter = round(self.size / self.crop_fraction)
        width, height = picture.size
        scale = shorter / min(width, height)
        resized = (max(self.size, round(width * scale)), max(self.size, round(height * scale)))
        left, top = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        if resized != (self.size, self.size) or picture.size != resized:
            # One resampling of just the box that is kept: a long panorama costs no more than a square.
            box = (
                left * width / resized[0],
                top * height / resized[1],
                (left + self.size) * width / resized[0],
                (top + self.size) * height / resized[1],
            )
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture, dtype=np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency over white, 16-bit grey scaled to 8 bits, CMYK, palette, grey converted."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image, dtype=np.int64)
        return Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def normalize(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), channels-last in memory, zero mean and unit variance a channel."""
    mean_C, std_C = _in_levels(preprocessing.mean, preprocessing.std, images_BHWC.device)
    return ((images_BHWC.float() - mean_C) / std_C).permute(0, 3, 1, 2)


# Made once: each copy from the host would have a GPU finish all that it was given before.
@lru_cache(maxsize=64)
def _in_levels(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std on the scale of 0 to 255, on the device."""
    with torch.inference_mode(False):
        return torch.tensor(mean, device=device) * 255.0, torch.tensor(std, device=device) * 255.0


def decoded_bytes(image: Image.Image) -> int:
    """stub"""
    return image.width * image.height * 16
