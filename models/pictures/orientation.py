"""A picture's orientation, read from its metadata; damaged metadata counts as none."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

UPRIGHT = 1
TAG = 0x0112
EXIF_PREFIX = b"Exif\x00\x00"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

# Largest block of metadata that is searched: the orientation stands near the start. A segment of a JPEG holds as much.
MOST_BYTES = 64 * 1024

# Pillow's names in `Image.info`.
EXIF, XMP, RAW_PROFILE = "exif", "xmp", "Raw profile type exif"

# The types of a TIFF field with one whole number, and their letters in struct (TIFF 6.0, section 2).
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def read_orientation(info: Mapping[Any, Any]) -> int:
    """The orientation in a picture's `info`, 1 to 8 as in EXIF; 1, upright, if there is none that can be read.

    EXIF comes before XMP, as in Pillow.
    """
    exif = info.get(EXIF)
    if exif is None:
        exif = _raw_profile(info.get(RAW_PROFILE))
    value = _exif_orientation(exif) if isinstance(exif, bytes) else None
    xmp = info.get(XMP)
    if value is None and isinstance(xmp, bytes) and (match := XMP_ORIENTATION.search(xmp)):
        value = int(match[1])
    return value if value is not None and 1 <= value <= 8 else UPRIGHT


def _exif_orientation(exif: bytes) -> int | None:
    """The tag's value in the first directory of an EXIF block; None if it is missing or cannot be read."""
    tiff = exif.removeprefix(EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == TAG and kind in _WHOLE_NUMBERS:
                value: int = struct.unpack_from(f"{order}{_WHOLE_NUMBERS[kind]}", tiff, at + 8)[0]
                return value
    except struct.error:
        # The block ends before the directory does.
        return None
    return None


def _raw_profile(text: object) -> bytes | None:
    """The EXIF block in the hexadecimal text that ImageMagick writes into PNG files."""
    if not isinstance(text, str):
        return None
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return None
