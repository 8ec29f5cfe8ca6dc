"""From picture to uint8 array, for training, evaluation and the server's frontend alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from offramp.models.pictures.orientation import read_orientation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)

Channels = tuple[float, float, float]
Box = tuple[float, float, float, float]

# Pixels converted at once, so that converting takes little memory beside the picture.
BAND_PIXELS = 1 << 16

# Bytes a pixel takes in decoding, by mode; four in all other modes.
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Bytes a pixel: libwebp's two canvases, their copy for Pillow, and Pillow's own picture.
WEBP_BYTES = 16
# Bytes a pixel: Pillow's BMP run-length decoder collects the indices, and copies them.
RUN_LENGTH_BYTES = 3
# One coefficient of libjpeg, which keeps all coefficients of a progressive picture.
COEFFICIENT_BYTES = 2
# Bytes of one pixel of a band, in all modes that it passes through; bytes of one pixel of a decoder's row.
BAND_BYTES, ROW_BYTES = 24, 128

# The transposition that makes a picture upright, by its orientation; orientations that swap or mirror the axes.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS, MIRRORED_X, MIRRORED_Y = (5, 6, 7, 8), (2, 3, 7, 8), (3, 4, 6, 7)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size and mode becomes the network's input; stored in the bundle.

    size: side of the square input in pixels.
    crop_fraction: the centre crop's share of the resized picture; 1.0 keeps the whole shorter side, 0.875 is usual for
        ImageNet.
    mean, std: statistics of the training pixels for each channel, on the 0..1 scale, applied on the device.
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

    def draft(self, image: Image.Image) -> None:
        """Let a JPEG much larger than the input be decoded at a half, a quarter or an eighth of its size.

        At least twice the needed pixels remain, so that the input hardly differs. Other formats are not changed.
        """
        if image.format == "JPEG":
            enough = 2 * self._shorter
            image.draft(None, (enough, enough))

    def apply(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The picture upright, in RGB, resized by its shorter side, cropped to its centre: uint8 (size, size, 3).

        Raises one of DECODE_ERRORS, as Pillow does, for a truncated or corrupt picture.
        """
        self.draft(image)
        low = _low_bytes(image)
        image.load()
        orientation = read_orientation(image.info)
        part = resize_part(image, low, self._box(image.size, orientation), self.size)
        return np.asarray(
            part.transpose(TRANSPOSES[orientation]) if orientation in TRANSPOSES else part, dtype=np.uint8
        )

    @property
    def _shorter(self) -> int:
        return round(self.size / self.crop_fraction)

    def _box(self, stored: tuple[int, int], orientation: int) -> Box:
        """The part (left, top, right, bottom) of the stored picture that becomes the input."""
        width, height = stored[::-1] if orientation in SIDEWAYS else stored
        scale = self._shorter / min(width, height)
        resized = (max(self.size, round(width * scale)), max(self.size, round(height * scale)))
        left, top = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        x0, x1 = left * width / resized[0], (left + self.size) * width / resized[0]
        y0, y1 = top * height / resized[1], (top + self.size) * height / resized[1]
        if orientation in SIDEWAYS:
            x0, y0, x1, y1 = y0, x0, y1, x1
        if orientation in MIRRORED_X:
            x0, x1 = stored[0] - x1, stored[0] - x0
        if orientation in MIRRORED_Y:
            y0, y1 = stored[1] - y1, stored[1] - y0
        return x0, y0, x1, y1


def is_run_length_bmp(image: Image.Image) -> bool:
    """Whether an opened picture is a run-length encoded BMP, which Pillow decodes in Python, byte by byte."""
    return isinstance(image, BmpImageFile) and bool(image.tile) and image.tile[0].codec_name == "bmp_rle"


def decoded_bytes(image: Image.Image, size: int = 256) -> int:
    """Upper bound of the memory that decoding and converting an opened picture takes, without its file, in bytes.

    It follows from format, mode and size. Call `draft` before, which saves memory. size: side of the network's input.
    """
    width, height = image.size
    pixels = width * height
    a_pixel: float = MODE_BYTES.get(image.mode, 4)
    if image.format == "WEBP":
        a_pixel = WEBP_BYTES
    elif is_run_length_bmp(image):
        a_pixel = RUN_LENGTH_BYTES
    elif image.format not in ("JPEG", "PNG", "GIF", "BMP") or _names_16_bit_colour(image):
        a_pixel *= 2
    if isinstance(image, JpegImageFile) and "progressive" in image.info:
        scale = image.decoderconfig[0] if image.decoderconfig else 1
        a_pixel += scale**2 * _coefficients(image) * COEFFICIENT_BYTES
    # A second copy of the file, without metadata or inside the decoder.
    file = getattr(image, "fp", None)
    copied = file.getbuffer().nbytes if isinstance(file, BytesIO) else 0
    resizing = 4 * (size + 2) * (max(width, height) + size)
    return int(pixels * a_pixel) + copied + resizing + BAND_BYTES * BAND_PIXELS + ROW_BYTES * (width + 64)


