"""Every operation gives for each image of a batch what Pillow gives for that image alone."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from offramp.training.augment.policies import FILL, OPERATIONS, apply_operations

GREY = (FILL,) * 3
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.3, 1.9, 0.37, 1.0)


def operate(name: str, images: Tensor, strengths: Tensor | float = 0.0) -> Tensor:
    """One operation on every picture of a batch."""
    numbers = torch.full(images.shape[:1], OPERATIONS.index(name))
    if isinstance(strengths, float):
        strengths = torch.full(images.shape[:1], strengths)
    return apply_operations(images, numbers, strengths)


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
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_pillow(images_BCHW: Tensor, change: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    return torch.stack([from_pillow(change(to_pillow(image), place)) for place, image in enumerate(images_BCHW)])


def furthest_apart(left: Tensor, right: Tensor) -> int:
    assert left.shape == right.shape
    return int((left.int() - right.int()).abs().max())


SIZES = pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32), (2, 5), (1, 1)])


@SIZES
def test_posterize_keeps_the_bits_pillow_keeps(height: int, width: int) -> None:
    images, bits = pictures(height, width), [1, 2, 3, 4, 5, 6, 7, 8]
    expected = by_pillow(images, lambda image, place: ImageOps.posterize(image, bits[place]))
    assert torch.equal(operate("posterize", images, torch.tensor(bits)), expected)


@SIZES
def test_solarize_inverts_what_pillow_inverts(height: int, width: int) -> None:
    images, thresholds = pictures(height, width), [0, 1, 77, 93, 41, 128, 255, 256]
    expected = by_pillow(images, lambda image, place: ImageOps.solarize(image, thresholds[place]))
    assert torch.equal(operate("solarize", images, torch.tensor(thresholds)), expected)


@pytest.mark.parametrize(
    ("name", "pillows"),
    [
        ("identity", lambda image: image),
        ("invert", ImageOps.invert),
        ("auto_contrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
    ],
)
@SIZES
def test_operations_without_strength_equal_pillow(
    name: str, pillows: Callable[[Image.Image], Image.Image], height: int, width: int
) -> None:
    images = pictures(height, width)
    assert torch.equal(operate(name, images), by_pillow(images, lambda image, _: pillows(image)))


def test_auto_contrast_truncates_as_pillow_for_every_range() -> None:
    spans = [(low, high) for low in range(0, 250, 7) for high in range(low, 256, 5)]
    ramps = [np.linspace(low, high, 64).astype(np.uint8).reshape(1, 8, 8).repeat(3, 0) for low, high in spans]
    images = torch.from_numpy(np.stack(ramps))
    assert torch.equal(
        operate("auto_contrast", images), by_pillow(images, lambda image, _: ImageOps.autocontrast(image))
    )


def test_equalize_clips_where_the_step_is_small() -> None:
    images = torch.zeros(1, 3, 1, 600, dtype=torch.uint8)
    images[..., :509] = (torch.arange(509) // 4).to(torch.uint8)
    images[..., 509:] = 200
    equalized = operate("equalize", images)
    assert torch.equal(equalized, by_pillow(images, lambda image, _: ImageOps.equalize(image)))
    assert int(equalized.max()) == 255


Enhancer = Callable[[Image.Image], ImageEnhance.Color]


def enhanced_by(enhancer: Enhancer, factors: tuple[float, ...], image: Image.Image, place: int) -> Image.Image:
    return enhancer(image).enhance(factors[place])


@pytest.mark.parametrize(
    ("name", "pillows"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("saturation", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
@SIZES
def test_enhancements_equal_pillow_to_a_grey_level(name: str, pillows: Enhancer, height: int, width: int) -> None:
    images = pictures(height, width)
    for shift in range(len(FACTORS)):
        factors = FACTORS[shift:] + FACTORS[:shift]
        enhanced = operate(name, images, torch.tensor(factors) - 1)
        expected = by_pillow(images, partial(enhanced_by, pillows, factors))
        assert furthest_apart(enhanced, expected) <= 1
        assert (enhanced != expected).float().mean() < 0.01
        assert torch.equal(enhanced[factors.index(1.0)], images[factors.index(1.0)])


AMOUNTS = (0.0, 0.13, -0.13, 0.29, -0.29, 0.71, -0.99, 0.5)
MATRICES: dict[str, Callable[[float], tuple[float, ...]]] = {
    "shear_x": lambda amount: (1, amount, 0, 0, 1, 0),
    "shear_y": lambda amount: (1, 0, 0, amount, 1, 0),
    "translate_x": lambda amount: (1, 0, 7 * amount, 0, 1, 0),
    "translate_y": lambda amount: (1, 0, 0, 0, 1, 7 * amount),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32), (1, 1)])
def test_shears_and_translations_equal_pillow(name: str, height: int, width: int) -> None:
    images = pictures(height, width)
    amounts = torch.tensor(AMOUNTS) * (7 if name.startswith("translate") else 1)
    expected = by_pillow(
        images,
        lambda image, place: image.transform(
            image.size, Image.Transform.AFFINE, MATRICES[name](AMOUNTS[place]), fillcolor=GREY
        ),
    )
    assert furthest_apart(operate(name, images, amounts), expected) == 0


@pytest.mark.parametrize(("height", "width"), [(20, 29), (32, 32)])
def test_rotation_equals_pillow(height: int, width: int) -> None:
    images, degrees = pictures(height, width), [0.0, 7.3, -7.3, 30.0, 90.0, 180.0, -134.9, 45.1]
    turned = operate("rotate", images, torch.tensor(degrees))
    expected = by_pillow(images, lambda image, place: image.rotate(degrees[place], fillcolor=GREY))
    agree = turned == expected
    # A coordinate within rounding error of a pixel's edge may fall on either side.
    assert agree.float().mean() > 0.995
    assert agree[:6].all()


def test_a_whole_translation_is_a_shift_with_fill() -> None:
    images = pictures()
    moved = operate("translate_x", images, torch.tensor([3.0, -3.0] * 4))
    assert torch.equal(moved[0, :, :, :-3], images[0, :, :, 3:])
    assert torch.equal(moved[1, :, :, 3:], images[1, :, :, :-3])
    assert (moved[0, :, :, -3:] == FILL).all()
    assert (moved[1, :, :, :3] == FILL).all()


STRENGTHS = {"posterize": 4.0, "solarize": 99.0, "translate_x": 2.0, "translate_y": 2.0, "rotate": 20.0}
EVERY = pytest.mark.parametrize("name", OPERATIONS)


@EVERY
def test_layout_does_not_change_the_result_and_is_kept(name: str) -> None:
    images, strength = pictures(), STRENGTHS.get(name, 0.4)
    untouched = images.clone()
    interleaved = operate(name, images.contiguous(memory_format=torch.channels_last), strength)
    assert interleaved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(interleaved, operate(name, images, strength))
    assert torch.equal(images, untouched)


@EVERY
def test_an_empty_batch_stays_empty(name: str) -> None:
    assert operate(name, torch.zeros(0, 3, 8, 6, dtype=torch.uint8)).shape == (0, 3, 8, 6)
