"""JPEG files: the segments that matter to the pixels, and the number of scans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from offramp.models.pictures.check import Check, never_end
from offramp.models.pictures.orientation import EXIF_PREFIX, MOST_BYTES

# Between segments, and in entropy-coded data: 0xFF stands before a marker, 0xFF 0x00 is a byte of data, further 0xFF
# are fill bytes, and restart markers (0xD0 to 0xD7) belong to the data (ITU-T T.81, B.1.1).
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, TEMPORARY, COMMENT = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
APP0, APP1, APP14, APP15 = 0xE0, 0xE1, 0xEE, 0xEF
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# Hierarchical files, and lossless ones with arithmetic coding, which libjpeg-turbo does not decode.
UNSUPPORTED_FRAMES = (0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\x00"
# libjpeg reads the colour space from these two application segments if they are at least so long.
JFIF_BYTES, ADOBE_BYTES = 14, 12

MOST_SEGMENTS = 10_000
# Tables in front of the first scan: the standard allows 3 KiB, and Pillow reads them in Python.
MOST_TABLE_BYTES = 64 * 1024
# Bytes that are searched for a marker between two checks.
SEARCH_BYTES = 1 << 20


@dataclass(frozen=True)
class JpegHeader:
    """The content of the segments in front of the first scan.

    picture: the file without the segments that do not change its pixels. exif, xmp: the blocks with the orientation,
    empty if there are none. is_progressive: several scans fill one picture, so that its coefficients stay in memory.
    unsupported: why a decoder refuses even a whole file of this variant, in words; empty if it does not.
    """

    picture: bytes
    exif: bytes
    xmp: bytes
    is_progressive: bool
    unsupported: str


def jpeg_scans(data: bytes) -> int:
    """The number of scans; a decoder passes over all pixels for each.

    Scans of thumbnails inside segments, and of pictures after the end of this one, do not count. It is an upper bound
    for a file of more than 10,000 segments.
    """
    scans, at = 0, 2
    for _ in range(MOST_SEGMENTS):
        match = _find_marker(data, at, never_end)
        if match is None:
            return scans
        at = match.end()
        marker = data[at - 1]
        if marker == END_OF_IMAGE:
            return scans
        if marker not in (START_OF_IMAGE, TEMPORARY):
            at += int.from_bytes(data[at : at + 2], "big")
            scans += marker == START_OF_SCAN
    return scans + data.count(bytes((0xFF, START_OF_SCAN)), at)


def read_jpeg_header(data: bytes, check: Check = never_end) -> JpegHeader:
    """Read the segments in front of the first scan.

    Raises ValueError for more than 10,000 segments or 64 KiB of tables, and for frame headers that no decoder accepts.
    """
    parts, exif, xmp = [data[:2]], list[bytes](), b""
    exif_bytes = table_bytes = 0
    frame, components, bits = 0, 0, 8
    is_progressive = has_jfif = False
    for marker, start, end in _segments(data, check):
        body = data[start + 4 : end]
        if marker == START_OF_SCAN:
            is_progressive = frame in PROGRESSIVE or body[:1] < bytes((components,))
            # No segment was left out if the parts reach up to here.
            parts = [data] if sum(map(len, parts)) == start else [*parts, data[start:]]
            break
        if marker in FRAMES:
            if frame or len(body) < 6 or len(body) != 6 + 3 * body[5]:
                raise ValueError("it has several frame headers, or a frame header of the wrong length")
            frame, bits, components = marker, body[0], body[5]
        if marker == APP0:
            if not has_jfif and body.startswith(b"JFIF\x00") and len(body) >= JFIF_BYTES:
                parts.append(data[start:end])
                has_jfif = True
        elif _describes_pixels(marker, body):
            parts.append(data[start:end])
            table_bytes += end - start
            if table_bytes > MOST_TABLE_BYTES:
                raise ValueError(f"more than {MOST_TABLE_BYTES} bytes of tables in front of the pixels")
        elif marker == APP1 and body.startswith(EXIF_PREFIX) and exif_bytes < MOST_BYTES:
            exif.append(body.removeprefix(EXIF_PREFIX) if exif_bytes else body)
            exif_bytes += len(exif[-1])
        elif marker == APP1 and body.startswith(XMP_PREFIX):
            xmp = body.removeprefix(XMP_PREFIX)
    unsupported = _unsupported(frame, bits, components)
    return JpegHeader(b"".join(parts), b"".join(exif)[:MOST_BYTES], xmp, is_progressive, unsupported)


def _segments(data: bytes, check: Check) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to and including the first scan, or up to one that is cut off."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        match = _find_marker(data, at, check)
        if match is None:
            return
        start, marker = match.start(), data[match.end() - 1]
        has_length = marker not in (START_OF_IMAGE, END_OF_IMAGE, TEMPORARY)
        at = start + 2 + (int.from_bytes(data[start + 2 : start + 4], "big") if has_length else 0)
        if at > len(data):
            return
        yield marker, start, at
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return
    raise ValueError(f"more than {MOST_SEGMENTS} segments in front of the pixels")


def _find_marker(data: bytes, at: int, check: Check) -> re.Match[bytes] | None:
    for start in range(at, len(data), SEARCH_BYTES):
        check()
        if match := MARKER.search(data, start, start + SEARCH_BYTES + 1):
            return match
    return None


def _describes_pixels(marker: int, body: bytes) -> bool:
    if marker == APP14:
        return body.startswith(b"Adobe") and len(body) >= ADOBE_BYTES
    return not (APP0 <= marker <= APP15 or marker in (COMMENT, TEMPORARY))


def _unsupported(frame: int, bits: int, components: int) -> str:
    if frame in UNSUPPORTED_FRAMES:
        return f"process {frame - 0xC0} of JPEG"
    if bits != 8:
        return f"{bits} bits a channel"
    return f"{components} channels" if components not in (0, 1, 3, 4) else ""
