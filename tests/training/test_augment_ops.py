"""Every operation gives for each image of a batch what Pillow gives for that image alone."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from training import augment_ops as ops

FILL = (11, 128, 240)
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.3, 1.9, 0.37, 1.0)


def pictures(height: int = 20, width: int = 29) -> Tensor:
    """Eight pictures: noise, dull noise, a ramp, one colour, two colours, few dark pixels, blocks, a mix."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randint(0, 256, (3, height, width), generator=generator)
    ramp = torch.arange(height * width).view(1, height, width).expand(3, -1, -1) * 200 // (height * width)
    mostly_bright = torch.where(noise < 30, noise, torch.tensor(251))
    blocks = noise[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width]
    mixed = torch.stack((noise[0], ramp[1], torch.full((height, width), 77)))
    two_colours = torch.where(noise < 128, 40, 41)
    plain = torch.full((3, height, width), 93)
    every = (noise, noise // 4 + 60, ramp, plain, two_colours, mostly_bright, blocks, mixed)
    return torch.stack(every).to(torch.uint8)


def to_pillow(image_CHW: Tensor) -> Image.Image:
    array = image_CHW.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def from_pillow(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def by_pillow(images_BCHW: Tensor, one: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    return torch.stack([from_pillow(one(to_pillow(image), place)) for place, image in enumerate(images_BCHW)])


def furthest_apart(left: Tensor, right: Tensor) -> int:
    assert left.shape == right.shape
    return int((left.int() - right.int()).abs().max())


SIZES = pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32), (2, 5), (1, 1)])


@SIZES
def test_posterize_keeps_the_bits_pillow_keeps(height: int, width: int) -> None:
    images, bits = pictures(height, width), [1, 2, 3, 4, 5, 6, 7, 8]
    expected = by_pillow(images, lambda image, place: ImageOps.posterize(image, bits[place]))
    assert torch.equal(ops.posterize(images, torch.tensor(bits)), expected)


@SIZES
def test_solarize_inverts_what_pillow_inverts(height: int, width: int) -> None:
    images, thresholds = pictures(height, width), [0, 1, 77, 93, 41, 128, 255, 256]
    expected = by_pillow(images, lambda image, place: ImageOps.solarize(image, thresholds[place]))
    assert torch.equal(ops.solarize(images, torch.tensor(thresholds)), expected)


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (ops.invert, ImageOps.invert),
        (ops.auto_contrast, ImageOps.autocontrast),
        (ops.equalize, ImageOps.equalize),
    ],
)
@SIZES
def test_operations_without_strength_equal_pillow(
    ours: Callable[[Tensor], Tensor],
    pillows: Callable[[Image.Image], Image.Image],
    height: int,
    width: int,
) -> None:
    images = pictures(height, width)
    assert torch.equal(ours(images), by_pillow(images, lambda image, _: pillows(image)))


def test_auto_contrast_truncates_as_pillow_for_every_range() -> None:
    spans = [(low, high) for low in range(0, 250, 7) for high in range(low, 256, 5)]
    ramps = [np.linspace(low, high, 64).astype(np.uint8).reshape(1, 8, 8).repeat(3, 0) for low, high in spans]
    images = torch.from_numpy(np.stack(ramps))
    assert torch.equal(ops.auto_contrast(images), by_pillow(images, lambda image, _: ImageOps.autocontrast(image)))


def test_equalize_clips_where_the_step_is_small() -> None:
    images = torch.zeros(1, 3, 1, 600, dtype=torch.uint8)
    images[..., :509] = (torch.arange(509) // 4).to(torch.uint8)
    images[..., 509:] = 200
    equalized = ops.equalize(images)
    assert torch.equal(equalized, by_pillow(images, lambda image, _: ImageOps.equalize(image)))
    assert int(equalized.max()) == 255


Enhancer = Callable[[Image.Image], ImageEnhance.Color]


def enhanced_by(enhancer: Enhancer, factors: tuple[float, ...], image: Image.Image, place: int) -> Image.Image:
    return enhancer(image).enhance(factors[place])


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (ops.brightness, ImageEnhance.Brightness),
        (ops.saturation, ImageEnhance.Color),
        (ops.contrast, ImageEnhance.Contrast),
        (ops.sharpness, ImageEnhance.Sharpness),
    ],
)
@SIZES
def test_enhancements_equal_pillow_to_a_grey_level(
    ours: Callable[[Tensor, Tensor], Tensor],
    pillows: Enhancer,
    height: int,
    width: int,
) -> None:
    images = pictures(height, width)
    for shift in range(len(FACTORS)):
        factors = FACTORS[shift:] + FACTORS[:shift]
        enhanced = ours(images, torch.tensor(factors))
        expected = by_pillow(images, partial(enhanced_by, pillows, factors))
        assert furthest_apart(enhanced, expected) <= 1
        assert (enhanced != expected).float().mean() < 0.01
        assert torch.equal(enhanced[factors.index(1.0)], images[factors.index(1.0)])


def test_grey_images_are_treated_as_pillow_treats_them() -> None:
    images = pictures()[:, :1]
    factors = torch.tensor(FACTORS)
    expected = by_pillow(images, lambda image, place: ImageEnhance.Contrast(image).enhance(FACTORS[place]))
    assert furthest_apart(ops.contrast(images, factors), expected) <= 1
    assert torch.equal(ops.saturation(images, factors), images)
    assert torch.equal(ops.equalize(images), by_pillow(images, lambda image, _: ImageOps.equalize(image)))


