"""GIF files: the blocks that matter to the first frame (GIF89a, CompuServe 1990)."""

from __future__ import annotations

import re

from offramp.models.pictures.check import Check, never_end

# The first byte of an extension, a frame, or the end of the file. Decoders skip other bytes between blocks.
START = re.compile(rb"[!,;]")
HEADER_BYTES = 13
HAS_PALETTE = 0x80
GRAPHIC_CONTROL, GRAPHIC_CONTROL_BYTES, IS_TRANSPARENT = 0xF9, 4, 0x01

# Limits in front of the first frame. 16 MiB hold so many sub-blocks of 32 bytes; most have 255.
MOST_EXTENSIONS, MOST_SUB_BLOCKS = 10_000, 500_000


def without_extensions(data: bytes, check: Check = never_end) -> bytes:
    """The file without the extensions in front of its first frame; the index of the transparent colour stays.

    Comments, application data, the delay and the number of loops do not change the pixels of the first frame. A file
    without frames ends after its header. Raises ValueError for more than 10,000 extensions or 500,000 sub-blocks.
    """
    if len(data) < HEADER_BYTES:
        return data
    first = at = HEADER_BYTES + (3 << (data[10] & 7) + 1 if data[10] & HAS_PALETTE else 0)
    transparency = b""
    sub_blocks_left = MOST_SUB_BLOCKS
    for _ in range(MOST_EXTENSIONS):
        check()
        match = START.search(data, at)
        if match is None:
            return data[:first]
        at = match.start()
        if data[at] == ord(","):
            return data if at == first else data[:first] + transparency + data[at:]
        if data[at] == ord(";"):
            return data[:first]
        label, size, flags = data[at + 1 : at + 4].ljust(3, b"\0")
        if label == GRAPHIC_CONTROL and size >= GRAPHIC_CONTROL_BYTES and flags & IS_TRANSPARENT:
            transparency = b"!\xf9\4\1\0\0" + data[at + 6 : at + 7] + b"\0"
        at, sub_blocks_left = _after_sub_blocks(data, at + 2, sub_blocks_left)
    raise ValueError(f"more than {MOST_EXTENSIONS} extensions in front of the pixels")


def _after_sub_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """The end of a chain of sub-blocks, and the number that remains of the `most` allowed ones."""
    end = len(data)
    for left in range(most - 1, -1, -1):
        if at >= end:
            return end, left
        size = data[at]
        at += size + 1
        if not size:
            return at, left
    raise ValueError(f"more than {MOST_SUB_BLOCKS} sub-blocks in front of the pixels")
