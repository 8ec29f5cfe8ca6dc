"""The orientation, out of metadata in any state."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from offramp.models.pictures.orientation import EXIF, EXIF_PREFIX, RAW_PROFILE, UPRIGHT, XMP, read_orientation
from tests.pictures import exif, field

ORIENTATION = 0x0112


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("prefix", [b"", EXIF_PREFIX])
def test_the_tag_is_found_among_others(order: str, kind: int, prefix: bytes) -> None:
    block = exif(
        field(0x0100, 4, 7, order), field(ORIENTATION, kind, 6, order), field(0x0213, 3, 1, order), order=order
    )
    assert read_orientation({EXIF: prefix + block}) == 6


def test_what_pillow_writes_is_read() -> None:
    written = Image.Exif()
    written[ORIENTATION] = 8
    assert read_orientation({EXIF: written.tobytes()}) == 8


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"\0\x08\0\x02\x01\x12\0\x03",
        b"II*\0\xff\xff\xff\xff",
        exif(field(ORIENTATION, 3, 0)),
        exif(field(ORIENTATION, 3, 9)),
        exif(field(ORIENTATION, 5, 8)),
        exif(field(ORIENTATION, 3, 6))[:15],
        exif(),
    ],
)
def test_a_block_that_cannot_be_read_leaves_a_picture_as_it_is(block: bytes) -> None:
    assert read_orientation({EXIF: block}) == UPRIGHT


def test_a_field_that_is_damaged_does_not_hide_the_orientation() -> None:
    # A rational whose value lies beyond the block, a type that does not exist, and a directory that ends too early.
    odd = exif(field(0x011A, 5, 1 << 30), field(0x0128, 77, 1), field(ORIENTATION, 3, 6))
    assert read_orientation({EXIF: odd}) == 6
    assert read_orientation({EXIF: odd.replace(struct.pack("<H", 3), struct.pack("<H", 900), 1)}) == 6


def test_text_profiles_and_xmp_tell_it_where_there_is_no_exif() -> None:
    profile = f"\nexif\n      44\n{(EXIF_PREFIX + exif(field(ORIENTATION, 3, 3))).hex()}\n"
    assert read_orientation({RAW_PROFILE: profile}) == 3
    assert read_orientation({RAW_PROFILE: "\nexif\n 4\nno hex"}) == UPRIGHT
    for xmp in (b'<x tiff:Orientation="5"/>', b"<tiff:Orientation>5</tiff:Orientation>"):
        assert read_orientation({XMP: xmp}) == 5
        assert read_orientation({XMP: xmp, EXIF: exif(field(ORIENTATION, 3, 2))}) == 2
        assert read_orientation({XMP: xmp, EXIF: exif()}) == 5


@given(st.binary(max_size=80), st.booleans(), st.integers(0, 2))
def test_no_bytes_raise(noise: bytes, prefixed: bool, start: int) -> None:
    begun = (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")[start] + noise
    info = {EXIF: (EXIF_PREFIX if prefixed else b"") + begun, XMP: noise, RAW_PROFILE: noise.decode("latin-1")}
    assert 1 <= read_orientation(info) <= 8