AMOUNTS = (0.0, 0.13, -0.13, 0.29, -0.29, 0.71, -0.99, 0.5)
GEOMETRY: dict[str, tuple[Callable[..., Tensor], Callable[[float], tuple[float, ...]]]] = {
    "shear_x": (ops.shear_x, lambda amount: (1, amount, 0, 0, 1, 0)),
    "shear_y": (ops.shear_y, lambda amount: (1, 0, 0, amount, 1, 0)),
    "translate_x": (ops.translate_x, lambda amount: (1, 0, 7 * amount, 0, 1, 0)),
    "translate_y": (ops.translate_y, lambda amount: (1, 0, 0, 0, 1, 7 * amount)),
}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32), (1, 1)])
def test_shears_and_translations_equal_pillow(
    name: str, interpolation: ops.Interpolation, height: int, width: int
) -> None:
    operation, matrix = GEOMETRY[name]
    images = pictures(height, width)
    amounts = torch.tensor(AMOUNTS) * (7 if name.startswith("translate") else 1)
    moved = operation(images, amounts, FILL, interpolation)
    resample = Image.Resampling[interpolation.upper()]
    expected = by_pillow(
        images,
        lambda image, place: image.transform(
            image.size, Image.Transform.AFFINE, matrix(AMOUNTS[place]), resample, fillcolor=FILL
        ),
    )
    assert furthest_apart(moved, expected) <= (0 if interpolation == "nearest" else 1)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32)])
def test_rotation_equals_pillow(interpolation: ops.Interpolation, height: int, width: int) -> None:
    images, degrees = pictures(height, width), [0.0, 7.3, -7.3, 30.0, 90.0, 180.0, -134.9, 45.1]
    turned = ops.rotate(images, torch.tensor(degrees), FILL, interpolation)
    resample = Image.Resampling[interpolation.upper()]
    expected = by_pillow(images, lambda image, place: image.rotate(degrees[place], resample, fillcolor=FILL))
    agree = (turned.int() - expected.int()).abs() <= (0 if interpolation == "nearest" else 1)
    # A coordinate within rounding error of a pixel's edge may fall on either side.
    assert agree.float().mean() > 0.995
    assert agree[:6].all()


def test_a_whole_translation_is_a_shift_with_fill() -> None:
    images = pictures()
    moved = ops.translate_x(images, torch.tensor([3.0, -3.0] * 4), FILL)
    assert torch.equal(moved[0, :, :, :-3], images[0, :, :, 3:])
    assert torch.equal(moved[1, :, :, 3:], images[1, :, :, :-3])
    border = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1)
    assert (moved[0, :, :, -3:] == border).all()
    assert (moved[1, :, :, :3] == border).all()


EVERY: dict[str, Callable[[Tensor], Tensor]] = {
    "invert": ops.invert,
    "auto_contrast": ops.auto_contrast,
    "equalize": ops.equalize,
    "posterize": lambda x: ops.posterize(x, torch.full(x.shape[:1], 4)),
    "solarize": lambda x: ops.solarize(x, torch.full(x.shape[:1], 99.0)),
    "brightness": lambda x: ops.brightness(x, torch.full(x.shape[:1], 1.4)),
    "saturation": lambda x: ops.saturation(x, torch.full(x.shape[:1], 1.4)),
    "contrast": lambda x: ops.contrast(x, torch.full(x.shape[:1], 1.4)),
    "sharpness": lambda x: ops.sharpness(x, torch.full(x.shape[:1], 1.4)),
    "shear_x": lambda x: ops.shear_x(x, torch.full(x.shape[:1], 0.2)),
    "shear_y": lambda x: ops.shear_y(x, torch.full(x.shape[:1], 0.2)),
    "translate_x": lambda x: ops.translate_x(x, torch.full(x.shape[:1], 2.0)),
    "translate_y": lambda x: ops.translate_y(x, torch.full(x.shape[:1], 2.0)),
    "rotate": lambda x: ops.rotate(x, torch.full(x.shape[:1], 20.0), 0, "bilinear"),
}


@pytest.mark.parametrize("name", EVERY)
def test_layout_does_not_change_the_result_and_is_kept(name: str) -> None:
    images = pictures()
    untouched = images.clone()
    interleaved = EVERY[name](images.contiguous(memory_format=torch.channels_last))
    assert interleaved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(interleaved, EVERY[name](images))
    assert torch.equal(images, untouched)


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch_stays_empty(name: str) -> None:
    assert EVERY[name](torch.zeros(0, 3, 8, 6, dtype=torch.uint8)).shape == (0, 3, 8, 6)


def test_images_that_are_not_eight_bit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float32.*uint8"):
        ops.invert(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\)"):
        ops.equalize(torch.zeros(3, 4, 4, dtype=torch.uint8))


def test_magnitudes_must_be_one_for_each_image() -> None:
    with pytest.raises(ValueError, match="one for each image"):
        ops.brightness(pictures(), torch.ones(3))
    with pytest.raises(ValueError, match="one row for each image"):
        ops.shear_x(pictures(), torch.ones(3))


def test_fill_and_interpolation_are_checked() -> None:
    with pytest.raises(ValueError, match="2 channels, the images have 3"):
        ops.shear_x(pictures(), torch.ones(8), (1, 2))
    with pytest.raises(ValueError, match="0 to 255"):
        ops.shear_x(pictures(), torch.ones(8), 256)
    with pytest.raises(ValueError, match=r"'cubic'.*nearest, bilinear"):
        ops.shear_x(pictures(), torch.ones(8), 0, "cubic")  # type: ignore[arg-type]


def test_saturation_of_other_than_rgb_or_grey_is_refused() -> None:
    with pytest.raises(ValueError, match="4 channels"):
        ops.saturation(torch.zeros(1, 4, 3, 3, dtype=torch.uint8), torch.ones(1))
