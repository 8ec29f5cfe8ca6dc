"""Encoded pictures in every state: metadata never decides, pixels that are damaged are refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from offramp.models.pictures.picture import DECODE_ERRORS, UnsupportedPicture, open_image
from offramp.models.pictures.png import MOST_CHUNKS, read_png_chunks
from offramp.models.pictures.webp import without_metadata
from offramp.models.preprocess import Preprocessing, decoded_bytes
from tests.pictures import chunk, encoded, exif, field, jpeg_with, noise, png, rgb_png, segment

PREPROCESSING = Preprocessing(8)
PIXELS = noise()
TURNED = np.asarray(Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_270))
SIDEWAYS = field(0x0112, 3, 6)
XMP_KEYWORD = b"XML:com.adobe.xmp"

# EXIF that Pillow cannot write anew, or not read: each with orientation 6.
ODD_EXIF = {
    "rational by zero": exif(field(0x011A, 5, 8), SIDEWAYS)[:34] + struct.pack("<iI", -1, 0),
    "float that is no number": exif(field(0x9999, 11, 0x7FC00000), SIDEWAYS),
    "value beyond the block": exif(field(0x0110, 2, 1 << 30, count=99), SIDEWAYS),
    "more fields than there are": exif(field(0x0100, 3, 1), SIDEWAYS).replace(b"\x02\0", b"\xff\0", 1),
    "directory that does not end": exif(SIDEWAYS)[: 10 + 12],
}


def read(content: bytes) -> np.ndarray:
    with open_image(content) as image:
        return PREPROCESSING.apply(image)


@pytest.mark.parametrize("block", ODD_EXIF.values(), ids=ODD_EXIF)
def test_odd_exif_is_no_reason_to_refuse_and_its_orientation_is_honoured(block: bytes) -> None:
    assert np.array_equal(read(rgb_png(PIXELS, chunk(b"eXIf", block))), TURNED)
    assert np.array_equal(read(rgb_png(PIXELS, after=chunk(b"eXIf", block))), TURNED)
    assert np.array_equal(read(encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=block)), TURNED)
    plain = read(jpeg_with(b"", PIXELS))
    assert np.array_equal(read(jpeg_with(segment(0xE1, b"Exif\0\0" + block), PIXELS)), np.rot90(plain, -1))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
        chunk(b"iTXt", XMP_KEYWORD + b"\0\1\0\0\0" + zlib.compress(bytes(3 * 1024**2))),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 1024**2))),
        chunk(b"zTXt", b"Comment\0\7"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 1024**2))),
        chunk(b"iCCP", b"profile\0\5"),
        chunk(b"iCCP"),
        chunk(b"tEXt", b"\xff" * 70_000),
        chunk(b"gAMA", b"\0") + chunk(b"cHRM") + chunk(b"pHYs") + chunk(b"sRGB") + chunk(b"acTL") + chunk(b"fcTL"),
        chunk(b"acTL", bytes(8)) + chunk(b"fcTL", b"\xff" * 26),
        chunk(b"tEXt", b"a\0b")[:-1] + b"!",
        chunk(b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0<broken"),
        chunk(b"tRNS", b"\0"),
    ],
)
def test_metadata_of_a_png_never_decides_whether_it_is_read(metadata: bytes) -> None:
    assert np.array_equal(read(rgb_png(PIXELS, metadata)), PIXELS)
    assert np.array_equal(read(rgb_png(PIXELS, after=metadata)), PIXELS)


def test_a_png_that_ends_within_its_last_text_is_whole() -> None:
    assert np.array_equal(read(rgb_png(PIXELS, after=chunk(b"tEXt", bytes(99)))[:-60]), PIXELS)


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE0, b"JFIF"),
        segment(0xEE, b"Adobe"),
        segment(0xE2, b"MPF\0nonsense"),
        segment(0xED, b"Photoshop 3.0\x008BIM"),
        segment(0xE1, b"Exif\0\0"),
        segment(0xFE, b"comment") + b"junk" * 99,
    ],
)
def test_metadata_of_a_jpeg_never_decides_whether_it_is_read(metadata: bytes) -> None:
    assert np.array_equal(read(jpeg_with(metadata)), read(jpeg_with(b"")))


def test_metadata_of_a_webp_never_decides_whether_it_is_read() -> None:
    whole = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=exif(SIDEWAYS), xmp=b"<x/>")
    assert np.array_equal(read(whole), TURNED)
    assert np.array_equal(read(whole[:-3]), TURNED)
    lying = whole.replace(b"EXIF" + whole[whole.find(b"EXIF") + 4 :][:1], b"EXIF\xff")
    assert np.array_equal(read(lying), TURNED)
    with pytest.raises(DECODE_ERRORS):
        read(whole[: whole.find(b"EXIF") - 9])


def test_orientation_in_texts_of_a_png_is_honoured() -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    profile = b"\nexif\n 99\n" + (b"Exif\0\0" + exif(SIDEWAYS)).hex().encode()
    for metadata in (
        chunk(b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + xmp),
        chunk(b"iTXt", XMP_KEYWORD + b"\0\1\0en\0key\0" + zlib.compress(xmp)),
        chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
    ):
        assert np.array_equal(read(rgb_png(PIXELS, metadata)), TURNED)


def test_warnings_on_metadata_refuse_nothing_where_they_are_errors() -> None:
    # A TIFF whose second field claims more values than it holds.
    whole = encoded(Image.fromarray(PIXELS), "TIFF", tiffinfo={270: "x" * 40, 305: "y"})
    at = whole.find(struct.pack("<HH", 305, 2))
    cut = whole[: at + 4] + struct.pack("<II", 99_999, len(whole) - 4) + whole[at + 12 :]
    code = (
        "import sys; from offramp.models.pictures.picture import open_image;"
        "from offramp.models.preprocess import Preprocessing;"
        "print(Preprocessing(8).apply(open_image(bytes.fromhex(sys.argv[1]))).sum())"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, cut.hex()], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == (str(PIXELS.sum()), "")


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "greys"),
    [
        (1, b"\xaa", 1, [255, 0] * 4),
        (2, b"\x1b\x1b", 0xFFFD, [0, 255, 170, 255] * 2),
        (4, b"\x01\x23\x45\x67", 3, [0, 17, 34, 255, 68, 85, 102, 119]),
        (8, bytes(range(8)), 0x0103, [0, 1, 2, 255, 4, 5, 6, 7]),
        (16, struct.pack(">8H", *range(0x1230, 0x1238)), 0x1233, [18, 18, 18, 255, 18, 18, 18, 18]),
    ],
)
def test_the_transparent_grey_of_any_depth_lies_over_white(
    depth: int, row: bytes, transparent: int, greys: list[int]
) -> None:
    picture = png([row] * 8, 8, depth, 0, chunk(b"tRNS", struct.pack(">H", transparent)))
    assert read(picture)[0, :, 0].tolist() == greys


def test_the_transparent_colour_of_sixteen_bits_is_compared_in_full() -> None:
    colours = [(0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD), (0, 0, 0)] * 2
    row = b"".join(struct.pack(">3H", *colour) for colour in colours)
    picture = png([row] * 8, 8, 16, 2, chunk(b"tRNS", struct.pack(">3H", *colours[0])))
    plain = [0x12, 0x56, 0x9A]
    assert read(picture)[0].tolist() == [[255, 255, 255], plain, plain, [0, 0, 0]] * 2


@pytest.mark.parametrize("body", [b"", bytes(300)])
def test_a_transparency_that_fits_no_palette_is_left_out(body: bytes) -> None:
    palette = chunk(b"PLTE", bytes(range(24)))
    picture = png([bytes(range(8))] * 8, 8, 8, 3, palette + chunk(b"tRNS", body))
    assert read(picture)[0, :, 0].tolist() == list(range(0, 24, 3))


@pytest.mark.parametrize("palette", [b"", chunk(b"PLTE")])
def test_a_palette_picture_without_palette_is_refused(palette: bytes) -> None:
    with pytest.raises(ValueError, match=r"it has no palette \(PLTE\)"):
        open_image(png([bytes(8)] * 8, 8, 8, 3, palette, after=chunk(b"PLTE", bytes(24))))


def test_damaged_pixels_are_refused() -> None:
    whole = rgb_png(PIXELS)
    at = whole.find(b"IDAT") + 8
    for broken in (
        whole[:at] + bytes(40) + whole[at + 40 :],
        whole[: at + 20],
        whole[:at],
        whole.replace(b"IDAT", b"I\0AT"),
        whole.replace(b"IHDR", b"IHDX"),
        jpeg_with(b"")[:-40],
    ):
        with pytest.raises(DECODE_ERRORS):
            read(broken)


def test_an_animation_is_its_still_picture() -> None:
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8))]
    for format in ("PNG", "WEBP"):
        animated = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(read(animated), PIXELS)


def bmp(bits: int, compression: int) -> bytes:
    size = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 999, 0, 0, 54) + size + bytes(999)


@pytest.mark.parametrize(
    ("content", "variant"),
    [
        (bmp(24, 5), r"BMP compression \(5\)"),
        (bmp(2, 0), r"BMP pixel depth \(2\)"),
        (bmp(16, 3), "BMP bitfields layout"),
        (rgb_png(PIXELS, chunk(b"CgBI", bytes(4))), "CgBI"),
        (b"\xff\xd8" + segment(0xC1, b"\x0c" + bytes(4) + b"\x01" + bytes(3)), "12 bits a channel"),
    ],
)
def test_whole_variants_that_cannot_be_decoded_are_called_unsupported(content: bytes, variant: str) -> None:
    with pytest.raises(UnsupportedPicture, match=f"a variant that is not supported: .*{variant}"):
        open_image(content)


def test_a_png_of_chunks_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 25000 chunks"):
        open_image(rgb_png(PIXELS, MOST_CHUNKS * chunk(b"teXt")))


def test_texts_that_unpack_without_end_are_not_unpacked() -> None:
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1 << 24)))
    with open_image(rgb_png(PIXELS, bomb + bomb)) as image:
        assert len(image.info["Raw profile type exif"]) == 64 * 1024


def test_a_damaged_text_is_inflated_once() -> None:
    # It fails behind 255 KiB of zeros, by a block of a type that does not exist.
    packer = zlib.compressobj(9)
    text = packer.compress(bytes(255 * 1024)) + packer.flush(zlib.Z_SYNC_FLUSH) + b"\7" * 4
    xmp = chunk(b"iTXt", XMP_KEYWORD + b"\0\1\0\0\0" + text)
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + text)
    data = rgb_png(PIXELS, (xmp + profile) * 500)
    assert calls_of("decompress", lambda: open_image(data)) == 2
    assert np.array_equal(read(data), PIXELS)


def calls_of(name: str, function: Callable[[], object]) -> int:
    """How often `function` calls a function of this name that is written in C."""
    calls = []

    def count(frame: object, event: str, argument: object) -> None:
        if event == "c_call" and getattr(argument, "__name__", "") == name:
            calls.append(argument)

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_texts_do_not_reach_the_decoder() -> None:
    texts = chunk(b"tEXt", b"Comment\0x") * 20_000 + chunk(b"eXIf", exif(SIDEWAYS)) * 2
    data = rgb_png(PIXELS, texts)
    assert read_png_chunks(data).picture == rgb_png(PIXELS)
    assert np.array_equal(read(data), TURNED)


@pytest.mark.parametrize(
    "chunks",
    [chunk(b"PLTE", b"abc") * 101, chunk(b"tRNS", bytes(6)) * 101, chunk(b"ABCD") * 101, chunk(b"IDAT") * 10_001],
)
def test_a_png_of_many_headers_or_empty_chunks_is_refused(chunks: bytes) -> None:
    with pytest.raises(ValueError, match="more than 100 headers, or too many small chunks of pixels"):
        open_image(rgb_png(PIXELS, chunks))


def test_a_png_of_many_chunks_of_pixels_is_read() -> None:
    whole = rgb_png(PIXELS)
    at, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    pieces = b"".join(chunk(b"IDAT", whole[i : i + 1]) for i in range(at + 8, end - 4))
    assert np.array_equal(read(whole[:at] + chunk(b"IDAT") * 9000 + pieces + whole[end:]), PIXELS)
    # More than 10,000 of them, in a larger file.
    texts = chunk(b"tEXt", bytes(1 << 24))
    assert np.array_equal(read(whole[:at] + chunk(b"IDAT") * 11_000 + pieces + texts + whole[end:]), PIXELS)


def test_of_an_animated_webp_one_frame_reaches_the_decoder() -> None:
    frames = [Image.fromarray(noise(8, 8) // shade) for shade in range(1, 9)]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    with open_image(animated) as image, Image.open(io.BytesIO(animated)) as whole:
        assert animated.count(b"ANMF") == 8
        assert without_metadata(animated)[0].count(b"ANMF") == 1
        assert np.array_equal(np.asarray(image), np.asarray(whole))


def test_a_bmp_palette_is_bounded() -> None:
    def with_colours(colours: int) -> bytes:
        return bmp(8, 0)[:46] + struct.pack("<I", colours) + bytes(4) + bytes(range(1, 256)) * 9

    assert read(with_colours(256)).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="its palette has 65536 colours, the limit is 256"):
        open_image(with_colours(65536))


class GivenUpError(Exception):
    pass


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(segment(0xFE, b"") * 9000),
        jpeg_with(b"\xff" * (1 << 22)),
        rgb_png(PIXELS, chunk(b"tEXt") * 9000),
        encoded(Image.fromarray(PIXELS), "GIF").replace(b",", b"\x21\xfe\0" * 9000 + b",", 1),
        encoded(Image.fromarray(PIXELS), "WEBP", exif=exif(SIDEWAYS)) + b"abcd\0\0\0\0" * 9000,
    ],
    ids=["JPEG", "JPEG of fill bytes", "PNG", "GIF", "WebP"],
)
def test_reading_the_parts_of_a_file_is_given_up(content: bytes) -> None:
    if content.startswith(b"RIFF"):
        content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    calls_left = 3

    def check() -> None:
        nonlocal calls_left
        calls_left -= 1
        if not calls_left:
            raise GivenUpError

    with pytest.raises(GivenUpError):
        open_image(content, check=check)


def test_what_is_no_picture_is_said_to_be_none() -> None:
    for content in (b"", b"no picture at all", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="its header makes no sense, or is of no known format"):
            open_image(content)


SIZE, WIDTH, HEIGHT = 64, 1800, 1500
KINDS = (
    *("JPEG RGB", "JPEG L progressive", "JPEG RGB progressive", "JPEG CMYK progressive"),
    *("PNG 1", "PNG L", "PNG L tRNS", "PNG P tRNS", "PNG I;16 tRNS", "PNG RGB tRNS", "PNG RGB16 tRNS", "PNG RGBA"),
    *("WEBP RGB", "WEBP RGBA", "WEBP RGBA lossless", "GIF P", "BMP RGB", "TIFF RGB"),
)
MEASURE = """
import ctypes

