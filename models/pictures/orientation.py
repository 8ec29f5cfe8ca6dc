"""Which way up a picture is, read from its metadata alone; whatever is damaged there says nothing."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

UPRIGHT = 1
TAG = 0x0112
EXIF_PREFIX = b"Exif\x00\x00"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

# Largest block of metadata that is searched for the orientation, which stands near the start. One segment of a JPEG
# holds as much.
MOST_BYTES = 64 * 1024

# Entries of `Image.info`, as Pillow names them.
EXIF, XMP, RAW_PROFILE = "exif", "xmp", "Raw profile type exif"

# Types of a TIFF field that hold one whole number, as struct spells them (TIFF 6.0, section 2).
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def orientation(info: Mapping[Any, Any]) -> int:
    """1 to 8 as EXIF counts: what a picture's `info` tells; 1, upright, where it tells nothing that can be read.

    EXIF goes before XMP, as in Pillow.
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
    """The tag's value in the first directory of an EXIF block; None where it is not there or cannot be read."""
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
        # The directory lies, or ends, beyond the block.
        return None
    return None


def _raw_profile(text: object) -> bytes | None:
    """An EXIF block in the hexadecimal text that ImageMagick writes into PNG files."""
    if not isinstance(text, str):
        return None
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return None
