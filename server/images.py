"""Pictures from strangers: recognised by their first bytes, measured by their header, decoded."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.preprocess import DECODE_ERRORS, Preprocessing
from server.problems import INVALID_IMAGE, TOO_MANY_PIXELS, UNSUPPORTED_MEDIA_TYPE, Problem

Picture = npt.NDArray[np.uint8]

MEDIA_TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
}

# Sizes of the headers that may follow a BMP file's own: "BM" alone also begins many a text.
BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)


def image_format(data: bytes) -> str | None:
    """JPEG, PNG, WEBP, BMP or GIF by the first bytes; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in BMP_HEADER_SIZES:
        return "BMP"
    return None


def open_picture(
    data: bytes, index: int, max_pixels: int, as_file: Callable[[bytes], BytesIO] = BytesIO
) -> Image.Image:
    """One encoded picture, its header read and its pixels not yet decoded.

    index: its place in the request, for messages. as_file: gives Pillow the bytes. Raises Problem: 415 for what is no
    picture of a supported format, 413 for more than `max_pixels`, 422 for no data or a header that makes no sense.
    """
    if not data:
        raise Problem(INVALID_IMAGE, f"image {index} is empty: send the picture's bytes", image=index)
    kind = image_format(data)
    if kind is None:
        detail = f"image {index} is not a JPEG, PNG, WebP, BMP or GIF picture: convert it to one of these"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail, image=index, accepted=list(MEDIA_TYPES))
    try:
        image = Image.open(as_file(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Raised by Pillow before it tells the size; a warning only where the operator made warnings errors.
        raise _too_many_pixels(index, max_pixels) from error
    except UnidentifiedImageError as error:
        raise _corrupt(index, kind, "its header makes no sense") from error
    except DECODE_ERRORS as error:
        raise _corrupt(index, kind, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(index, max_pixels, width, height)
    return image


def decode(image: Image.Image, index: int, preprocessing: Preprocessing) -> Picture:
    """An opened picture as the network's uint8 (size, size, 3) input. Raises Problem: 422 for corrupt data."""
    try:
        with image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise _corrupt(index, image.format, error) from error


def _too_many_pixels(index: int, max_pixels: int, width: int = 0, height: int = 0) -> Problem:
    size = f"{width} × {height} pixels" if width else "far more pixels"
    detail = f"image {index} has {size}, the limit is {max_pixels / 1e6:g} megapixels: send it smaller"
    return Problem(TOO_MANY_PIXELS, detail, image=index, limit_pixels=max_pixels)


def _corrupt(index: int, kind: str | None, cause: Exception | str) -> Problem:
    reason = str(cause)[:200] or type(cause).__name__
    detail = f"image {index} is a {kind} picture that is truncated or corrupt: {reason}"
    return Problem(INVALID_IMAGE, detail, image=index)
