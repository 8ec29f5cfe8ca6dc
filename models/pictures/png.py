"""PNG files: the chunks that matter to the pixels (W3C, PNG specification, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from offramp.models.pictures.check import Check, never_end
from offramp.models.pictures.orientation import EXIF, EXIF_PREFIX, MOST_BYTES, RAW_PROFILE, XMP

MAGIC = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
GREY, RGB, PALETTE = 0, 2, 3
# Keywords of the texts with the orientation, and their names in `Image.info`.
KEYWORDS = {b"XML:com.adobe.xmp": XMP, RAW_PROFILE.encode(): RAW_PROFILE}
STARTS = tuple(keyword + b"\0" for keyword in KEYWORDS)

TEXTS = (b"tEXt", b"zTXt", b"iTXt")

# Maximum number of chunks of any kind. Reading 25,000 empty ones takes 10 ms.
MOST_CHUNKS = 25_000
# Maximum number of chunks that Pillow reads, in Python: headers, and pixels (IDAT). A file with more chunks of pixels
# needs a mean size of 1 KiB; libpng writes chunks of 8 KiB.
MOST_HEADERS, MOST_PIXEL_CHUNKS, MEAN_PIXEL_CHUNK_BYTES = 100, 10_000, 1024


@dataclass(frozen=True)
class PngChunks:
    """The content of a PNG's chunks.

    picture: the file without the chunks that do not change its pixels. info: the entries with the orientation, by their
    names in Pillow's `Image.info`. unsupported: why a decoder refuses even a whole file of this variant, in words;
    empty if it does not.
    """

    picture: bytes
    info: dict[str, bytes | str]
    unsupported: str


def read_png_chunks(data: bytes, check: Check = never_end) -> PngChunks:
    """Read the chunks. Raises ValueError for too many chunks, and for a missing palette.

    Damaged chunks stay as they are: the decoder refuses them. The chunks of an animation are left out, and its still
    picture remains.
    """
    view = memoryview(data)
    parts: list[bytes | memoryview] = [view[:8]]
    info: dict[str, bytes | str] = {}
    depth = colour = colours = 0
    unsupported = ""
    keywords = set(KEYWORDS)
    # Headers, and chunks of pixels, that may still come.
    left = [MOST_HEADERS, max(MOST_PIXEL_CHUNKS, len(data) // MEAN_PIXEL_CHUNK_BYTES)]
    for kind, start, end in _chunks(data):
        check()
        is_pixels = kind == b"IDAT"
        is_decoded = not kind[0] & 0x20 or kind == b"tRNS"
        if is_decoded:
            left[is_pixels] -= 1
            if left[is_pixels] < 0:
                raise ValueError(f"more than {MOST_HEADERS} headers, or too many small chunks of pixels")
        elif kind != b"eXIf" and not (kind in TEXTS and data.startswith(STARTS, start + 8)):
            continue
        body = view[start + 8 : end - 4]
        if kind == b"IHDR" and len(body) == 13:
            depth, colour = body[8], body[9]
        elif kind == b"PLTE":
            colours = len(body) // 3
        elif kind == b"CgBI":
            unsupported = "Apple's own (CgBI)"
        elif is_pixels and colour == PALETTE and not colours:
            raise ValueError("it has no palette (PLTE)")
        if kind == b"tRNS":
            parts.append(_transparency(view[start:end], depth, colour, colours))
        elif is_decoded:
            parts.append(view[start:end])
        else:
            _take_orientation(info, kind, body, keywords)
    is_whole = all(isinstance(part, memoryview) for part in parts) and sum(map(len, parts)) == len(data)
    return PngChunks(data if is_whole else b"".join(parts), info, unsupported)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk, to the end of the picture. A damaged rest counts as one chunk.

    A truncated ancillary chunk (its type begins with a small letter) is left out.
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
    """A tRNS chunk in the form that Pillow reads, with grey on the scale of its pixels; empty for a malformed one."""
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


def _take_orientation(info: dict[str, bytes | str], kind: bytes, body: memoryview, keywords: set[bytes]) -> None:
    """Add the EXIF block or text of a chunk to `info`; the first of its kind counts.

    keywords: the texts that are not read yet. For each keyword at most one text is inflated, damaged or not.
    """
    if kind == b"eXIf":
        if EXIF not in info:
            info[EXIF] = EXIF_PREFIX + body[:MOST_BYTES].tobytes()
        return
    keyword, _, text = body[:MOST_BYTES].tobytes().partition(b"\0")
    if keyword not in keywords:
        return
    keywords.remove(keyword)
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        # A flag and the method of compression, the language, the translated keyword, the text (section 11.3.3.4).
        is_compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    elif is_compressed:
        text = text[1:]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_BYTES)
        except zlib.error:
            return
    name = KEYWORDS[keyword]
    info[name] = text if name == XMP else text.decode("latin-1")
