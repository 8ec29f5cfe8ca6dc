"""WebP files: the chunks that matter to the pixels (RFC 9649, section 2)."""

from __future__ import annotations

import struct

from offramp.models.pictures.check import Check, never_end
from offramp.models.pictures.orientation import EXIF, MOST_BYTES, XMP

CHUNK = struct.Struct("<4sI")
# The first chunk of the extended format; the simple formats have pixels alone.
EXTENDED = b"VP8X"
PIXELS = (EXTENDED, b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
METADATA = {b"EXIF": EXIF, b"XMP ": XMP}

MOST_CHUNKS = 10_000


def without_metadata(data: bytes, check: Check = never_end) -> tuple[bytes, dict[str, bytes]]:
    """The file with the chunks of its first frame alone, and its EXIF and XMP by Pillow's names in `Image.info`.

    Raises ValueError for more than 10,000 chunks.
    """
    if data[12:16] != EXTENDED:
        return data, {}
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    parts: dict[bytes, bytes] = {}
    info: dict[str, bytes] = {}
    at = 12
    for _ in range(MOST_CHUNKS):
        check()
        if at + CHUNK.size > end:
            content = b"WEBP" + b"".join(parts.values())
            if len(content) == len(data) - 8:
                return data, {}
            return b"RIFF" + len(content).to_bytes(4, "little") + content, info
        kind, size = CHUNK.unpack_from(data, at)
        body = at + CHUNK.size
        if kind in PIXELS and kind not in parts:
            parts[kind] = data[at : min(end, body + size)] + b"\0" * (size % 2)
        elif kind in METADATA:
            info.setdefault(METADATA[kind], data[body : min(end, body + size, body + MOST_BYTES)])
        at = body + size + size % 2
    raise ValueError(f"more than {MOST_CHUNKS} chunks")
