"""From encoded picture to opened picture, for training, `predict` and the server alike."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from offramp.models.pictures.check import Check, never_end
from offramp.models.pictures.gif import without_extensions
from offramp.models.pictures.jpeg import read_jpeg_header
from offramp.models.pictures.orientation import EXIF, XMP
from offramp.models.pictures.png import MAGIC, read_png_chunks
from offramp.models.pictures.webp import without_metadata

# Suffixes of picture files, in lower case. The content decides how a file is decoded.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)

# Pillow's exceptions for damaged pictures, while it opens, decodes or converts them.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    # Raised only in a process that turns warnings into errors.
    Image.DecompressionBombWarning,
)

# Unreadable metadata is no reason to refuse a picture, even in a process that turns warnings into errors.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnsupportedPicture(ValueError):
    """A picture, perhaps whole, in a variant of its format that cannot be decoded; the message names the variant."""

    def __init__(self, variant: str) -> None:
        super().__init__(f"a variant that is not supported: {variant}")


def open_image(
    content: bytes,
    formats: tuple[str, ...] | None = None,
    as_file: Callable[[bytes], BytesIO] = BytesIO,
    check: Check = never_end,
) -> Image.Image:
    """A picture whose header is read and whose pixels are not yet decoded.

    In JPEG, PNG, WebP and GIF the orientation is the only metadata that is parsed, so that damaged metadata never makes
    a picture unreadable. `info` holds "exif" and "xmp" as in Pillow, and "progressive" for each JPEG whose coefficients
    all stay in memory while it is decoded.
    formats: names of the formats to try; None for all of Pillow's. as_file: makes the file that Pillow reads; an
    exception of its `read` ends the decoding. check: called for each part of the file before Pillow reads it.
    Raises UnsupportedPicture, or one of DECODE_ERRORS.
    """
    pixels, info = _without_metadata(content, check)
    try:
        image = Image.open(as_file(pixels), formats=formats)
    except UnidentifiedImageError as error:
        # Pillow's message names an object in memory.
        raise ValueError("its header makes no sense, or is of no known format") from error
    except OSError as error:
        if str(error).startswith("Unsupported BMP"):
            raise UnsupportedPicture(str(error).removeprefix("Unsupported ")) from error
        raise
    image.info.update(info)
    return image


def _without_metadata(content: bytes, check: Check) -> tuple[bytes, dict[str, Any]]:
    """The file for the decoder, and entries for its `info`. Raises UnsupportedPicture or ValueError."""
    if content.startswith(b"\xff\xd8\xff"):
        header = read_jpeg_header(content, check)
        if header.unsupported:
            raise UnsupportedPicture(header.unsupported)
        info = {EXIF: header.exif, XMP: header.xmp, "progressive": header.is_progressive}
        return header.picture, {name: value for name, value in info.items() if value}
    if content.startswith(MAGIC):
        chunks = read_png_chunks(content, check)
        if chunks.unsupported:
            raise UnsupportedPicture(chunks.unsupported)
        return chunks.picture, dict(chunks.info)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return without_metadata(content, check)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return without_extensions(content, check), {}
    if content.startswith(b"BM"):
        _check_bmp_palette(content)
    return content, {}


def _check_bmp_palette(content: bytes) -> None:
    """Raise ValueError for a palette that is too large: Pillow would compare it with 65,536 greys first."""
    bits, colours = int.from_bytes(content[28:30], "little"), int.from_bytes(content[46:50], "little")
    has_colours = int.from_bytes(content[14:18], "little") >= 40
    if has_colours and bits <= 8 and colours > 256:
        raise ValueError(f"its palette has {colours} colours, the limit is 256")