def resize_part(image: Image.Image, low: Image.Image | None, box: Box, size: int) -> Image.Image:
    """`box` (left, top, right, bottom) of a decoded picture as (size, size) pixels of RGB.

    Only that part is resampled: a long panorama costs no more than a square. A picture in another mode is converted and
    resampled in width band by band, then in height, so that memory never holds all of it in RGB. Pillow makes the same
    two passes, in either order: the result is equal up to rounding, and to the bit without resizing. low: see `to_rgb`.
    """
    if image.mode in ("L", "RGB") and low is None and not image.has_transparency_data:
        # Grey resized is grey: equal channels stay equal.
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box).convert("RGB")
    left, right = _needed(box[0], box[2], size, image.width)
    top, bottom = _needed(box[1], box[3], size, image.height)
    narrow = Image.new("RGB", (size, bottom - top))
    rows = max(1, BAND_PIXELS // (right - left))
    for y in range(top, bottom, rows):
        place = (left, y, right, min(y + rows, bottom))
        band = to_rgb(image.crop(place), low and low.crop(place))
        part = (box[0] - left, 0, box[2] - left, band.height)
        narrow.paste(band.resize((size, band.height), Image.Resampling.BILINEAR, box=part), (0, y - top))
    return narrow.resize((size, size), Image.Resampling.BILINEAR, box=(0, box[1] - top, size, box[3] - top))


def to_rgb(image: Image.Image, low: Image.Image | None = None) -> Image.Image:
    """Any Pillow mode as RGB: transparency over white, 16-bit grey scaled to 8 bits, CMYK, palette and grey converted.

    low: the lower bytes of a picture of 16 bits a channel with a transparent colour; all 16 bits are compared with it.
    """
    transparent = image.info.get("transparency")
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image)
        light = (grey.clip(0, 65535) >> 8).astype(np.uint8)
        if transparent is not None:
            light[grey == transparent] = 255
        return Image.fromarray(light).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if low is not None:
        pixels = np.array(image)
        colour = np.array(transparent)
        is_transparent = ((pixels == colour >> 8) & (np.asarray(low) == colour & 255)).all(axis=2)
        pixels[is_transparent] = 255
        return Image.fromarray(pixels)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def normalize(images_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), channels-last in memory, zero mean and unit variance a channel."""
    mean_C, std_C = _in_levels(preprocessing.mean, preprocessing.std, images_BHWC.device)
    return ((images_BHWC.float() - mean_C) / std_C).permute(0, 3, 1, 2)


# Cached: a copy from host to GPU waits until the GPU has finished its work.
@lru_cache(maxsize=64)
def _in_levels(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std on the scale of 0 to 255, on the device."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(mean, device=device) * 255.0, torch.tensor(std, device=device) * 255.0


def _needed(start: float, end: float, size: int, whole: int) -> tuple[int, int]:
    """The pixels along one axis that a bilinear resampling of start..end to `size` pixels reads."""
    reach = max(1.0, (end - start) / size) + 1.0
    return max(0, floor(start - reach)), min(whole, ceil(end + reach))


def _low_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of a PNG of 16 bits a channel with a transparent colour, before it is loaded.

    Pillow keeps the upper bytes alone. Reading the same pixels as little-endian gives the lower ones.
    """
    if not _names_16_bit_colour(image):
        return None
    assert isinstance(image, PngImageFile)
    assert image.fp is not None
    image.fp.seek(0)
    low = PngImageFile(image.fp)
    low.tile = [low.tile[0]._replace(args="RGB;16L")]
    low.load()
    return low


def _names_16_bit_colour(image: Image.Image) -> bool:
    if not isinstance(image, PngImageFile) or "transparency" not in image.info or image.fp is None:
        return False
    return [tile.args for tile in image.tile] == ["RGB;16B"]


def _coefficients(image: JpegImageFile) -> float:
    """libjpeg's coefficients a pixel: one for each channel at full resolution, fewer for a smaller channel."""
    shares = [across * down for _, down, across, _ in image.layer]
    return sum(shares) / max(shares) if max(shares, default=0) else float(len(shares))
