"""Encoded pictures put together by hand: whole ones that encoders write seldom, and metadata that is damaged."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8


def noise(width: int = SIDE, height: int = SIDE, channels: int = 3) -> np.ndarray:
    """uint8 (height, width, channels)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """One chunk of a PNG, with the right check sum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: Sequence[bytes], width: int, depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of unfiltered rows. depth: bits a sample. colour: 0 grey, 2 RGB, 3 palette. before, after: chunks beside
    the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND")


def rgb_png(pixels_HWC: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of uint8 pixels, with chunks beside them."""
    return png([row.tobytes() for row in pixels_HWC], pixels_HWC.shape[1], 8, 2, before, after)


def jpeg_with(segments: bytes, pixels_HWC: np.ndarray | None = None, **options: Any) -> bytes:
    """A JPEG with segments behind its first marker."""
    whole = encoded(Image.fromarray(noise() if pixels_HWC is None else pixels_HWC), "JPEG", **options)
    return whole[:2] + segments + whole[2:]


def segment(marker: int, body: bytes) -> bytes:
    """One segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def exif(*fields: bytes, order: str = "<") -> bytes:
    """An EXIF block with these fields of 12 bytes in its first directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, len(fields)) + b"".join(fields) + bytes(12)


def field(tag: int, kind: int, value: int, order: str = "<", count: int = 1) -> bytes:
    """A field of an EXIF directory that holds one whole number. kind: 3 of two bytes, 4 of four, as TIFF counts."""
    packed = struct.pack(f"{order}{ {1: 'B', 3: 'H', 4: 'I'}.get(kind, 'I') }", value)
    return struct.pack(f"{order}HHI", tag, kind, count) + packed.ljust(4, b"\0")
