"""Small files that cost a decoder much: valid or cut short, within a server's limits or just beyond them."""

from __future__ import annotations

import struct

from PIL import Image

from benchmarks.harness.pictures import encode

SIDE = 7000
# 24 megapixels: just below the default limit of 25.
ALLOWED_SIDE = 4900
# After DC, scans of AC coefficients: all blocks are at their end.
DC_TABLE, AC_TABLE = b"\x00\x01" + bytes(15) + b"\x00", b"\x10\x00\x01" + bytes(14) + b"\xe0"


def picture(side: int, format: str, mode: str = "RGB", **options: object) -> bytes:
    """A black square. side: in pixels."""
    return encode(Image.new(mode, (side, side)), format, **options)


def webp() -> bytes:
    """A WebP of 34 bytes with SIDE² pixels."""
    return picture(SIDE, "webp", lossless=True, quality=0, method=0)


def gif() -> bytes:
    """A GIF of 8 MiB: as many frames as fit, each of ALLOWED_SIDE² pixels."""
    single = picture(ALLOWED_SIDE, "gif", "P")
    frame = single[single.rfind(b"\x2c\0\0\0\0") : -1]
    return single[:-1] + frame * (2**23 // len(frame)) + b";"


def scans(count: int, side: int = ALLOWED_SIDE) -> bytes:
    """A progressive JPEG: scans of a hundred bytes, each of which is a pass over all blocks (ITU T.81, G.1.2)."""
    blocks = ((side + 7) // 8) ** 2
    left, bits = blocks, ""
    while left >= 2**14:
        run = min(left, 2**15 - 1)
        bits += "00" + format(run - 2**14, "014b")
        left -= run
    bits += "1" * (-len(bits) % 8)
    runs = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    first = _scan(0, 0, 0) + bytes((blocks + 7) // 8) + _scan(1, 63, 0x01) + runs
    frame = _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    tables = _segment(0xDB, b"\0" + b"\1" * 64) + frame + _segment(0xC4, DC_TABLE) + _segment(0xC4, AC_TABLE)
    return b"\xff\xd8" + tables + first + (_scan(1, 63, 0x10) + runs) * count + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _scan(first: int, last: int, precision: int) -> bytes:
    return _segment(0xDA, bytes((1, 1, 0, first, last, precision)))