from offramp.models.pictures.picture import open_image
from offramp.models.preprocess import Preprocessing, decoded_bytes
from tests.models.pictures.test_picture import HEIGHT, KINDS, SIZE, WIDTH, picture

def status_bytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def estimated(content):
    preprocessing = Preprocessing(SIZE)
    with open_image(content) as image:
        preprocessing.draft(image)
        estimate = decoded_bytes(image, SIZE)
        preprocessing.apply(image)
    return estimate

trim = ctypes.CDLL(None).malloc_trim
for kind in KINDS:
    content = picture(kind, WIDTH, HEIGHT)
    estimated(picture(kind, 9, 9))
    trim(0)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status_bytes("VmRSS")
    estimate = estimated(content)
    print(status_bytes("VmHWM") - before, estimate, kind, sep=",")
"""


def picture(kind: str, width: int, height: int) -> bytes:
    """An encoded picture. kind: format, mode and "tRNS", "progressive" or "lossless"."""
    format, mode, *options = kind.split()
    rows = np.add.outer(np.arange(height), np.arange(width)) // 16
    pixels = np.stack([rows, rows + 50, rows // 2, rows + 90], axis=2).astype(np.uint8)
    if mode == "RGB16":
        row = (rows[0][:, None] * np.array([300, 200, 100])).astype(">u2").tobytes()
        return png([row] * height, width, 16, 2, chunk(b"tRNS", bytes(6)))
    if mode == "I;16":
        image = Image.fromarray((rows * 200).astype(np.uint16))
    elif mode in ("RGBA", "CMYK"):
        image = Image.frombytes(mode, (width, height), pixels.tobytes())
    else:
        image = Image.fromarray(pixels[:, :, :3]).convert(mode)
    transparency = {"P": b"\0\1\2\3", "L": 7, "RGB": (1, 2, 3), "I;16": 900}.get(mode)
    chosen = {"tRNS": {"transparency": transparency}}.get(options[0], {options[0]: True}) if options else {}
    return encoded(image, format, **chosen)


@pytest.mark.skipif(sys.platform != "linux", reason="measures the peak of memory as Linux reports it")
def test_what_decoding_takes_is_known_from_the_header() -> None:
    # Freed memory goes back at once (here and by malloc_trim): no picture is decoded in what another left.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment, check=True)
    slack, interpreter = 2 * 1024**2, 512 * 1024
    lines = [line.split(",") for line in run.stdout.splitlines()]
    assert len(lines) == len(KINDS)
    for peak, estimate, kind in lines:
        a_pixel = (
            f"{kind}: {int(peak) / WIDTH / HEIGHT:.2f} bytes a pixel, estimated {int(estimate) / WIDTH / HEIGHT:.2f}"
        )
        assert int(peak) <= int(estimate) + interpreter, a_pixel
        assert int(estimate) <= 2.5 * int(peak) + slack, a_pixel


def test_run_lengths_and_drafts_are_priced() -> None:
    with open_image(picture("JPEG RGB", WIDTH, HEIGHT)) as image:
        whole = decoded_bytes(image)
        PREPROCESSING.draft(image)
        assert decoded_bytes(image) < whole / 5
    runs = b"".join(bytes((8, y)) + b"\0\0" for y in range(8)) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = bytes(255 - i // 4 for i in range(1024))
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + palette + runs
    with open_image(content) as image:
        assert isinstance(image, BmpImageFile)
        priced = decoded_bytes(image)
        image.tile = [image.tile[0]._replace(codec_name="raw")]
        assert priced - decoded_bytes(image) == 2 * 8 * 8
