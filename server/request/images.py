"""Pictures of requests: recognise the format by the first bytes, check the size by the header, decode."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from offramp.models.pictures.check import Check, never_end
from offramp.models.pictures.picture import DECODE_ERRORS, UnsupportedPicture, open_image
from offramp.models.preprocess import Preprocessing
from offramp.server.http.problems import INVALID_IMAGE, TOO_MANY_PIXELS, UNSUPPORTED_MEDIA_TYPE, Problem

Picture = npt.NDArray[np.uint8]

MEDIA_TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
}

# Valid sizes of a BMP file's second header: many texts begin with "BM" too.
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
    data: bytes,
    index: int,
    max_pixels: int,
    as_file: Callable[[bytes], BytesIO] = BytesIO,
    check: Check = never_end,
) -> Image.Image:
    """Open an encoded picture: read its header, decode no pixels.

    index: number of the picture in the request, for messages. as_file, check: as in `open_image`. Raises Problem:
    413 for more than `max_pixels`, 415 for an unsupported format or variant, 422 for no data or an invalid header.
    """
    if not data:
        raise Problem(INVALID_IMAGE, f"image {index} is empty: send the picture's bytes", image=index)
    kind = image_format(data)
    if kind is None:
        detail = f"image {index} is not a JPEG, PNG, WebP, BMP or GIF picture: convert it to one of these"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail, image=index, accepted=list(MEDIA_TYPES))
    try:
        image = open_image(data, (kind,), as_file, check)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's message has the number of pixels. A warning is raised only if warnings are errors.
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(pixels[1]) / 1e6:g} megapixels" if pixels else "far more pixels"
        raise _too_many_pixels(index, max_pixels, size) from error
    except UnsupportedPicture as error:
        detail = f"image {index} is a {kind} picture of {error}; convert it to a usual one"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail, image=index, accepted=list(MEDIA_TYPES)) from error
    except DECODE_ERRORS as error:
        raise _corrupt(index, kind, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(index, max_pixels, f"{width} × {height} pixels")
    return image


def decode(image: Image.Image, index: int, preprocessing: Preprocessing) -> Picture:
    """Decode an opened picture to the network's uint8 (size, size, 3) input. Raises Problem (422) for corrupt data."""
    try:
        with image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise _corrupt(index, image.format, error) from error


def _too_many_pixels(index: int, max_pixels: int, size: str) -> Problem:
    detail = f"image {index} has {size}, the limit is {max_pixels / 1e6:g} megapixels: send it smaller"
    return Problem(TOO_MANY_PIXELS, detail, image=index, limit_pixels=max_pixels)


def _corrupt(index: int, kind: str | None, cause: Exception | str) -> Problem:
    reason = str(cause)[:200] or type(cause).__name__
    detail = f"image {index} is a {kind} picture that is truncated or corrupt: {reason}"
    return Problem(INVALID_IMAGE, detail, image=index)
