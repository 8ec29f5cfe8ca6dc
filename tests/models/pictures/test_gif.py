"""GIF files: the first frame has the same pixels without the extensions, whatever is in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from offramp.models.pictures.gif import MOST_EXTENSIONS, MOST_SUB_BLOCKS, without_extensions
from offramp.models.pictures.picture import open_image
from tests.pictures import encoded, noise

FRAMES = [Image.fromarray(noise(40, 24)).convert("P"), Image.new("P", (40, 24), 3), Image.new("P", (40, 24))]
PLAIN = encoded(FRAMES[0], "GIF", interlace=False)
HEADER_BYTES = 13 + 3 * 256


def extension(label: int, *sub_blocks: bytes) -> bytes:
    return bytes((0x21, label)) + b"".join(bytes((len(block),)) + block for block in sub_blocks) + b"\0"


def with_blocks(blocks: bytes) -> bytes:
    """A GIF with blocks in front of its first frame."""
    return PLAIN[:HEADER_BYTES] + blocks + PLAIN[HEADER_BYTES:]


COMMENT = extension(0xFE, b"a comment; with, marks!")
LOOP = extension(0xFF, b"NETSCAPE2.0", b"\1\0\0")
XMP = extension(0xFF, b"XMP DataXMP", *[b"<x tiff:Orientation='6'/>" * 9] * 3)
TEXT = extension(0x01, bytes(12), b"plain text")
TRANSPARENT = extension(0xF9, b"\1\0\0\x07")
OPAQUE = extension(0xF9, b"\x0c\x0a\0\x09")

WHOLE = {
    "plain": PLAIN,
    "grey": encoded(Image.fromarray(noise(40, 24)[:, :, 0]), "GIF"),
    "two colours": encoded(Image.fromarray(noise(40, 24)[:, :, 0]).convert("1"), "GIF"),
    "interlaced": encoded(FRAMES[0], "GIF", interlace=True),
    "transparent": encoded(FRAMES[0], "GIF", transparency=7),
    "commented": encoded(FRAMES[0], "GIF", comment=b"x" * 700),
    "animated": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], loop=0, duration=80),
    "animated and transparent": encoded(
        FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], transparency=7, disposal=2, comment=b"y"
    ),
    "every extension": with_blocks(COMMENT + LOOP + XMP + TEXT + TRANSPARENT + COMMENT),
    "the last transparent colour counts": with_blocks(TRANSPARENT + extension(0xF9, b"\x05\0\0\x21")),
    "an opaque control does not hide a transparent one": with_blocks(TRANSPARENT + OPAQUE),
    "opaque control": with_blocks(OPAQUE),
    "bytes between blocks": with_blocks(b"\0\0" + COMMENT + b"\7" * 99),
    "old version": b"GIF87a" + with_blocks(COMMENT)[6:],
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_first_frame_is_what_pillow_reads_from_the_whole_file(name: str) -> None:
    with Image.open(io.BytesIO(WHOLE[name])) as whole, open_image(WHOLE[name]) as image:
        assert (image.mode, image.size) == (whole.mode, whole.size)
        assert np.array_equal(np.asarray(image.convert("RGBA")), np.asarray(whole.convert("RGBA")))
        assert image.info.get("transparency") == whole.info.get("transparency")


def test_a_palette_of_the_frame_stays() -> None:
    frame = PLAIN[HEADER_BYTES:]
    local = PLAIN[:10] + b"\0\0\0" + COMMENT + frame[:9] + b"\x87" + PLAIN[13:HEADER_BYTES] + frame[10:]
    with open_image(PLAIN) as shared, open_image(local) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(shared.convert("RGB")))


def test_a_file_without_extensions_stays_as_it_is() -> None:
    assert without_extensions(PLAIN) is PLAIN


def test_extensions_are_left_out() -> None:
    assert without_extensions(with_blocks(COMMENT + LOOP + XMP + TEXT + OPAQUE)) == PLAIN


@pytest.mark.parametrize("kind", [0xFE, 0xFF, 0x01, 0x99])
def test_a_chain_of_many_small_blocks_does_not_reach_the_decoder(kind: int) -> None:
    data = with_blocks(extension(kind, b"12 bytes more", *[b"ab"] * 200_000))
    assert without_extensions(data) == PLAIN


def test_blocks_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 500000 sub-blocks in front of the pixels"):
        open_image(with_blocks(extension(0xFE, *[b"ab"] * MOST_SUB_BLOCKS)))
    with pytest.raises(ValueError, match="more than 500000 sub-blocks in front of the pixels"):
        open_image(with_blocks(extension(0xFE, *[b"a"] * (MOST_SUB_BLOCKS // 4)) * 4))
    with pytest.raises(ValueError, match="more than 10000 extensions in front of the pixels"):
        open_image(with_blocks(extension(0xFE) * MOST_EXTENSIONS))


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:9],
        PLAIN[:400],
        PLAIN[:HEADER_BYTES],
        PLAIN[:HEADER_BYTES] + b";",
        with_blocks(COMMENT)[: HEADER_BYTES + 9],
    ],
)
def test_a_file_without_a_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="its header makes no sense"):
        open_image(data)


def test_every_cut_is_read_or_refused() -> None:
    data = with_blocks(COMMENT + TRANSPARENT)
    for end in range(HEADER_BYTES + len(COMMENT + TRANSPARENT) + 12):
        with pytest.raises((ValueError, OSError)):
            open_image(data[:end]).load()
