"""Resized crops are Pillow's; erased boxes lie inside, as large and as often as asked; boxes follow their ranges."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from offramp.training.augment.augmentation import (
    Boxes,
    Range,
    erased_pixels,
    random_boxes,
    random_erase,
    random_resized_crop,
)
from tests.devices import DEVICES, LAYOUTS

CPU = torch.device("cpu")


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise(batch: int, height: int = 24, width: int = 31) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=seeded(9)).to(torch.uint8)


def boxes(
    count: int, area: tuple[float, float], aspect: tuple[float, float], height: int = 24, width: int = 31
) -> Boxes:
    return random_boxes(count, height, width, area, aspect, seeded(0), CPU)


def test_boxes_that_always_fit_have_the_distribution_asked() -> None:
    drawn = boxes(4000, (0.1, 0.4), (0.6, 1.5))
    area_B = drawn.height_B * drawn.width_B / (24 * 31)
    log_aspect_B = (drawn.width_B / drawn.height_B).log()
    spread = math.log(1.5) - math.log(0.6)
    assert stats.kstest(area_B.numpy(), stats.uniform(0.1, 0.3).cdf).pvalue > 0.01
    assert stats.kstest(log_aspect_B.numpy(), stats.uniform(math.log(0.6), spread).cdf).pvalue > 0.01
    assert stats.kstest(drawn.down_B.numpy(), stats.uniform.cdf).pvalue > 0.01
    assert stats.kstest(drawn.across_B.numpy(), stats.uniform.cdf).pvalue > 0.01


def test_boxes_that_do_not_fit_are_drawn_again() -> None:
    drawn = boxes(4000, (0.08, 1.0), (3 / 4, 4 / 3), 32, 32)
    area_B = drawn.height_B * drawn.width_B / 32**2
    aspect_B = drawn.width_B / drawn.height_B
    assert 0.079 < area_B.min() < 0.1
    # Of a square, at aspect r no more than min(r, 1/r) fits: shrinking instead would pile up there.
    on_the_edge = (area_B - torch.minimum(aspect_B, 1 / aspect_B)).abs() < 1e-3
    assert on_the_edge.float().mean() < 0.01
    assert ((aspect_B > 0.749) & (aspect_B < 1.334)).all()


def test_a_box_that_never_fits_is_shrunk_and_keeps_its_aspect() -> None:
    drawn = boxes(500, (0.9, 1.0), (0.5, 0.5), 32, 32)
    assert torch.allclose(drawn.height_B, torch.full((500,), 32.0))
    assert torch.allclose(drawn.width_B, torch.full((500,), 16.0))


@pytest.mark.parametrize(("height", "width"), [(24, 31), (32, 32), (8, 60), (1, 1)])
def test_boxes_are_no_larger_than_the_picture(height: int, width: int) -> None:
    drawn = boxes(2000, (0.02, 1.0), (0.3, 3.3), height, width)
    assert (drawn.height_B <= height).all()
    assert (drawn.width_B <= width).all()


def pillow_crop(image_CHW: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    image = Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())
    resized = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def test_a_resized_crop_is_pillows_resize_of_the_box() -> None:
    images = noise(60)
    cropped = random_resized_crop(images, (0.08, 1.0), seeded(0))
    drawn = boxes(60, (0.08, 1.0), (3 / 4, 4 / 3))
    left_B, top_B = drawn.across_B * (31 - drawn.width_B), drawn.down_B * (24 - drawn.height_B)
    right_B, bottom_B = (left_B + drawn.width_B).clamp(max=31), (top_B + drawn.height_B).clamp(max=24)
    corners = torch.stack((left_B, top_B, right_B, bottom_B), 1).tolist()
    expected = torch.stack([pillow_crop(image, tuple(box)) for image, box in zip(images, corners, strict=True)])
    difference = (cropped.int() - expected.int()).abs()
    # Pillow rounds between its two passes.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.25


def test_the_whole_picture_enlarged_is_the_picture() -> None:
    images = noise(8, 32, 32)
    assert torch.equal(random_resized_crop(images, (1.0, 1.0), seeded(0), (1.0, 1.0)), images)


def erased(count: int, probability: float = 1.0, **ranges: Range) -> Tensor:
    """Which pixels erasing hides, B×H×W."""
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    return erased_pixels(images, probability, seeded(0), **ranges)[:, 0]


def test_an_erased_box_is_a_whole_rectangle_of_the_area_and_aspect_asked() -> None:
    for hidden_HW in erased(500, area=(0.1, 0.3), aspect=(0.5, 2.0)):
        rows, columns = hidden_HW.any(1).nonzero().flatten(), hidden_HW.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert hidden_HW.sum() == height * width
        assert hidden_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        # Each side is that of the drawn box to the nearest pixel.
        assert (height + 1) * (width + 1) > 0.1 * 32**2
        assert (height - 1) * (width - 1) < 0.3 * 32**2
        assert (width + 1) / (height - 1) > 0.5
        assert (width - 1) / (height + 1) < 2.0


def test_erased_areas_average_to_the_middle_of_the_range() -> None:
    share_B = erased(4000, area=(0.02, 0.4)).float().mean((1, 2))
    assert float(share_B.mean()) == pytest.approx(0.21, abs=5 * 0.38 / 12**0.5 / 4000**0.5)


def test_boxes_of_one_size_lie_at_every_place_equally_often() -> None:
    hidden_BHW = erased(4000, area=(0.7656, 0.7657), aspect=(1.0, 1.0))
    assert set(hidden_BHW.flatten(1).sum(1).tolist()) == {28 * 28}
    first_row_B, first_column_B = hidden_BHW.any(2).int().argmax(1), hidden_BHW.any(1).int().argmax(1)
    assert stats.chisquare((first_row_B * 5 + first_column_B).bincount(minlength=25).numpy()).pvalue > 0.01


def test_images_are_erased_as_often_as_asked() -> None:
    hidden_B = erased(4000, 0.25).flatten(1).any(1)
    assert abs(int(hidden_B.sum()) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert erased(200, 1.0).flatten(1).any(1).all()


def test_erasing_leaves_the_rest_of_the_picture() -> None:
    images = noise(50, 32, 32)
    painted = random_erase(images, 1.0, seeded(0))
    assert torch.equal(torch.where(erased(50).unsqueeze(1), images, painted), images)
    assert not torch.equal(painted, images)


def test_noise_is_every_value_alike_and_new_for_each_pixel_and_image() -> None:
    hidden_BHW = erased(300)
    grey = torch.full((300, 3, 32, 32), 7, dtype=torch.uint8)
    noisy = random_erase(grey, 1.0, seeded(0))
    assert (noisy.permute(0, 2, 3, 1)[~hidden_BHW] == 7).all()
    values = noisy.permute(0, 2, 3, 1)[hidden_BHW]
    assert stats.chisquare(values.flatten().bincount(minlength=256).numpy()).pvalue > 0.01
    assert (values[:, 0] == values[:, 1]).float().mean() < 0.01
    assert (values[1:] == values[:-1]).float().mean() < 0.01


def test_never_erasing_draws_nothing() -> None:
    images, generator = noise(5), seeded(0)
    assert random_erase(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), seeded(0).get_state())


@DEVICES
@LAYOUTS
@pytest.mark.parametrize("shape", [(0, 3, 8, 6), (1, 3, 8, 6), (5, 3, 7, 12), (2, 3, 1, 1)])
def test_each_step_keeps_shape_type_device_layout_and_input(
    shape: tuple[int, int, int, int], layout: torch.memory_format, device: str
) -> None:
    images = torch.zeros(shape, dtype=torch.uint8, device=device).contiguous(memory_format=layout)
    for augmented in (
        random_resized_crop(images, (0.1, 0.9), seeded(0, device)),
        random_erase(images, 0.5, seeded(0, device)),
    ):
        assert augmented.shape == images.shape
        assert augmented.dtype == torch.uint8
        assert augmented.device == images.device
        # An empty tensor has every layout at once, and steps may name another.
        assert not len(images) or augmented.is_contiguous(memory_format=layout)
    assert not images.any()


def test_layout_does_not_change_the_result() -> None:
    images = noise(40)
    interleaved = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(random_erase(images, 0.5, seeded(1)), random_erase(interleaved, 0.5, seeded(1)))
    assert torch.equal(
        random_resized_crop(images, (0.1, 0.9), seeded(1)), random_resized_crop(interleaved, (0.1, 0.9), seeded(1))
    )


def test_a_resized_crop_can_give_another_size() -> None:
    images_BCHW = torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = random_resized_crop(images_BCHW, (1.0, 1.0), torch.Generator().manual_seed(1), aspect=(1.25, 1.25), side=8)
    assert whole.shape == (4, 3, 8, 8)
    # Of a picture halved along both axes every pixel is the mean of its neighbours.
    square = images_BCHW[..., :16]
    halved = random_resized_crop(square, (1.0, 1.0), torch.Generator().manual_seed(1), aspect=(1.0, 1.0), side=8)
    expected = square.float().view(4, 3, 8, 2, 8, 2).mean((3, 5))
    assert (halved.float() - expected).abs().max() <= 0.5
