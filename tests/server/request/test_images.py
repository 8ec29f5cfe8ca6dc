"""Pictures from clients: no bytes cause an error of the server."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from offramp.models.preprocess import Preprocessing
from offramp.server.http.problems import Problem
from offramp.server.request import images
from offramp.server.request.images import image_format

PREPROCESSING = Preprocessing(32)
MAX_PIXELS = 1_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def decode(data: bytes, index: int = 0, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    return images.decode(images.open_picture(data, index, max_pixels), index, PREPROCESSING)


def encoded(format: str, mode: str = "RGB", **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert("RGB").convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


WHOLE = [encoded(format) for format in FORMATS] + [
    encoded("JPEG", "L"),
    encoded("JPEG", "CMYK"),
    encoded("JPEG", progressive=True),
    encoded(
        "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01" + b"\x00\x00\x00\x06" + bytes(7)
    ),
    encoded("PNG", "P"),
    encoded("PNG", "1"),
    encoded("PNG", "RGBA"),
    encoded("PNG", "LA"),
    encoded("PNG", "I;16"),
    encoded("WEBP", "RGBA", lossless=True),
    encoded("BMP", "P"),
    encoded("GIF", "L"),
    animation("GIF"),
    animation("WEBP"),
    animation("PNG"),
]


@pytest.mark.parametrize("data", WHOLE, ids=lambda data: image_format(data))
def test_every_mode_is_handled(data):
    picture = decode(data)
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8


def test_decoding_is_the_preprocessing_of_evaluation():
    data = encoded("PNG")
    expected = PREPROCESSING.apply(Image.open(io.BytesIO(data)))
    assert (decode(data) == expected).all()


def test_an_animation_shows_its_first_frame():
    assert decode(animation("PNG"))[0, 0].tolist() == [255, 0, 0]


def status_of(data: bytes) -> int:
    try:
        decode(data)
    except Problem as problem:
        return problem.kind.status
    return 200


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 3000),
    inserted=st.tuples(st.integers(0, 200), st.binary(max_size=12)),
)
def test_no_bytes_are_our_fault(data, changes, cut, inserted):
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    at, extra = inserted
    mutated[at:at] = extra
    assert status_of(bytes(mutated[: max(1, len(mutated) - cut)])) in {200, 413, 415, 422}


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([data[:16] for data in WHOLE]), rest=st.binary(max_size=300))
def test_noise_behind_a_true_beginning_is_not_our_fault(start, rest):
    assert status_of(start + rest) in {200, 413, 415, 422}


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_noise_is_not_our_fault(data):
    assert status_of(data) in {415, 422}


def test_one_pixel_more_than_allowed_is_too_many():
    data = encoded("PNG")
    assert decode(data, max_pixels=24 * 40).shape == (32, 32, 3)
    with pytest.raises(Problem) as caught:
        decode(data, 3, 24 * 40 - 1)
    assert caught.value.kind.status == 413
    assert "image 3 has 40 × 24 pixels" in caught.value.detail
