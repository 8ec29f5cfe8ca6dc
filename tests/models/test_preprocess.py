"""Any picture to the network's input: modes, orientation, shapes."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.preprocess import CIFAR100_MEAN, CIFAR100_STD, TRANSPOSES, Preprocessing, normalize, to_rgb
from tests.pictures import encoded, exif, field, noise

PLAIN = Preprocessing(8)


def flat(mode: str, colour: int | float | tuple[int, ...]) -> tuple[int, ...]:
    """The colour that a picture of one colour has afterwards."""
    pixels_HWC = PLAIN.apply(Image.new(mode, (11, 9), colour))
    assert pixels_HWC.shape == (8, 8, 3)
    assert pixels_HWC.dtype == np.uint8
    assert (pixels_HWC == pixels_HWC[0, 0]).all()
    return tuple(pixels_HWC[0, 0].tolist())


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (100, 128, 128), (100, 100, 100)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 0xABCD, (0xAB, 0xAB, 0xAB)),
        ("I;16", 65535, (255, 255, 255)),
        ("I", 0xABCD, (0xAB, 0xAB, 0xAB)),
        ("I", -5, (0, 0, 0)),
        ("I", 1 << 20, (255, 255, 255)),
        ("F", 12.7, (12, 12, 12)),
        ("F", -1.0, (0, 0, 0)),
        ("F", 1e9, (255, 255, 255)),
        ("F", math.nan, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: int | float | tuple[int, ...], rgb: tuple[int, ...]) -> None:
    assert flat(mode, colour) == rgb


def test_big_endian_16_bit_grey_reads_as_the_same_grey() -> None:
    grey = Image.frombytes("I;16B", (2, 1), bytes([0xAB, 0xCD, 0x00, 0x80]))
    assert np.asarray(to_rgb(grey))[0, :, 0].tolist() == [0xAB, 0x00]


def test_palette_pictures_use_their_palette() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert PLAIN.apply(image)[0, 0].tolist() == [10, 20, 30]


def test_transparency_of_palette_grey_and_rgb_files_lies_over_white() -> None:
    for mode, colour, transparent in (("P", 0, 0), ("L", 40, 40), ("RGB", (1, 2, 3), (1, 2, 3))):
        image = Image.new(mode, (8, 8), colour)
        if mode == "P":
            image.putpalette([5, 5, 5])
        file = io.BytesIO()
        image.save(file, "PNG", transparency=transparent)
        with Image.open(file) as read:
            assert read.mode == mode
            assert PLAIN.apply(read)[0, 0].tolist() == [255, 255, 255]


def test_16_bit_png_file_keeps_its_brightness() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x4000, dtype=np.uint16)).save(file, "PNG")
    with Image.open(file) as read:
        assert PLAIN.apply(read)[0, 0].tolist() == [0x40, 0x40, 0x40]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_turned_upright(orientation: int) -> None:
    upright = Image.fromarray(noise(8, 8))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    with Image.open(file) as read:
        assert np.array_equal(PLAIN.apply(read), np.asarray(upright))


def test_rgb_picture_of_the_right_size_passes_untouched() -> None:
    pixels_HWC = noise(32, 32)
    assert np.array_equal(Preprocessing(32).apply(Image.fromarray(pixels_HWC)), pixels_HWC)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (7, 8), (9, 8), (8, 9), (2000, 1500), (31, 400)]
)
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.3])
def test_any_shape_becomes_the_square_input(size: tuple[int, int], crop_fraction: float) -> None:
    pixels_HWC = Preprocessing(8, crop_fraction).apply(Image.new("RGB", size, (10, 20, 30)))
    assert pixels_HWC.shape == (8, 8, 3)
    assert (pixels_HWC == (10, 20, 30)).all()


@pytest.mark.parametrize("is_tall", [False, True])
def test_centre_of_a_long_picture_is_cut(is_tall: bool) -> None:
    pixels_HWC = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels_HWC[:, 8:16] = noise(8, 8)
    expected_HWC = pixels_HWC[:, 8:16]
    if is_tall:
        pixels_HWC, expected_HWC = pixels_HWC.transpose(1, 0, 2), expected_HWC.transpose(1, 0, 2)
    assert np.array_equal(PLAIN.apply(Image.fromarray(np.ascontiguousarray(pixels_HWC))), expected_HWC)


def test_crop_fraction_keeps_its_share_of_the_middle() -> None:
    pixels_HWC = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels_HWC[4:12, 4:12] = noise(8, 8)
    assert np.array_equal(Preprocessing(8, 0.5).apply(Image.fromarray(pixels_HWC)), pixels_HWC[4:12, 4:12])


def test_cutting_while_resizing_equals_resizing_then_cutting() -> None:
    image = Image.fromarray(noise(100, 40))
    resized = image.resize((50, 20), Image.Resampling.BILINEAR)
    expected_HWC = np.asarray(resized.crop((17, 2, 33, 18)), dtype=int)
    cut_HWC = Preprocessing(16, crop_fraction=0.8).apply(image).astype(int)
    assert np.abs(cut_HWC - expected_HWC).max() <= 1


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


def of_mode(mode: str, width: int, height: int) -> Image.Image:
    if mode in ("I;16", "I", "F"):
        grey = noise(width, height, 2).view(np.uint16)[:, :, 0]
        return Image.fromarray(grey if mode == "I;16" else grey.astype({"I": np.int32, "F": np.float32}[mode]))
    return Image.fromarray(noise(width, height, 4)).convert("RGB" if mode == "P" else "RGBA").convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(300, 400), (1200, 90), (90, 1200), (40, 40)])
def test_converting_band_by_band_equals_converting_at_once(mode: str, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(48, 0.875)
    image = of_mode(mode, *size)
    expected_HWC = preprocessing.apply(to_rgb(image)).astype(int)
    assert np.abs(preprocessing.apply(image).astype(int) - expected_HWC).max() <= 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(32, 32), (32, 5000), (5000, 32)])
def test_a_picture_that_is_not_resized_keeps_every_bit(mode: str, size: tuple[int, int]) -> None:
    image = of_mode(mode, *size)
    left, top = ((side - 32) // 2 for side in size)
    expected_HWC = np.asarray(to_rgb(image))[top : top + 32, left : left + 32]
    assert np.array_equal(Preprocessing(32).apply(image), expected_HWC)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(60, 41), (41, 60), (9, 200)])
def test_turning_after_resizing_equals_turning_before(orientation: int, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(16, 0.7)
    image = Image.fromarray(noise(*size))
    expected_HWC = preprocessing.apply(image.transpose(TRANSPOSES[orientation])).astype(int)
    image.info["exif"] = exif(field(0x0112, 3, orientation))
    assert np.abs(preprocessing.apply(image).astype(int) - expected_HWC).max() <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_far_larger_than_needed_is_decoded_smaller_and_looks_the_same(options: dict) -> None:
    smooth = Image.fromarray(noise(20, 15)).resize((400, 300), Image.Resampling.BICUBIC)
    content = encoded(smooth, "JPEG", quality=90, **options)
    preprocessing = Preprocessing(32)
    with Image.open(io.BytesIO(content)) as image:
        drafted_HWC = preprocessing.apply(image).astype(int)
        # Of 300 rows, 64 are enough.
        assert image.size == (100, 75)
    with Image.open(io.BytesIO(content)) as image:
        whole_HWC = preprocessing.apply(image.convert("RGB")).astype(int)
    assert np.abs(drafted_HWC - whole_HWC).mean() < 1
    assert np.abs(drafted_HWC - whole_HWC).max() <= 4


def test_a_jpeg_of_less_than_four_times_the_input_is_decoded_whole() -> None:
    content = encoded(Image.fromarray(noise(127, 127)), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        Preprocessing(32).apply(image)
        assert image.size == (127, 127)


def test_preprocessing_needs_no_torch() -> None:
    code = "import sys, offramp.models.preprocess, offramp.models.pictures.picture; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_truncated_picture_raises_as_pillow_does() -> None:
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, "JPEG")
    with Image.open(io.BytesIO(file.getvalue()[:-400])) as read, pytest.raises(OSError, match="truncated"):
        PLAIN.apply(read)


def test_normalize_is_the_textbook_formula_in_channels_last() -> None:
    images_BHWC = torch.from_numpy(np.stack([noise(5, 4), noise(5, 4)[::-1]]))
    preprocessing = Preprocessing(8, mean=CIFAR100_MEAN, std=CIFAR100_STD)
    x_BCHW = normalize(images_BHWC, preprocessing)
    assert x_BCHW.shape == (2, 3, 4, 5)
    assert x_BCHW.dtype == torch.float32
    assert x_BCHW.is_contiguous(memory_format=torch.channels_last)
    expected_BHWC = (images_BHWC.numpy() / 255.0 - np.array(CIFAR100_MEAN)) / np.array(CIFAR100_STD)
    np.testing.assert_allclose(x_BCHW.permute(0, 2, 3, 1).numpy(), expected_BHWC, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, "size 7 is out of range: give a side of 8 to 2048"),
        ({"size": 2049}, "size 2049 is out of range"),
        ({"crop_fraction": 0.0}, r"crop_fraction 0.0 is out of range: give a number in \(0, 1\]"),
        ({"crop_fraction": 1.01}, "crop_fraction 1.01 is out of range"),
        ({"crop_fraction": math.nan}, "crop_fraction nan is out of range"),
        ({"mean": (0.5, 0.5)}, "need three finite numbers each"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "need three finite numbers each"),
        ({"mean": (0.5, 0.5, math.nan)}, "need three finite numbers each"),
        ({"std": (0.5, math.inf, 0.5)}, "need three finite numbers each"),
        ({"std": (0.5, 0.0, 0.5)}, r"std \(0.5, 0.0, 0.5\) is out of range: give numbers above 0"),
    ],
)
def test_unusable_preprocessing_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **changes)
