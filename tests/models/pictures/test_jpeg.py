"""JPEG headers: number of scans, metadata that is left out, variants."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from offramp.models.pictures.jpeg import MOST_SEGMENTS, jpeg_scans, read_jpeg_header
from tests.pictures import encoded, exif, field, jpeg_with, noise, segment

PLAIN = encoded(Image.fromarray(noise(40, 24)), "JPEG")
PROGRESSIVE = encoded(Image.fromarray(noise(40, 24)), "JPEG", progressive=True)
SCAN = b"\xff\xda"


def test_scans_are_counted() -> None:
    assert jpeg_scans(PLAIN) == 1
    assert jpeg_scans(PROGRESSIVE) == PROGRESSIVE.count(SCAN) == 10


def test_every_scan_that_is_added_counts() -> None:
    # A refinement scan of no bits: what an attacker repeats.
    start = PROGRESSIVE.rfind(SCAN)
    last = PROGRESSIVE[start : PROGRESSIVE.rfind(b"\xff\xd9")]
    assert jpeg_scans(PROGRESSIVE[:start] + 400 * last + b"\xff\xd9") == 409


def test_scans_of_thumbnails_and_of_what_follows_the_picture_do_not_count() -> None:
    thumbnail = segment(0xE1, b"Exif\0\0" + PROGRESSIVE[:400])
    assert SCAN in thumbnail
    assert jpeg_scans(PLAIN[:2] + thumbnail + PLAIN[2:] + PROGRESSIVE) == 1


def test_an_end_inside_a_segment_hides_no_scan() -> None:
    start = PROGRESSIVE.rfind(SCAN)
    assert jpeg_scans(PROGRESSIVE[:start] + segment(0xFE, b"\xff\xd9") + PROGRESSIVE[start:]) == 10


def test_beyond_ten_thousand_segments_the_count_is_an_upper_bound() -> None:
    start = PROGRESSIVE.find(SCAN)
    hidden = PROGRESSIVE[:start] + (MOST_SEGMENTS + 5) * segment(0xFE, b"") + PROGRESSIVE[start:]
    assert jpeg_scans(hidden) == 10
    assert jpeg_scans(PROGRESSIVE[:start] + 3 * MOST_SEGMENTS * segment(0xDA, b"")) >= 3 * MOST_SEGMENTS


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8" + 99 * b"\xff", PLAIN[:300], PLAIN[:-9]])
def test_a_file_that_is_cut_off_is_counted_as_far_as_it_goes(data: bytes) -> None:
    assert jpeg_scans(data) in (0, 1)
    assert not read_jpeg_header(data).unsupported


def test_a_file_without_metadata_is_kept_as_it_is() -> None:
    assert read_jpeg_header(PLAIN).picture == PLAIN


def test_what_says_nothing_of_the_pixels_is_left_out() -> None:
    block = exif(field(0x0112, 3, 6))
    metadata = (
        segment(0xE1, b"Exif\0\0" + block)
        + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<xmp/>")
        + segment(0xE2, b"ICC_PROFILE\0")
        + segment(0xE0, b"JFIF")
        + segment(0xEE, b"Adobe")
        + segment(0xED, b"Photoshop 3.0\0")
        + segment(0xFE, b"a comment")
        + b"junk"
    )
    header = read_jpeg_header(PLAIN[:2] + metadata + PLAIN[2:])
    assert (header.picture, header.exif, header.xmp) == (PLAIN, b"Exif\0\0" + block, b"<xmp/>")


def test_exif_of_several_segments_is_joined() -> None:
    data = jpeg_with(segment(0xE1, b"Exif\0\0MM") + segment(0xE1, b"Exif\0\0\0*"))
    assert read_jpeg_header(data).exif == b"Exif\0\0MM\0*"


def test_exif_is_read_up_to_the_size_of_one_segment() -> None:
    header = read_jpeg_header(jpeg_with(segment(0xE1, b"Exif\0\0MM" + bytes(1000)) * 500))
    assert header.exif == b"Exif\0\0MM".ljust(1008, b"\0") + (b"MM" + bytes(1000)) * 64 + header.exif[-400:]
    assert len(header.exif) == 64 * 1024


def test_of_repeated_jfif_segments_one_reaches_the_decoder() -> None:
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    assert jfif in PLAIN
    assert read_jpeg_header(PLAIN[:2] + jfif * 900 + PLAIN[2:]).picture == PLAIN


@pytest.mark.parametrize(
    "segments",
    [
        segment(0xDB, (b"\0" + bytes(range(1, 65))) * 1000) * 2,
        segment(0xC4, (b"\0" + bytes(16)) * 3000) * 2,
        segment(0xEE, b"Adobe" + bytes(60_000)) * 2,
    ],
)
def test_tables_without_end_are_refused(segments: bytes) -> None:
    with pytest.raises(ValueError, match="more than 65536 bytes of tables in front of the pixels"):
        read_jpeg_header(jpeg_with(segments))


@pytest.mark.parametrize("channels", [b"\3" + bytes(9), b"\3" + bytes(60_000), b"\3", b""])
def test_a_second_or_odd_frame_header_is_refused(channels: bytes) -> None:
    frame = segment(0xC0, struct.pack(">BHH", 8, 8, 8) + channels)
    with pytest.raises(ValueError, match="several frame headers, or a frame header of the wrong length"):
        read_jpeg_header(jpeg_with(frame))


def test_what_tells_the_colour_space_stays() -> None:
    cmyk = encoded(Image.fromarray(noise(16, 16, 4), "CMYK"), "JPEG")
    assert b"Adobe" in cmyk
    assert read_jpeg_header(cmyk).picture == cmyk


def test_pictures_of_several_passes_are_told() -> None:
    assert read_jpeg_header(PROGRESSIVE).is_progressive
    assert not read_jpeg_header(PLAIN).is_progressive
    # A baseline picture with a scan for each channel keeps its coefficients, too.
    start = PLAIN.find(SCAN)
    assert read_jpeg_header(PLAIN[:start] + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00")).is_progressive


@pytest.mark.parametrize(
    ("marker", "bits", "channels", "variant"),
    [
        (0xC1, 12, 3, "12 bits a channel"),
        (0xC0, 8, 2, "2 channels"),
        (0xC5, 8, 3, "process 5 of JPEG"),
        (0xC0, 8, 3, ""),
    ],
)
def test_variants_that_cannot_be_decoded_are_named(marker: int, bits: int, channels: int, variant: str) -> None:
    frame = segment(marker, struct.pack(">BHHB", bits, 8, 8, channels) + bytes(3 * channels))
    assert read_jpeg_header(b"\xff\xd8" + frame).unsupported == variant


def test_segments_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 10000 segments"):
        read_jpeg_header(jpeg_with((MOST_SEGMENTS + 1) * segment(0xFE, b"")))


def test_leaving_out_changes_no_pixel() -> None:
    data = jpeg_with(segment(0xE5, b"unknown") + segment(0xFE, b"x"), noise(40, 24))
    with Image.open(io.BytesIO(data)) as whole, Image.open(io.BytesIO(read_jpeg_header(data).picture)) as left:
        assert np.array_equal(np.asarray(whole), np.asarray(left))
