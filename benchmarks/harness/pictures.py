"""Test pictures of CIFAR, as arrays and as PNG files."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from offramp.training.data.cifar import LAYOUTS, read_cifar

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TestPictures:
    """images_NHWC: uint8 (N, 32, 32, 3), in the official order. png: the same as files. class_ids: true classes."""

    __test__ = False
    images_NHWC: Pixels = field(repr=False)
    png: list[bytes] = field(repr=False)
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.png)


def read_test_pictures(dataset: str, data_root: Path, limit: int = 0) -> TestPictures:
    """The first `limit` test pictures (0: all) of cifar10 or cifar100.

    Raises ValueError for another name, and DataError where the files are missing.
    """
    if dataset not in LAYOUTS:
        raise ValueError(f"dataset {dataset!r} is unknown here: choose one of {', '.join(LAYOUTS)}")
    test = read_cifar(dataset, data_root).test
    images_NHWC = np.asarray(test.images_NHWC[: limit or len(test)])
    class_ids = tuple(test.labels_N[: len(images_NHWC)].tolist())
    return TestPictures(images_NHWC, as_png(images_NHWC), class_ids, tuple(test.class_names))


def as_png(images_NHWC: Pixels, compress_level: int = 6) -> list[bytes]:
    """The pictures as PNG files. compress_level: of zlib; 1 is fast."""
    return [encode(Image.fromarray(image_HWC), "png", compress_level=compress_level) for image_HWC in images_NHWC]


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """The image as a file of that format. options: of Pillow's encoder."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
