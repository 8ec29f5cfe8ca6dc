"""PNG files as strangers send them: the chunks that matter to the pixels (W3C, PNG specification, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from models.orientation import EXIF, EXIF_PREFIX, RAW_PROFILE, XMP

MAGIC = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
GREY, RGB, PALETTE = 0, 2, 3
# Keywords of the texts that may tell the orientation, and their names in `Image.info`.
KEYWORDS = {b"XML:com.adobe.xmp": XMP, RAW_PROFILE.encode(): RAW_PROFILE}

MOST_CHUNKS = 100_000
# Read of a compressed text; the orientation stands near its start.
MOST_TEXT_BYTES = 256 * 1024


@dataclass(frozen=True)
class PngChunks:
    """What a PNG is made of.

    picture: the file without the chunks that say nothing of its pixels. info: what may tell the orientation, named
    as in Pillow's `Image.info`. unsupported: in words, why it cannot be decoded though it may be whole; empty for
    others.
    """

    picture: bytes
    info: dict[str, bytes | str]
    unsupported: str


def read_png_chunks(data: bytes) -> PngChunks:
    """Walk over the chunks. Raises ValueError for more than 100,000 of them, and for a palette that is missing.

    What cannot be told apart stays as it is, for the decoder to refuse. An animation's chunks are left out: what
    remains is its still picture.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:8]]
    info: dict[str, bytes | str] = {}
    depth = colour = colours = 0
    unsupported = ""
    for kind, start, end in _chunks(data):
        body = view[start + 8 : end - 4]
        if kind == b"IHDR" and len(body) == 13:
            depth, colour = body[8], body[9]
        elif kind == b"PLTE":
            colours = len(body) // 3
        elif kind == b"CgBI":
            unsupported = "Apple's own (CgBI)"
        elif kind == b"IDAT" and colour == PALETTE and not colours:
            raise ValueError("it has no palette (PLTE)")
        if kind == b"tRNS":
            kept.append(_transparency(view[start:end], depth, colour, colours))
        elif not kind[0] & 0x20:
            kept.append(view[start:end])
        else:
            _take_orientation(info, kind, body)
    is_whole = all(isinstance(part, memoryview) for part in kept) and sum(map(len, kept)) == len(data)
    return PngChunks(data if is_whole else b"".join(kept), info, unsupported)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk, to the end of the picture; a damaged rest counts as one chunk.

    An ancillary chunk (its type begins with a small letter) that is cut off is left out.
    """
    start = len(MAGIC)
    for _ in range(MOST_CHUNKS):
        if start + CHUNK.size > len(data):
            return
        length, kind = CHUNK.unpack_from(data, start)
        end = start + length + 12
        if not kind.isalpha():
            yield b"????", start, len(data)
            return
        if end > len(data):
            if not kind[0] & 0x20:
                yield kind, start, len(data)
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise ValueError(f"more than {MOST_CHUNKS} chunks")


def _transparency(chunk: memoryview, depth: int, colour: int, colours: int) -> bytes | memoryview:
    """A tRNS chunk as Pillow reads it: the grey on the scale of its pixels; nothing where the chunk is malformed."""
    samples = {GREY: 1, RGB: 3}.get(colour, 0)
    body = chunk[8:-4]
    if colour == PALETTE:
        return chunk if 0 < len(body) <= colours else b""
    if not samples or len(body) != 2 * samples:
        return b""
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return chunk
    # Pillow spreads greys of 2 and 4 bits over 0 to 255, and compares as many bits as a sample has (section 11.3.1.1).
    scale = {2: 85, 4: 17}.get(depth, 1)
    values = [(value & (1 << depth) - 1) * scale for value in struct.unpack(f">{samples}H", body)]
    changed = b"tRNS" + struct.pack(f">{samples}H", *values)
    return CHUNK.pack(len(body), b"")[:4] + changed + zlib.crc32(changed).to_bytes(4, "big")


def _take_orientation(info: dict[str, bytes | str], kind: bytes, body: memoryview) -> None:
    """Add to `info` what a chunk may tell of the orientation; the first of its kind counts."""
    if kind == b"eXIf":
        info.setdefault(EXIF, EXIF_PREFIX + body.tobytes())
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return
    keyword, _, text = body[:MOST_TEXT_BYTES].tobytes().partition(b"\0")
    name = KEYWORDS.get(keyword)
    if name is None or name in info:
        return
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        # Whether it is compressed, and how; the language and the keyword in it (section 11.3.3.4).
        is_compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    elif is_compressed:
        text = text[1:]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_TEXT_BYTES)
        except zlib.error:
            return
    info[name] = text if name == XMP else text.decode("latin-1")
