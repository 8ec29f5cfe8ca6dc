"""Encoded picture -> opened picture: the one way in, for training, `predict` and the server."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from models.jpeg import read_jpeg_header
from models.orientation import EXIF, XMP
from models.png import read_png_chunks

# Suffixes of the files that are taken for pictures, in lower case; the content decides how they are decoded.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)

# What Pillow raises on bytes that are no whole picture, while opening, decoding or converting them.
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
    # Only where whoever runs this has made warnings errors.
    Image.DecompressionBombWarning,
)

# Pillow warns of metadata that it cannot read, which is no reason to refuse a picture, whatever a warning is made.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnsupportedPicture(ValueError):
    """A picture that may be whole, of a variant of its format that cannot be decoded; the message says which."""

    def __init__(self, variant: str) -> None:
        super().__init__(f"a variant that is not supported: {variant}")


def open_image(
    content: bytes, formats: tuple[str, ...] | None = None, as_file: Callable[[bytes], BytesIO] = BytesIO
) -> Image.Image:
    """A picture whose header is read and whose pixels are not yet decoded.

    Metadata is not parsed, but for the orientation, so that nothing in it decides whether a picture is read. `info`
    holds "exif" and "xmp" as Pillow's own does, and "progressive" for every JPEG whose coefficients are decoded in
    several passes. formats: Pillow's names of those to try; None for all that it knows.
    as_file: gives Pillow the bytes; what its `read` raises ends the decoding.
    Raises UnsupportedPicture, or what DECODE_ERRORS lists.
    """
    info: dict[str, bytes | str | int] = {}
    unsupported = ""
    if content.startswith(b"\xff\xd8\xff"):
        header = read_jpeg_header(content)
        content, unsupported = header.picture, header.unsupported
        info = {name: block for name, block in ((EXIF, header.exif), (XMP, header.xmp)) if block}
        if header.is_progressive:
            info["progressive"] = 1
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        chunks = read_png_chunks(content)
        content, unsupported = chunks.picture, chunks.unsupported
        info.update(chunks.info)
    if unsupported:
        raise UnsupportedPicture(unsupported)
    try:
        image = Image.open(as_file(content), formats=formats)
    except UnidentifiedImageError as error:
        # Pillow's message names an object in memory.
        raise ValueError("its header makes no sense" if info or formats else "no picture of a known format") from error
    except OSError as error:
        if str(error).startswith("Unsupported BMP"):
            raise UnsupportedPicture(str(error).removeprefix("Unsupported ")) from error
        raise
    image.info.update(info)
    return image
