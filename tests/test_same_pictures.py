"""The server, `offramp predict` and training read the same pictures the same way, and refuse the same ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.server.http.problems import Problem
from offramp.server.picture_files import read_picture
from offramp.server.request import images
from offramp.training.data.image_set import DataError, decode_picture
from tests.pictures import chunk, encoded, exif, field, jpeg_with, noise, png, rgb_png, segment

PREPROCESSING = Preprocessing(16)
PIXELS = noise(16, 16)
NO_NUMBER = exif(field(0x9999, 11, 0x7FC00000), field(0x0112, 3, 6))
XMP_BOMB = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 * 1024**2))

WHOLE = {
    "odd EXIF.jpg": jpeg_with(segment(0xE1, b"Exif\0\0" + NO_NUMBER), PIXELS),
    "EXIF without TIFF header.png": rgb_png(PIXELS, chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03")),
    "large XMP.png": rgb_png(PIXELS, chunk(b"iTXt", XMP_BOMB)),
    "transparent 16-bit grey.png": png([bytes(range(32))] * 16, 16, 16, 0, chunk(b"tRNS", b"\x02\x03")),
    "transparent 16-bit colour.png": png([bytes(range(96))] * 16, 16, 16, 2, chunk(b"tRNS", bytes(range(6)))),
    "CMYK.jfif": encoded(Image.frombytes("CMYK", (20, 30), noise(20, 30, 4).tobytes()), "JPEG"),
}
HEADER = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 5, 0, 0, 0, 0, 0)
REFUSED = {
    "no palette.png": (422, png([bytes(16)] * 16, 16, 8, 3), r"it has no palette \(PLTE\)"),
    "cut.jpg": (422, encoded(Image.fromarray(noise(64, 64)), "JPEG")[:-900], "truncated"),
    "holds a PNG.bmp": (415, b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + HEADER + bytes(99), r"BMP compression \(5\)"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_picture_is_read_the_same_everywhere(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    served = images.decode(images.open_picture(WHOLE[name], 0, 10**6), 0, PREPROCESSING)
    assert np.array_equal(served, read_picture(path, PREPROCESSING))
    assert np.array_equal(served, decode_picture(path, PREPROCESSING))


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_read_is_named_everywhere(name: str, tmp_path: Path) -> None:
    status, content, cause = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Problem, match=rf"^image 5 .*{cause}") as caught:
        images.decode(images.open_picture(content, 5, 10**6), 5, PREPROCESSING)
    assert (caught.value.kind.status, caught.value.fields["image"]) == (status, 5)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as a picture \(.*{cause}"):
        read_picture(path, PREPROCESSING)
    with pytest.raises(DataError, match=rf"{name}: cannot be decoded \(.*{cause}"):
        decode_picture(path, PREPROCESSING)


def test_what_is_transparent_is_white_in_answers() -> None:
    for name, place in (("transparent 16-bit grey.png", 1), ("transparent 16-bit colour.png", 0)):
        pixels_HWC = images.decode(images.open_picture(WHOLE[name], 0, 10**6), 0, PREPROCESSING)
        assert pixels_HWC[0, place].tolist() == [255, 255, 255]
        assert (pixels_HWC[:, 2:] < 255).all()
