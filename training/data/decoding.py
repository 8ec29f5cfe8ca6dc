"""One encoded picture to pixels; every way it can be broken becomes a DataError that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.folder import printable
from models.picture import DECODE_ERRORS, open_image
from models.preprocess import Preprocessing
from training.data.errors import DataError


def decode_picture(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode and preprocess one file to uint8 of shape (size, size, 3).

    Raises DataError naming the file when it is missing, corrupt, truncated or no picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{printable(path)}: cannot be read ({error.strerror}); bring the file back or remove its name"
        ) from error
    return decode_bytes(content, printable(path), preprocessing)


def decode_bytes(content: bytes, name: str, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode and preprocess a file's content to uint8 of shape (size, size, 3).

    name: where it came from, for the message. Raises DataError when it is corrupt, truncated or no picture.
    """
    try:
        with open_image(content) as image:
            return preprocessing.apply(image)
    except DECODE_ERRORS as error:
        raise DataError(
            f"{name}: cannot be decoded ({type(error).__name__}: {error}); replace or remove this file"
        ) from error
