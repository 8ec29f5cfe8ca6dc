"""One encoded picture to pixels; every way it can be broken becomes a DataError that names it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.preprocess import DECODE_ERRORS, Preprocessing
from training.data.errors import DataError


def decode_picture(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode and preprocess one file to uint8 of shape (size, size, 3).

    Raises DataError naming the file when it is missing, corrupt, truncated or no picture.
    """
    return _decode(path, str(path), preprocessing)


def decode_bytes(content: bytes, name: str, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode and preprocess a file's content to uint8 of shape (size, size, 3).

    name: where it came from, for the message. Raises DataError when it is corrupt, truncated or no picture.
    """
    return _decode(BytesIO(content), name, preprocessing)


def _decode(source: Path | BytesIO, name: str, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(source) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise DataError(
            f"{name}: cannot be decoded ({type(error).__name__}: {error}); replace or remove this file"
        ) from error
